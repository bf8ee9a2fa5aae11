"""KIVI on a GPU: the kernels against the reference, then memory, batch, throughput and bandwidth, beside a full cache.

    make bench-gpu
    PYTHONPATH=src python tests/bench/bench_gpu_kivi.py [--tokens 8064] [--bits 2] [--check]

A decoder of Llama-3-8B's shapes with random bf16 weights decodes 128 tokens a row after prompts of random keys and
values. Both caches go through the same decoder in the same process; each takes the largest batch that fits. Prompts are
not read by the model: the full cache is filled with random numbers, KIVI's with the same kind of numbers, quantized row
by row. Results go to docs/benchmarks/kivi-gpu.md. Without a GPU or Triton the script says so and exits 0.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import ClassVar

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

LAYERS, HEADS, KV_HEADS, HEAD_DIM, WIDTH, INNER, VOCAB = 32, 32, 8, 128, 4096, 14336, 128256
SCALING = HEAD_DIM**-0.5
TUNE_ROWS = {"full": 64, "kivi": 256}  # of the trials on one layer
STEPS = 128  # as many as a residual, so that every row quantizes its keys once
MARGIN = 0.75 * 2**30  # left for activations when the largest batch is estimated
GOALS = {"memory": 2.6, "batch": 4.0, "throughput": 3.5, "attention": 1.5}
PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "kivi-gpu.md"
DEVICE = torch.device("cuda")


# --- the decoder ----------------------------------------------------------------------------------------------------


class Llama:
    """One decoding step of a decoder of Llama-3-8B's shapes, weights random.

    Args:
        attend: attention of a layer: (layer, query ``[R, H, d]``, key, value ``[R, Hk, d]``) to ``[R, H, d]``.
    """

    def __init__(self) -> None:
        def weight(rows: int, columns: int) -> Tensor:
            return torch.empty(rows, columns, dtype=torch.bfloat16, device=DEVICE).normal_(0, columns**-0.5)

        heads, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
        self.embedding = weight(VOCAB, WIDTH)
        self.head = weight(VOCAB, WIDTH)
        self.norm = torch.ones(WIDTH, dtype=torch.bfloat16, device=DEVICE)
        self.layers = [
            {
                "qkv": weight(heads + 2 * kv, WIDTH),
                "o": weight(WIDTH, heads),
                "gate_up": weight(2 * INNER, WIDTH),
                "down": weight(WIDTH, INNER),
            }
            for _ in range(LAYERS)
        ]
        self.frequencies = 500000.0 ** -(torch.arange(0, HEAD_DIM, 2, device=DEVICE) / HEAD_DIM)

    def step(self, tokens: Tensor, position: int, attend: Callable[[int, Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """Next tokens ``[R]`` of tokens ``[R]``, all at one position."""
        rows = tokens.shape[0]
        angles = (position * self.frequencies).repeat(2)
        cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()

        def rotated(x: Tensor) -> Tensor:
            low, high = x.chunk(2, dim=-1)
            return x * cos + torch.cat((-high, low), dim=-1) * sin

        x = F.embedding(tokens, self.embedding)
        for i, layer in enumerate(self.layers):
            y = F.linear(F.rms_norm(x, (WIDTH,), self.norm, 1e-5), layer["qkv"]).view(rows, -1, HEAD_DIM)
            query, key, value = y.split((HEADS, KV_HEADS, KV_HEADS), dim=1)
            out = attend(i, rotated(query), rotated(key), value)
            x = x + F.linear(out.reshape(rows, -1), layer["o"])
            gate, up = F.linear(F.rms_norm(x, (WIDTH,), self.norm, 1e-5), layer["gate_up"]).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate) * up, layer["down"])
        logits = F.linear(F.rms_norm(x, (WIDTH,), self.norm, 1e-5), self.head)
        return logits.argmax(dim=-1)


# --- the two caches -------------------------------------------------------------------------------------------------


class Full:
    """Uncompressed keys and values ``[R, Hk, n, d]`` a layer, the fastest of PyTorch's kernels."""

    how: str = ""
    ways: ClassVar[dict[str, tuple[SDPBackend, bool]]] = {
        "flash, query heads as rows": (SDPBackend.FLASH_ATTENTION, True),
        "flash, grouped queries": (SDPBackend.FLASH_ATTENTION, False),
        "efficient, query heads as rows": (SDPBackend.EFFICIENT_ATTENTION, True),
    }

    def __init__(self, rows: int, tokens: int, layers: int = LAYERS) -> None:
        self.rows, self.tokens = rows, tokens
        shape = (rows, KV_HEADS, tokens + STEPS, HEAD_DIM)
        self.caches = [
            tuple(torch.empty(shape, dtype=torch.bfloat16, device=DEVICE) for _ in range(2)) for _ in range(layers)
        ]

    def fill(self) -> None:
        for pair in self.caches:
            for tensor in pair:
                for row in tensor:
                    row.normal_()

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys, values = self.caches[layer]
        keys[:, :, self.tokens] = key
        values[:, :, self.tokens] = value
        return full_attention(query, keys[:, :, : self.tokens + 1], values[:, :, : self.tokens + 1], Full.how)

    def advance(self) -> None:
        self.tokens += 1

    @staticmethod
    def row_bytes(tokens: int) -> int:
        return LAYERS * 2 * KV_HEADS * (tokens + STEPS) * HEAD_DIM * 2

    def step_bytes(self) -> int:
        """Bytes of keys and values that a step's attention must read."""
        return len(self.caches) * 2 * self.rows * KV_HEADS * (self.tokens + 1) * HEAD_DIM * 2


