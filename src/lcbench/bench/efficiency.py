"""One cell of the efficiency bench: a method, a prompt length and a batch size, measured alone.

Scores come from runs that share prefills; speed never does. A cell reads every prompt of its batch anew, one after
another as the engine does, makes the method's cache of it, and decodes all of them together, one forward pass a step.
The first pass warms up and is thrown away; each later one is timed with the device synchronized around every part.
Prompts are random token ids: speed does not depend on their meaning, and no end token stops a sequence.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lcbench.bench.experts import watching
from lcbench.engine.generate import read_alone
from lcbench.engine.stacked import Rules, decode_rows
from lcbench.errors import ModelError
from lcbench.kv.cache import KVCache, storage_nbytes
from lcbench.measure.allocator import AllocatorPeak
from lcbench.measure.clock import Stopwatch
from lcbench.measure.device import kind_of
from lcbench.measure.memory import PeakMemory
from lcbench.methods.base import Method, require
from lcbench.models.info import LoadedModel, ModelInfo


@dataclass(frozen=True)
class Workload:
    """What a method is given to do.

    Attributes:
        prompt_tokens: length L of every prompt. batch: R, sequences decoded together. new_tokens: of each sequence.
        repeats: timed passes after the one that warms up.
        prefill_chunk: tokens a forward pass while a prompt is read; None reads it at once.
    """

    prompt_tokens: int
    batch: int = 1
    new_tokens: int = 32
    repeats: int = 3
    prefill_chunk: int | None = None
    seed: int = 42

    def prompts(self, vocab: int) -> list[list[int]]:
        """R prompts of random token ids."""
        generator = torch.Generator().manual_seed(self.seed)
        ids: list[list[int]] = torch.randint(0, vocab, (self.batch, self.prompt_tokens), generator=generator).tolist()
        return ids


@dataclass(frozen=True)
class Phase:
    """The most memory that one part of the work took.

    Attributes:
        growth: bytes of tensors alive at once, beyond the weights. kv: bytes of caches among them at the part's end.
    """

    growth: int
    kv: int

    @property
    def activations(self) -> int:
        """Everything that is neither weights nor cache: hidden states, logits, observations, scratch memory."""
        return max(0, self.growth - self.kv)


@dataclass(frozen=True)
class Pass:
    """One pass over a workload.

    Attributes:
        first: seconds from a prompt's ids to its first new token, for each of the R prompts.
        prefill: seconds until all R have their first token. decode: seconds for the other new tokens of all R.
        kv_bytes: memory behind the R caches right after compression. kv_read: bytes of it that the first step reads.
        phases: by name "read" (the last prompt's forward pass), "compress" (its cache being made), "decode"; empty
            in passes whose memory was not measured.
        unread: bytes of experts that a decoding step left alone (`experts`); 0 in passes that did not look.
    """

    first: tuple[float, ...]
    prefill: float
    decode: float
    kv_bytes: int
    kv_read: int
    phases: dict[str, Phase] = field(default_factory=dict)
    unread: int = 0


@dataclass(frozen=True)
class Cell:
    """All passes of a cell and what they come to.

    Attributes:
        passes: the timed ones, in order. phases: memory by part (see `Pass`); from a pass of its own on a CPU, where
            counting memory takes time.
        weight_bytes: of the model. read_bytes: weights that one decoding step must read; of a mixture of experts those
            that the steps of the first pass chose, mean.
        kv_bytes_full: of R uncompressed caches of the prompts.
        resident_bytes: highest resident set of the process, 0 on a GPU.
    """

    work: Workload
    passes: tuple[Pass, ...]
    phases: dict[str, Phase]
    weight_bytes: int
    read_bytes: int
    kv_bytes_full: int
    resident_bytes: int = 0

    @property
    def time_to_first_token(self) -> float:
        """Seconds from a prompt's ids to its first new token, median over prompts and passes."""
        return statistics.median(seconds for one in self.passes for seconds in one.first)

    @property
    def decode_tokens_per_second(self) -> float:
        """New tokens of all R sequences a second, the first of each and the prefill not included; median."""
        return self.work.batch * (self.work.new_tokens - 1) / statistics.median(p.decode for p in self.passes)

    @property
    def samples_per_second(self) -> float:
        """Whole samples (prompt read, answer decoded) a second; median."""
        return self.work.batch / statistics.median(p.prefill + p.decode for p in self.passes)

    @property
    def kv_bytes(self) -> int:
        """Memory behind the R caches right after compression."""
        return self.passes[-1].kv_bytes

    @property
    def kv_end_bytes(self) -> int:
        """Memory behind the R caches when decoding ends, with the room they reserved to grow."""
        return self.phases["decode"].kv

    @property
    def peak(self) -> Phase:
        """The part of the work that took the most memory."""
        return max(self.phases.values(), key=lambda phase: phase.growth)

    @property
    def peak_bytes(self) -> int:
        """Weights, caches and activations at the moment when they were most."""
        return self.weight_bytes + self.peak.growth

    @property
    def step_bytes(self) -> int:
        """Bytes a decoding step must move at least: the weights and what it reads of the R caches, halfway through.

        Reserved room is not moved: a cache grows by no more than its new tokens uncompressed.
        """
        new = self.kv_bytes_full * (self.work.new_tokens - 1) // self.work.prompt_tokens
        grown = max(0, min(self.kv_end_bytes - self.kv_bytes, new))
        return self.read_bytes + self.passes[-1].kv_read + grown // 2


def measure(loaded: LoadedModel, method: Method, work: Workload) -> Cell:
    """Measure one cell; see the module docstring for how.

    Raises:
        ModelError: the method does not serve the model, or needs the prompt's text. torch.OutOfMemoryError: as it says.
    """
    check(loaded.info, method)
    device, cpu = loaded.info.device, kind_of(loaded.info.device) != "cuda"
    passes, phases, unread = [], {}, 0
    release(device)
    with PeakMemory(device) as resident, method.transform_model(loaded.model, work.prompt_tokens + work.new_tokens):
        for attempt in range(work.repeats + 1):
            # On a GPU counting costs nothing, and a first pass takes memory (workspaces) that later ones do not.
            metered = attempt == (0 if cpu else 1)
            done = run_pass(loaded, method, work, metered=metered, watched=not attempt)
            phases.update(done.phases)
            if attempt:
                passes.append(done)
            else:
                unread = done.unread
    return Cell(
        work=work,
        passes=tuple(passes),
        phases=phases,
        weight_bytes=loaded.info.weight_bytes,
        read_bytes=weights_read(loaded.model) - unread,
        kv_bytes_full=work.batch * loaded.shape().full_bytes(work.prompt_tokens),
        resident_bytes=resident.bytes if cpu else 0,
    )


def check(info: ModelInfo, method: Method) -> None:
    """Refuse what cannot be measured here, before anything is loaded. Raises ModelError."""
    require(method, info.shape(), info.name)
    method.check(info.shape())
    if method.learns:
        raise ModelError(
            f"{method.id} learns from each prompt before it reads it, which the bench does not do.",
            "Leave it out; a run's timings have its seconds (adapt), and its decoding is that of `full`.",
        )
    if method.rewriter is not None:
        raise ModelError(
            f"{method.id} rewrites the text of a prompt, and the bench feeds random token ids.",
            "Leave it out; its speed is that of `full` at the length it shortens prompts to.",
        )


def release(device: object) -> None:
    """Give back what earlier work left behind, so that a cell begins with the weights alone."""
    gc.collect()
    if kind_of(device) == "cuda":
        torch.cuda.empty_cache()


def weights_read(model: object) -> int:
    """Bytes of the weights that a decoding step reads: all but an embedding table used for look-ups alone."""
    total = sum(p.numel() * p.element_size() for p in model.parameters())  # type: ignore[attr-defined]
    table = model.get_input_embeddings().weight  # type: ignore[attr-defined]
    head = model.get_output_embeddings()  # type: ignore[attr-defined]
    if head is not None and head.weight.data_ptr() == table.data_ptr():
        return int(total)
    return int(total - table.numel() * table.element_size())


def run_pass(
    loaded: LoadedModel,
    method: Method,
    work: Workload,
    *,
    metered: bool = False,
    watched: bool = False,
    held: Sequence[KVCache] = (),
) -> Pass:
    """Read R prompts, compress, decode together.

    Args:
        metered: also measure memory by part, for the last prompt (when the other R - 1 caches are held) and decoding.
        watched: also look which experts decoding reads, which takes time.
        held: further caches that decode along, as if their prompts had been read before (see `capacity`).
    """
    device, weights = loaded.info.device, loaded.info.weight_bytes
    torch.manual_seed(work.seed)
    if metered:
        gc.collect()  # what an earlier pass left must not be freed, and counted, in this one
    caches, logits, firsts, kv = list(held), [], [], {}
    prompts = work.prompts(loaded.info.vocab)
    with ExitStack() as stack:
        meter = stack.enter_context(AllocatorPeak(device, held=weights)) if metered else None
        with Stopwatch(device) as reading:
            for number, ids in enumerate(prompts):
                last = number == len(prompts) - 1
                with Stopwatch(device) as one:
                    cache, row, sizes = _read(loaded, method, ids, work, meter if last else None, caches)
                    int(torch.argmax(row))
                caches.append(cache)
                logits.append(row)
                firsts.append(one.seconds)
                kv.update(sizes)
                del cache, row
        kv_bytes, kv_read = storage_nbytes(caches), sum(cache.resident_nbytes for cache in caches)
        rules = Rules(work.new_tokens, min_new_tokens=work.new_tokens)
        rows = [logits[0]] * len(held) + logits
        logits.clear()
        seeing = stack.enter_context(watching(loaded.model)) if watched else None
        with _part(meter, "decode"), Stopwatch(device) as decoding:
            decode_rows(loaded, caches, torch.stack(rows), rules)
    phases = {}
    if meter is not None:
        # Rows that decoded together share tensors. Asking each for its own would take them apart, in new memory.
        kv["decode"] = meter.left["decode"] - meter.start - sum(row.untyped_storage().nbytes() for row in rows)
        phases = {name: Phase(most - weights, kv[name]) for name, most in meter.parts.items()}
    for cache in caches[len(held) :]:
        cache.let_go()
    unread = 0 if seeing is None else seeing.unread
    return Pass(tuple(firsts), reading.seconds, decoding.seconds, kv_bytes, kv_read, phases, unread)


def _part(meter: AllocatorPeak | None, name: str) -> AbstractContextManager[None]:
    return nullcontext() if meter is None else meter.part(name)


def _read(
    loaded: LoadedModel,
    method: Method,
    ids: Sequence[int],
    work: Workload,
    meter: AllocatorPeak | None,
    caches: Sequence[KVCache],
) -> tuple[KVCache, Tensor, dict[str, int]]:
    """One prompt to its compressed cache, the logits ``[vocab]`` at its last token, and bytes of caches by part."""
    with _part(meter, "read"):
        record = read_alone(loaded, method, ids, chunk=work.prefill_chunk)
    with _part(meter, "compress"):
        cache = method.compress(record)
    if meter is None:
        return cache, record.logits, {}
    sizes = {
        "read": storage_nbytes([*caches, record.cache]),
        "compress": storage_nbytes([*caches, record.cache, cache]),
    }
    return cache, record.logits, sizes
