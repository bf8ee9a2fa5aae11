"""What sharing a prompt saves: the engine's figures on the demo model, each a ratio of two times of this very run.

    make bench                                  # all figures: about half an hour on two quiet cores
    python tests/bench/bench_engine.py --quick  # one row, small grids: a few minutes
    python tests/bench/bench_engine.py --part sweep,generate

Needs the demo model and rows of qasper (`lcbench download longbench`). Beside the seconds on the clock stand the
processor's, of all threads: on a machine that others use the first grow, and the second say what the work takes. What
a ratio compares is measured in turn, so that a busy moment hits all alike, and the least of the repeats counts.
``--write`` puts the tables into docs/benchmarks/engine.md and the plot beside it, part by part: the tables of parts
that were not run stay as they were.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from sweeps import DOCS, endless

from lcbench.config.home import home
from lcbench.config.spec import ModelSpec, RunSpec
from lcbench.engine.answer import Answerer
from lcbench.engine.answer_text import text_of
from lcbench.engine.generate import prefill
from lcbench.engine.groups import make_groups
from lcbench.engine.memory import Limits, measure_limits, release
from lcbench.engine.options import Options
from lcbench.engine.outcome import Result
from lcbench.engine.plan import PromptSet
from lcbench.engine.prepare import prepare
from lcbench.engine.stacked import Rules, decode_rows
from lcbench.errors import LcbenchError
from lcbench.kv.observe import ColumnSums, LastQueries
from lcbench.measure.device import synchronize
from lcbench.measure.machine import machine
from lcbench.measure.memory import PeakMemory
from lcbench.methods.registry import resolve
from lcbench.models import adapter, linear
from lcbench.models.info import LoadedModel
from lcbench.models.load import load
from lcbench.tasks.registry import resolve as resolve_tasks

TWELVE = (
    "full",
    "snapkv@budget=0.25",
    "pyramidkv@budget=0.25",
    "tova@budget=0.25",
    "h2o@budget=0.25",
    "streamingllm@budget=0.25",
    "knorm@budget=0.25",
    "keydiff@budget=0.25",
    "expected-attention@budget=0.25",
    "chunkkv@budget=0.25",
    "adakv@budget=0.25",
    "kivi@bits=2",
)
# Twelve more for the scaling plot: other budgets and widths of the same methods.
MORE = (
    *(
        f"{name}@budget=0.5"
        for name in ("snapkv", "pyramidkv", "tova", "h2o", "streamingllm", "knorm", "keydiff", "expected-attention")
    ),
    "chunkkv@budget=0.5",
    "adakv@budget=0.5",
    "kivi@bits=4",
    "random@budget=0.25",
)
TOKENS, ANSWER = 2000, 64


@dataclass(frozen=True)
class Size:
    """How much is measured: rows of qasper, repeats of a time, points of the two scaling plots."""

    rows: int
    repeats: int
    methods: tuple[int, ...]
    lengths: tuple[int, ...]


FULL_SIZE = Size(rows=2, repeats=2, methods=(1, 4, 12, 24), lengths=(1000, 2000, 4000, 8000))
QUICK = Size(rows=1, repeats=1, methods=(1, 4, 12), lengths=(500, 1000, 2000))


@dataclass(frozen=True)
class Time:
    """Seconds of one piece of work: on the clock, and of the processor in all threads."""

    wall: float
    cpu: float

    def over(self, other: Time) -> str:
        """Two ratios, for two cells of a table."""
        return f"{self.wall / other.wall:.2f} | {self.cpu / other.cpu:.2f}"

    def __str__(self) -> str:
        return f"{self.wall:.1f} | {self.cpu:.1f}"

    def __add__(self, other: Time) -> Time:
        return Time(self.wall + other.wall, self.cpu + other.cpu)


@dataclass(frozen=True)
class Bench:
    """A loaded model and the rows that everything is measured on."""

    loaded: LoadedModel
    limits: Limits
    size: Size

    def prompts(
        self, methods: Sequence[str], *, rows: int = 0, tokens: int = TOKENS, longest: bool = False
    ) -> list[PromptSet]:
        """Prompts of qasper cut to ``tokens``; the first rows, or the longest of those at hand."""
        (task,) = resolve_tasks("qasper")
        spec = RunSpec(max_input_tokens=tokens)
        loaded_rows = task.load(home(), None if longest else rows or self.size.rows)
        if longest:
            best = sorted(loaded_rows.rows, key=lambda row: -(row.length or 0))[: rows or self.size.rows]
            loaded_rows = replace(loaded_rows, rows=tuple(best))
        chosen = [resolve(name) for name in methods]
        return prepare(spec, self.loaded.info, self.loaded.tokenizer, chosen, [(task, loaded_rows)], home())

    def answers(self, sets: Sequence[PromptSet], *, exact: bool = False) -> list[Result]:
        """All answers, in the engine's own way and without a run directory."""
        groups = make_groups(sets, self.loaded.shape(), self.limits)
        answerer = Answerer(self.loaded, sets, Options(exact=exact))
        found = [result for group in groups for result in answerer.run(group)]
        failed = [result.record.error for result in found if not result.record.ok]
        assert not failed, failed
        return found

    def times(self, work: Mapping[str, Callable[[], Any]], repeats: int = 0) -> dict[str, Time]:
        """The least times of some pieces of work, done in turn; progress goes to stderr."""
        found: dict[str, Time] = {}
        for _ in range(repeats or self.size.repeats):
            for name, piece in work.items():
                gc.collect()
                wall, cpu = time.perf_counter(), time.process_time()
                piece()
                synchronize(self.loaded.info.device)
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                print(f"  {name}: {wall:.1f} s ({cpu:.1f} s of processor)", file=sys.stderr, flush=True)
                before = found.get(name, Time(wall, cpu))
                found[name] = Time(min(wall, before.wall), min(cpu, before.cpu))
        return found


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def sweep(bench: Bench) -> list[str]:
    """Figure 1: twelve methods in one run, against `full` alone and against twelve runs; with so many rows, and with
    twice as many."""
    bench.answers(bench.prompts(["full"], rows=1, tokens=300))
    lines = ["## One run of twelve methods\n", f"{', '.join(TWELVE)}; rows of qasper at {TOKENS:,} tokens.\n"]
    for rows in (bench.size.rows, 2 * bench.size.rows):
        lines += _sweep(bench, rows)
    return lines