def full_attention(query: Tensor, keys: Tensor, values: Tensor, way: str) -> Tensor:
    """``[R, H, d]`` of queries ``[R, H, d]`` over ``[R, Hk, n, d]``."""
    backend, as_rows = Full.ways[way]
    rows = query.shape[0]
    shaped = query.reshape(rows, KV_HEADS, -1, HEAD_DIM) if as_rows else query[:, :, None]
    with sdpa_kernel(backend):
        out = F.scaled_dot_product_attention(shaped, keys, values, scale=SCALING, enable_gqa=not as_rows)
    return out.reshape(rows, HEADS, HEAD_DIM)


class Kivi:
    """Packed pages and the newest 128 tokens, one arena a layer."""

    launch: ClassVar[dict[str, int]] = {}

    def __init__(self, rows: int, tokens: int, bits: int, layers: int = LAYERS) -> None:
        from lcbench.kv.kernels.batch import PagedBatch
        from lcbench.kv.kernels.pages import TOKENS, PageLayout

        self.rows, self.tokens, self.bits = rows, tokens, bits
        self.layout = PageLayout(bits, 32, HEAD_DIM)
        pages = rows * ((tokens + STEPS) // TOKENS)
        self.arenas = [
            PagedBatch(self.layout, KV_HEADS, rows, pages, dtype=torch.bfloat16, device=DEVICE) for _ in range(layers)
        ]
        for arena in self.arenas:
            arena.launch = replace(arena.launch, **Kivi.launch)
        self.slots = tuple(range(rows))

    def fill(self) -> None:
        for arena in self.arenas:
            for row in range(self.rows):
                key, value = torch.randn(2, KV_HEADS, self.tokens, HEAD_DIM, dtype=torch.bfloat16, device=DEVICE)
                arena.fill(row, key, value)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.arenas[layer].attend(self.slots, query, key, value, SCALING)

    def advance(self) -> None:
        self.tokens += 1

    @staticmethod
    def row_bytes(tokens: int, bits: int) -> int:
        from lcbench.kv.kernels.pages import TOKENS, PageLayout

        pages = (tokens + STEPS) // TOKENS * PageLayout(bits, 32, HEAD_DIM).record
        return LAYERS * KV_HEADS * 2 * (pages + 2 * TOKENS * HEAD_DIM)

    def step_bytes(self) -> int:
        """Bytes that a step's attention must read: packed keys and values, and the exact ones."""
        count, rest = divmod(self.tokens, 128)
        per_value = self.bits / 8 + 4 / 32
        packed = (count * 128 + max(0, self.tokens - 128)) * per_value
        exact = (rest + 1 + min(self.tokens, 128) + 1) * 2
        return int(len(self.arenas) * self.rows * KV_HEADS * HEAD_DIM * (packed + exact))


# --- measuring ------------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    print(f"[{time.perf_counter() - START:6.1f} s] {text}", flush=True)


def free() -> None:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def milliseconds(work: Callable[[], object], repeats: int, warm: int = 3) -> float:
    """Median time of ``work`` by device events; the device is kept busy until the host has launched it."""
    for _ in range(warm):
        work()
    times = []
    for _ in range(repeats):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(3):
            torch.matmul(_ballast(), _ballast())
        start.record()
        work()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return statistics.median(times)


@cache
def _ballast() -> Tensor:
    return torch.randn(8192, 8192, dtype=torch.bfloat16, device=DEVICE)


def copy_bandwidth() -> float:
    """Bytes per second of a large copy on the device, read plus written."""
    size = 2 * 2**30
    source = torch.empty(size, dtype=torch.uint8, device=DEVICE).random_()
    target = torch.empty_like(source)
    return 2 * size / (milliseconds(lambda: target.copy_(source), 20) / 1e3)


def relative_error(out: Tensor, reference: Tensor) -> float:
    return float((out.double() - reference.double()).norm() / reference.double().norm())


def check_kernels() -> list[tuple[str, float]]:
    """Decoding of ragged rows by the kernels against `KiviLayer` in fp32 on the same quantized numbers."""
    from lcbench.kv.kernels.batch import PagedBatch
    from lcbench.kv.kernels.pages import PageLayout
    from lcbench.methods.quantize.kivi import KiviLayer
    from lcbench.models.rule import AttentionRule

    lengths = [1, 127, 128, 300, 510, 1100, 2047]
    results = []
    for bits, d, g, dtype in (
        (2, 128, 4, torch.bfloat16), (2, 128, 1, torch.float16), (2, 64, 8, torch.bfloat16), (2, 128, 4, torch.float32),
        (4, 128, 4, torch.bfloat16), (4, 64, 3, torch.float16),
    ):  # fmt: skip
        kv = 2
        arena = PagedBatch(PageLayout(bits, 32, d), kv, len(lengths), 16, dtype=dtype, device=DEVICE)
        arena.launch = replace(arena.launch, **Kivi.launch)
        references = []
        for slot, n in enumerate(lengths):
            key, value = torch.randn(2, kv, n, d, device=DEVICE).to(dtype)
            key[:, :, 3] += 4
            arena.fill(slot, key, value)
            references.append(KiviLayer(key.float(), value.float(), bits=bits, group=32, residual=128))
        worst = 0.0
        for _ in range(6):
            query = torch.randn(len(lengths), kv * g, d, device=DEVICE).to(dtype)
            key, value = torch.randn(2, len(lengths), kv, d, device=DEVICE).to(dtype)
            out = arena.attend(tuple(range(len(lengths))), query, key, value, d**-0.5)
            expected = []
            for row, layer in enumerate(references):
                layer.append(key[row][:, None].float(), value[row][:, None].float())
                expected.append(layer.attend(query[row][:, None].float(), AttentionRule(d**-0.5))[:, 0])
            for mine, right in zip(out, expected, strict=True):
                worst = max(worst, relative_error(mine, right))
        same = all(
            torch.equal(a, b)
            for slot, layer in enumerate(references)
            for a, b in zip(
                (*arena.row(slot).keys.tensors(), *arena.row(slot).values.tensors()),
                (*layer.keys.tensors(), *layer.values.tensors()),
                strict=True,
            )
        )
        name = f"{bits} bits, d = {d}, {g} queries a KV head, {str(dtype).removeprefix('torch.')}"
        say(f"check {name}: relative error {worst:.1e}, stored bits {'equal' if same else 'DIFFER'}")
        results.append((name, worst if same else float("nan")))
    return results


def tune(rows: int, tokens: int, bits: int) -> dict[str, float]:
    """Milliseconds of one layer's step for several launches; leaves the fastest in `Kivi.launch`."""
    cache = Kivi(rows, tokens, bits, layers=1)
    cache.fill()
    arena = cache.arenas[0]
    query, key, value = inputs(rows)
    times: dict[str, float] = {}
    best = float("inf")
    for warps, stages, run, tail_warps, at_once in (
        (1, 3, 16, 1, 4), (1, 2, 16, 1, 4), (1, 4, 16, 1, 4), (2, 3, 16, 1, 4), (1, 3, 8, 1, 4), (1, 3, 32, 1, 4),
        (1, 3, 16, 2, 4), (1, 3, 16, 1, 2), (1, 3, 16, 1, 1), (1, 3, 16, 4, 4),
    ):  # fmt: skip
        launch = {"warps": warps, "stages": stages, "run": run, "tail_warps": tail_warps, "at_once": at_once}
        arena.launch = replace(arena.launch, **launch)
        arena.counts = [tokens] * rows
        arena.lengths.fill_(tokens)
        try:
            taken = milliseconds(lambda: arena.attend(cache.slots, query, key, value, SCALING), 10)
        except Exception as error:  # a launch that this device cannot do (registers, shared memory)
            say(f"{launch}: {type(error).__name__}")
            continue
        times[", ".join(f"{name} {number}" for name, number in launch.items())] = taken
        if taken < best:
            best, Kivi.launch = taken, launch
    limit = cache.step_bytes() / BANDWIDTH * 1e3
    for name, taken in times.items():
        say(f"{name}: {taken:.3f} ms a layer, {taken / limit:.2f} times the limit")
    arena.launch = replace(arena.launch, **Kivi.launch)
    say_kernels(lambda: arena.attend(cache.slots, query, key, value, SCALING))
    return times


def say_kernels(work: Callable[[], object]) -> None:
    """Print where the device's time goes."""
    from torch.profiler import ProfilerActivity, profile

    try:
        with profile(activities=[ProfilerActivity.CUDA]) as found:
            for _ in range(10):
                work()
            torch.cuda.synchronize()
    except RuntimeError as error:  # no access to the counters
        say(f"not profiled: {error}")
        return
    for event in sorted(found.key_averages(), key=lambda e: -e.self_device_time_total)[:6]:
        say(f"  {event.self_device_time_total / 10:8.1f} us a step  {event.key[:60]}")


def inputs(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random query ``[R, H, d]``, key and value ``[R, Hk, d]``."""
    return tuple(
        torch.randn(rows, heads, HEAD_DIM, dtype=torch.bfloat16, device=DEVICE) for heads in (HEADS, KV_HEADS, KV_HEADS)
    )  # type: ignore[return-value]


def choose_full(rows: int, tokens: int) -> dict[str, float]:
    """Milliseconds of one layer of each of PyTorch's kernels; leaves the fastest in `Full.how`."""
    cache = Full(rows, tokens, layers=1)
    cache.fill()
    query, key, value = inputs(rows)
    times = {}
    for way in Full.ways:
        Full.how = way
        try:
            times[way] = milliseconds(lambda: cache.attend(0, query, key, value), 10)
        except RuntimeError as error:
            say(f"{way}: not available ({str(error).splitlines()[0][:80]})")
    Full.how = min(times, key=times.__getitem__)
    limit = cache.step_bytes() / BANDWIDTH * 1e3
    for way, taken in times.items():
        say(f"full cache, {way}: {taken:.3f} ms a layer, {taken / limit:.2f} times the limit")
    return times


@dataclass
class Measured:
    """What one cache did at one batch size."""

    rows: int
    peak: int = 0
    cache: int = 0
    step_ms: float = 0.0
    attention_ms: float = 0.0
    limit_ms: float = 0.0
    steps: list[float] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        return self.rows / (self.step_ms / 1e3)


def measure(model: Llama, make: Callable[[int], Full | Kivi], rows: int, steps: int) -> Measured:
    """Fill a cache, decode, time; the peak is the allocator's, weights included."""
    free()
    before = torch.cuda.memory_allocated()
    cache = make(rows)
    result = Measured(cache.rows, cache=torch.cuda.memory_allocated() - before)
    cache.fill()
    tokens = torch.randint(VOCAB, (cache.rows,), device=DEVICE)
    events = []
    for _ in range(steps):
        start = torch.cuda.Event(enable_timing=True)
        start.record()
        tokens = model.step(tokens, cache.tokens, cache.attend)
        cache.advance()
        events.append(start)
    stop = torch.cuda.Event(enable_timing=True)
    stop.record()
    stop.synchronize()
    result.peak = torch.cuda.max_memory_allocated()
    ends = [*events[1:], stop]
    result.steps = [a.elapsed_time(b) for a, b in zip(events, ends, strict=True)]
    result.step_ms = statistics.mean(result.steps[3:])  # the mean: one step in 128 quantizes keys
    if steps == STEPS:
        result.attention_ms, result.limit_ms = attention_time(cache)
    return result


def attention_time(cache: Full | Kivi) -> tuple[float, float]:
    """Milliseconds of the attention of all layers, and its limit, a few tokens before the last length."""
    query, key, value = inputs(cache.rows)
    cache.tokens -= 8  # room for the steps below
    if isinstance(cache, Kivi):
        for arena in cache.arenas:
            arena.counts = [cache.tokens] * cache.rows
            arena.lengths.fill_(cache.tokens)

    def work() -> None:
        for layer in range(LAYERS):
            cache.attend(layer, query, key, value)

    return milliseconds(work, 5, warm=2), cache.step_bytes() / BANDWIDTH * 1e3


def largest(model: Llama, make: Callable[[int], Full | Kivi], rows: int, steps: int) -> Measured:
    """Measure at the largest batch that runs, from an estimate downwards."""
    while True:
        try:
            return measure(model, make, rows, steps)
        except torch.cuda.OutOfMemoryError:
            say(f"{rows} rows do not fit")
            rows -= max(1, rows // 50)
        free()


# --- the page -------------------------------------------------------------------------------------------------------


def page(arguments: argparse.Namespace, lines: Iterator[str]) -> None:
    import triton

    card = f"{torch.cuda.get_device_name()} ({torch.cuda.get_device_properties(0).total_memory / 2**30:.1f} GiB)"
    versions = f"torch {torch.__version__}, triton {triton.__version__}, Python {platform.python_version()}"
    text = [
        "# KIVI on a GPU",
        "",
        f"Measured by `make bench-gpu` on one {card}, {versions}.",
        "A decoder of Llama-3-8B's shapes with random bf16 weights",
        f"decodes {STEPS} tokens a row after prompts of {arguments.tokens} tokens of random keys and values;",
        f"`kivi@bits={arguments.bits}`, group 32, residual 128. Every ratio is from this one run. Not measured here:",
        "prefill, and quality (random weights).",
        "",
        *lines,
    ]
    PAGE.write_text("\n".join(text) + "\n", encoding="utf-8")
    say(f"written: {PAGE}")


def table(full: Measured, same: Measured, kivi: Measured) -> Iterator[str]:
    ratios = {
        "memory": full.peak / same.peak,
        "batch": kivi.rows / full.rows,
        "throughput": kivi.tokens_per_second / full.tokens_per_second,
        "attention": kivi.attention_ms / kivi.limit_ms,
    }
    meets = {name: (r <= GOALS[name] if name == "attention" else r >= GOALS[name]) for name, r in ratios.items()}
    said = {
        "memory": f"peak memory at {full.rows} rows, full over KIVI",
        "batch": "largest batch, KIVI over full",
        "throughput": "tokens per second at each one's largest batch, KIVI over full",
        "attention": "KIVI's decode attention over the bandwidth limit",
    }
    yield "| ratio | measured | goal | met |"
    yield "| --- | ---: | ---: | --- |"
    for name, ratio in ratios.items():
        sign = "at most" if name == "attention" else "at least"
        yield f"| {said[name]} | {ratio:.2f} | {sign} {GOALS[name]} | {'yes' if meets[name] else 'no'} |"
    yield ""
    yield "| cache | rows | peak GiB | cache GiB | step ms | tokens/s | attention ms | its limit ms |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for name, m in (("full", full), ("KIVI, same batch", same), ("KIVI, largest batch", kivi)):
        timed = m.attention_ms > 0
        cells = [f"{m.step_ms:.1f}", f"{m.tokens_per_second:.0f}", f"{m.attention_ms:.1f}", f"{m.limit_ms:.1f}"]
        shown = " | ".join(cells if timed else [cells[0], cells[1], "", ""])
        yield f"| {name} | {m.rows} | {m.peak / 2**30:.1f} | {m.cache / 2**30:.1f} | {shown} |"


def report(
    errors: list[tuple[str, float]], full: Measured, same: Measured, kivi: Measured, ways: dict[str, float],
    launches: dict[str, float],
) -> Iterator[str]:  # fmt: skip
    yield from table(full, same, kivi)
    yield ""
    yield "The limit is the bytes of keys and values that a step must read over the bandwidth of a large copy on the"
    yield f"same card, {BANDWIDTH / 1e12:.2f} TB/s, read plus written. Attention is that of all {LAYERS} layers with"
    yield "everything that a step does to the cache. Step times are means; memory is the allocator's peak, weights"
    yield "included. One layer:"
    yield ""
    yield "| one layer | ms |"
    yield "| --- | ---: |"
    for way, ms in ways.items():
        yield f"| full, {TUNE_ROWS['full']} rows, {way}{' (used)' if way == Full.how else ''} | {ms:.3f} |"
    for way, ms in launches.items():
        used = all(f"{name} {value}" in way.split(", ") for name, value in Kivi.launch.items())
        yield f"| KIVI, {TUNE_ROWS['kivi']} rows, {way}{' (used)' if used else ''} | {ms:.3f} |"
    yield ""
    yield "Kernels against the reference in fp32 over the same quantized numbers, ragged rows, six steps over a flush:"
    yield ""
    yield "| setting | relative error |"
    yield "| --- | ---: |"
    for name, error in errors:
        yield f"| {name} | {error:.1e} |"


def main() -> int:
    parser = argparse.ArgumentParser(description="KIVI on a GPU against the full cache.")
    parser.add_argument("--tokens", type=int, default=8064, help="tokens of a prompt, a multiple of 128")
    parser.add_argument("--bits", type=int, default=2, choices=(2, 4))
    parser.add_argument("--check", action="store_true", help="only the kernels against the reference")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("No GPU here: the kernels' figures are not measured. On a machine with one, run `make bench-gpu` again.")
        return 0
    try:
        import triton  # noqa: F401
    except ImportError:
        print("Triton is not installed, so there are no kernels to measure; install it with `pip install triton`.")
        return 0
    with torch.inference_mode():
        return run(arguments)


def run(arguments: argparse.Namespace) -> int:
    global BANDWIDTH
    torch.manual_seed(0)
    say(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    errors = check_kernels()
    bad = [name for name, error in errors if not error < 1e-2]
    if bad:
        print(f"The kernels are wrong here: {', '.join(bad)}. Nothing was timed.")
        return 1
    if arguments.check:
        return 0
    BANDWIDTH = copy_bandwidth()
    free()
    say(f"copy bandwidth {BANDWIDTH / 1e12:.2f} TB/s")
    launches = tune(TUNE_ROWS["kivi"], arguments.tokens, arguments.bits)
    free()
    ways = choose_full(TUNE_ROWS["full"], arguments.tokens)
    free()
    model = Llama()
    say(f"weights: {torch.cuda.memory_allocated() / 2**30:.1f} GiB")
    room = torch.cuda.mem_get_info()[0] - MARGIN
    rows = int(room // Full.row_bytes(arguments.tokens))
    full = largest(model, lambda r: Full(r, arguments.tokens), rows, STEPS)
    say(f"full: {full.rows} rows, {full.step_ms:.1f} ms a step, {full.tokens_per_second:.0f} tokens/s")
    same = largest(model, lambda r: Kivi(r, arguments.tokens, arguments.bits), full.rows, 16)
    say(f"kivi at the same batch: peak {same.peak / 2**30:.1f} against {full.peak / 2**30:.1f} GiB")
    free()
    rows = int((torch.cuda.mem_get_info()[0] - MARGIN) // Kivi.row_bytes(arguments.tokens, arguments.bits))
    kivi = largest(model, lambda r: Kivi(r, arguments.tokens, arguments.bits), rows, STEPS)
    say(f"kivi: {kivi.rows} rows, {kivi.step_ms:.1f} ms a step, {kivi.tokens_per_second:.0f} tokens/s")
    lines = list(report(errors, full, same, kivi, ways, launches))
    print("\n" + "\n".join(lines) + "\n")
    page(arguments, iter(lines))
    return 0


START = time.perf_counter()
BANDWIDTH = float("nan")

if __name__ == "__main__":
    sys.exit(main())