def _sweep(bench: Bench, rows: int) -> list[str]:
    together = bench.prompts(TWELVE, rows=rows)
    alone = {name: bench.prompts([name], rows=rows) for name in TWELVE}
    made: list[Result] = []
    pair: dict[str, Callable[[], Any]] = {
        "full": lambda: bench.answers(alone["full"]),
        "sweep": lambda: made.extend(bench.answers(together)),
    }
    others = {name: lambda name=name: bench.answers(alone[name]) for name in TWELVE if name != "full"}
    times = bench.times(pair | others)
    full, every = times["full"], times["sweep"]
    single = sum((times[name] for name in others), full)
    several = "the twelve one after another, each in a run of its own"
    tokens = sum(result.record.new_tokens for result in made) // bench.size.repeats
    return [
        f"{counted(len(together[0].prompts), 'row')}, {tokens} answer tokens in all:\n",
        "| | seconds | processor | ratio of seconds | of processor |",
        "|---|---:|---:|---:|---:|",
        f"| the sweep: twelve methods together | {every} | | |",
        f"| `full` alone; the sweep over it | {full} | {every.over(full)} |",
        f"| {several}; over the sweep | {single} | {single.over(every)} |\n",
    ]


def generate(bench: Bench) -> list[str]:
    """Figure 2: `full` alone against transformers' own generate, prompt by prompt, equally many tokens an answer."""
    (task,) = resolve_tasks("qasper")
    (prompts,) = bench.prompts(["full"])
    prompts = replace(prompts, task=endless(task, ANSWER), max_new_tokens=ANSWER)
    model = bench.loaded.model

    def theirs() -> list[list[int]]:
        model.set_attn_implementation("sdpa")
        linear.by_torch(model)
        try:
            found = []
            for prompt in prompts.prompts:
                ids = torch.tensor([list(prompt.ids)], device=model.device)
                with torch.inference_mode():
                    made = model.generate(
                        ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0,
                        max_new_tokens=ANSWER, min_new_tokens=ANSWER,
                    )  # fmt: skip
                found.append(made[0, ids.shape[1] :].tolist())
            return found
        finally:
            model.set_attn_implementation("lcb_attention")
            linear.by_onednn(model)

    reference: list[list[int]] = []
    ours: list[Result] = []
    times = bench.times(
        {
            "generate": lambda: reference.__setitem__(slice(None), theirs()),
            "exact": lambda: bench.answers([prompts], exact=True),
            "stacked": lambda: ours.__setitem__(slice(None), bench.answers([prompts])),
        }
    )
    texts = [text_of(bench.loaded, ids) for ids in reference]
    same = sum(text == result.record.pred for text, result in zip(texts, ours, strict=True))
    library = times["generate"]
    return [
        "## The full cache against `generate` of transformers\n",
        f"The same {counted(len(reference), 'prompt')} of {TOKENS:,} tokens, {ANSWER} new tokens each; {same} of "
        f"{len(reference)} answers are the same text.\n",
        "| | seconds | processor | ratio of seconds | of processor |",
        "|---|---:|---:|---:|---:|",
        f"| `generate`, prompt by prompt | {library} | 1 | 1 |",
        f"| `full --exact`, prompt by prompt | {times['exact']} | {times['exact'].over(library)} |",
        f"| `full`, answers decoded together | {times['stacked']} | {times['stacked'].over(library)} |\n",
    ]


def scaling(bench: Bench, plot: Path | None) -> list[str]:
    """Figure 3: time against the number of methods and against the prompt's length."""
    names = [*TWELVE, *MORE]
    by_methods, new = [], {}

    def answers(name: str, sets: Sequence[PromptSet]) -> None:
        new[name] = sum(result.record.new_tokens for result in bench.answers(sets))

    for count in bench.size.methods:
        sets = bench.prompts(names[:count], rows=1)
        found = bench.times({f"{count} methods": lambda sets=sets, count=count: answers(str(count), sets)}, 1)
        by_methods += [(count, time) for time in found.values()]
    by_length = []
    for tokens in bench.size.lengths:
        work = {}
        for kind, chosen in (("full", ["full"]), ("twelve", TWELVE)):
            sets = bench.prompts(chosen, rows=1, tokens=tokens, longest=True)
            work[f"{kind} at {tokens:,}"] = lambda sets=sets, kind=kind, tokens=tokens: answers(
                f"{kind} {tokens}", sets
            )
        full, twelve = bench.times(work, 1).values()
        by_length.append((sets[0].prompts[0].tokens, full, twelve, new[f"full {tokens}"], new[f"twelve {tokens}"]))
    first = by_methods[0][1]
    lines = [
        "## Scaling\n",
        f"The first row of qasper at {TOKENS:,} tokens. Answers end where the model ends them, each method's "
        "elsewhere, and a batch is decoded until its last one has ended.\n",
    ]
    lines += ["| methods | answer tokens | seconds | processor | over one: seconds | processor |"]
    lines += ["|---:|---:|---:|---:|---:|---:|"]
    lines += [f"| {count} | {new[str(count)]} | {time} | {time.over(first)} |" for count, time in by_methods]
    lines += ["", "The longest row, cut to different lengths:\n"]
    lines += [
        "| tokens | `full`: answer tokens | seconds | processor | twelve: answer tokens | seconds | processor "
        "| twelve over one | processor |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [f"| {n:,} | {a} | {full} | {b} | {twelve} | {twelve.over(full)} |" for n, full, twelve, a, b in by_length]
    if plot is not None:
        plain = [(n, full.wall, twelve.wall) for n, full, twelve, _, _ in by_length]
        _plot(plot, [(count, time.wall) for count, time in by_methods], plain)
        lines += ["", f"![time against methods and against prompt length]({plot.name})"]
    return [*lines, ""]


def _plot(path: Path, by_methods: list[tuple[int, float]], by_length: list[tuple[int, float, float]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(*zip(*by_methods, strict=True), marker="o")
    first = by_methods[0][1]
    left.plot([m for m, _ in by_methods], [m * first for m, _ in by_methods], ":", color="grey", label="one run each")
    left.set(xlabel="methods in one run", ylabel="seconds", ylim=(0, 3 * max(s for _, s in by_methods)))
    left.legend()
    lengths = [n for n, _, _ in by_length]
    right.plot(lengths, [full for _, full, _ in by_length], marker="o", label="full alone")
    right.plot(lengths, [twelve for _, _, twelve in by_length], marker="o", label="twelve methods")
    right.set(xlabel="prompt tokens", ylabel="seconds", ylim=(0, None))
    right.legend()
    figure.savefig(path, metadata={"Date": None})


def observers(bench: Bench) -> list[str]:
    """Figure 4: what watching costs a prefill."""
    (prompts,) = bench.prompts(["full"], rows=1)
    ids = prompts.prompts[0].ids
    prefill(bench.loaded, ids)
    kinds = {
        "nothing": (),
        "queries of the last 64 tokens": (LastQueries(64),),
        "column sums": (ColumnSums(),),
        "both": (LastQueries(64), ColumnSums()),
        "all that the twelve methods look at": tuple(w for name in TWELVE for w in resolve(name).observes()),
    }
    times = bench.times(
        {name: lambda wishes=wishes: prefill(bench.loaded, ids, observe=wishes) for name, wishes in kinds.items()},
        max(3, bench.size.repeats),
    )
    plain = times["nothing"]
    lines = ["## Observers\n", f"The prefill of one prompt of {len(ids):,} tokens.\n"]
    lines += ["| recorded meanwhile | seconds | processor | over plain: seconds | processor |"]
    lines += ["|---|---:|---:|---:|---:|"]
    return [*lines, *(f"| {name} | {time} | {time.over(plain)} |" for name, time in times.items()), ""]


def memory(bench: Bench) -> list[str]:
    """Figure 5: the sweep's peak against what the byte model had predicted for its largest group."""
    sets = bench.prompts(TWELVE)
    groups = make_groups(sets, bench.loaded.shape(), bench.limits)
    bench.answers(bench.prompts(["full"], rows=1, tokens=300))  # weights are in memory once they were read
    release(bench.loaded.shape().device)  # else what earlier parts have taken and freed would be taken again unseen
    with PeakMemory(bench.loaded.info.device) as peak:
        bench.answers(sets)
    taken, predicted = peak.bytes - peak.start_bytes, groups[0].nbytes
    exact = "" if peak.exact else " (this system cannot reset the peak: it is that of the whole process)"
    return [
        "## Memory\n",
        f"Above weights and process, the sweep took {taken / 2**20:,.0f} MiB at its fullest{exact}; the byte model "
        f"allowed {predicted / 2**20:,.0f} MiB for its largest group of {len(groups[0].prompts)} prompts and "
        f"{len(TWELVE)} methods: {taken / predicted:.2f} of the prediction. The model counts a method whose size the "
        "data decide as a full cache, and a budget twice.\n",
    ]


def agreement(bench: Bench) -> list[str]:
    """Tokens on which answers decoded together and alone agree, in bfloat16: after each beginning of the answers that
    were decoded together, what decoding alone chooses next."""
    loaded = bench.loaded
    if loaded.info.dtype != "bfloat16":
        loaded = load(ModelSpec(name="demo", dtype="bfloat16"), home(), print)
    methods = [resolve(name) for name in ("full", "snapkv@budget=0.5", "knorm@budget=0.5", "kivi@bits=4")]
    wishes = [wish for method in methods for wish in method.observes()]
    (prompts,) = bench.prompts(["full"], rows=2 * bench.size.rows, tokens=400)
    together, alone, logits = [], [], []
    for prompt in prompts.prompts:
        record = prefill(loaded, prompt.ids, observe=wishes)
        for method in methods:
            together.append(method.compress(record))
            alone.append(method.compress(record))
            logits.append(record.logits)
    made = decode_rows(loaded, together, torch.stack(logits), Rules(32))
    total = agreed = near = 0
    for row, cache, first in zip(made, alone, logits, strict=True):
        scores = first
        for i, token in enumerate(row.ids):
            agreed += int(scores.argmax()) == token
            total += 1
            if i + 1 < len(row.ids):
                newest = torch.tensor([[token], [cache.seen]], device=scores.device)
                scores = adapter.forward(loaded.model, newest[:1], newest[1:], [cache])[0, -1]
        near += row.near_ties
    return [
        "## bfloat16\n",
        f"{len(made)} answers of at most 32 tokens, decoded together and alone: {agreed} of {total} tokens agree "
        f"({100 * agreed / total:.2f} %); {near} tokens were near ties.\n",
    ]


def demo(device: str) -> ModelSpec:
    return ModelSpec(name="demo", device=device, dtype="float32" if device == "cpu" else "bfloat16")


PARTS = {
    "sweep": sweep,
    "generate": generate,
    "scaling": scaling,
    "observers": observers,
    "memory": memory,
    "agreement": agreement,
}
_MARK = "<!-- part: {} -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one row, small grids: does the script work?")
    parser.add_argument("--part", default=",".join(PARTS), help="of " + ", ".join(PARTS))
    parser.add_argument("--rows", type=int, help="rows of qasper (2)")
    parser.add_argument("--device", default="cpu", help="cpu, in float32, or cuda:0, in bfloat16")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks/engine.md, or engine-gpu.md")
    options = parser.parse_args()
    parts = options.part.split(",")
    if unknown := [name for name in parts if name not in PARTS]:
        parser.error(f"there is no part {unknown[0]}; there are {', '.join(PARTS)}")
    if options.quick and options.write:
        parser.error("--quick figures are not for a page")
    try:
        loaded = load(demo(options.device), home(), print)
        limits = replace(measure_limits(loaded.info), nbytes=2**33)
        size = QUICK if options.quick else FULL_SIZE
        bench = Bench(loaded, limits, replace(size, rows=options.rows or size.rows))
        bench.prompts(["full"], rows=1)
    except LcbenchError as error:
        sys.exit(f"{error.message} {error.next_step}")
    page = DOCS / ("engine.md" if options.device == "cpu" else "engine-gpu.md")
    plot, words = page.with_name(f"{page.stem}-scaling.svg"), machine(loaded.info.device)["words"]
    for name in parts:
        before, start = os.getloadavg()[0], time.perf_counter()
        figure = PARTS[name]
        found = scaling(bench, plot if options.write else None) if figure is scaling else figure(bench)
        found += [
            f"*Measured on {date.today()} in {(time.perf_counter() - start) / 60:.1f} minutes; {words}; "
            f"torch {torch.__version__}; --rows {bench.size.rows}; load average {before:.1f} at the start, "
            f"{os.getloadavg()[0]:.1f} at the end.*\n"
        ]
        print("\n".join(found), flush=True)
        if options.write:
            write(page, name, found, loaded.info.dtype)


def write(page: Path, name: str, lines: Sequence[str], dtype: str) -> None:
    """Put one part into a page, where it was or in the order of `PARTS`."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    pieces = {part: text.partition(_MARK.format(part))[2].partition("<!-- part:")[0].strip() for part in PARTS}
    pieces[name] = "\n".join(lines).strip()
    head = (
        "# Pay for the prompt once\n\nWritten by `python tests/bench/bench_engine.py --write` (`--part` for some of "
        f"it), demo model in {dtype}. Every ratio is of two times measured in one run. Ratios of processor time "
        "hardly depend on what else the machine did; those of seconds do where the load average is above the number "
        "of cores.\n"
    )
    body = [f"{_MARK.format(part)}\n{piece}\n" for part, piece in pieces.items() if piece]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join([head, *body]), encoding="utf-8")


if __name__ == "__main__":
    main()
