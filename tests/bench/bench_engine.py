"""What sharing a prompt saves: the engine's figures on the demo model, each a ratio of two times of this very run.

    make bench                                  # all figures: about half an hour on two quiet cores
    python tests/bench/bench_engine.py --quick  # two rows, small grids: a few minutes
    python tests/bench/bench_engine.py --only sweep,generate

Needs the demo model and rows of qasper (`lcbench download longbench`). ``--write`` puts the tables into
docs/benchmarks/engine.md and the plots beside it; without it nothing is written.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from lcbench.config.home import home
from lcbench.config.spec import ModelSpec, RunSpec
from lcbench.engine.answer import Answerer, Result
from lcbench.engine.generate import prefill
from lcbench.engine.groups import make_groups
from lcbench.engine.memory import Limits, measure_limits
from lcbench.engine.options import Options
from lcbench.engine.plan import PromptSet
from lcbench.engine.prepare import prepare
from lcbench.engine.stacked import Rules, decode_rows
from lcbench.errors import LcbenchError
from lcbench.kv.observe import ColumnSums, LastQueries
from lcbench.measure.memory import PeakMemory
from lcbench.methods.registry import resolve
from lcbench.models import adapter
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
TOKENS = 2000


@dataclass(frozen=True)
class Size:
    """How much is measured: rows of qasper, repeats of a time, points of the two scaling plots."""

    rows: int
    repeats: int
    methods: tuple[int, ...]
    lengths: tuple[int, ...]


FULL_SIZE = Size(rows=8, repeats=3, methods=(1, 4, 12, 24), lengths=(1000, 2000, 4000, 8000))
QUICK = Size(rows=2, repeats=1, methods=(1, 4, 12), lengths=(500, 1000, 2000))


@dataclass(frozen=True)
class Bench:
    """A loaded model and the rows that everything is measured on."""

    loaded: LoadedModel
    limits: Limits
    size: Size

    def prompts(self, methods: Sequence[str], *, rows: int = 0, tokens: int = TOKENS) -> list[PromptSet]:
        """Prompts of qasper cut to ``tokens``."""
        (task,) = resolve_tasks("qasper")
        spec = RunSpec(max_input_tokens=tokens)
        loaded_rows = task.load(home(), rows or self.size.rows)
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

    def seconds(self, work: Callable[[], Any], repeats: int = 0) -> float:
        """Median wall time of some calls."""
        times = []
        for _ in range(repeats or self.size.repeats):
            gc.collect()
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return statistics.median(times)


def sweep(bench: Bench) -> list[str]:
    """Figure 1: twelve methods in one run, against `full` alone and against twelve runs."""
    together = bench.prompts(TWELVE)
    alone = {name: bench.prompts([name]) for name in TWELVE}
    bench.answers(bench.prompts(["full"], rows=1))
    full = bench.seconds(lambda: bench.answers(alone["full"]))
    every = bench.seconds(lambda: bench.answers(together))
    exact = bench.seconds(lambda: bench.answers(together, exact=True), 1)
    single = sum(bench.seconds(lambda name=name: bench.answers(alone[name], exact=True), 1) for name in TWELVE)
    tokens = sum(result.record.new_tokens for result in bench.answers(together))
    rows = len(together[0].prompts)
    return [
        "## One run of twelve methods\n",
        f"{rows} rows of qasper at {TOKENS:,} tokens, {tokens} answer tokens in all: {', '.join(TWELVE)}.\n",
        "| | seconds | over the sweep |",
        "|---|---|---|",
        f"| the sweep: twelve methods together | {every:.1f} | 1 |",
        f"| `full` alone | {full:.1f} | the sweep is {every / full:.2f} times this |",
        f"| the twelve in twelve runs, each answer alone | {single:.1f} | {single / every:.1f} |",
        f"| together, but each answer decoded alone (`--exact`) | {exact:.1f} | {exact / every:.1f} |\n",
    ]


def generate(bench: Bench) -> list[str]:
    """Figure 2: `full` alone against transformers' own generate, prompt by prompt."""
    sets = bench.prompts(["full"])
    (prompts,) = sets
    model, eos = bench.loaded.model, list(bench.loaded.info.eos_ids)

    def theirs() -> list[list[int]]:
        found = []
        for prompt in prompts.prompts:
            ids = torch.tensor([list(prompt.ids)])
            with torch.inference_mode():
                made = model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=prompts.max_new_tokens, do_sample=False,
                    eos_token_id=eos, pad_token_id=eos[0],
                )  # fmt: skip
            found.append(made[0, ids.shape[1] :].tolist())
        return found

    def ours(exact: bool) -> list[Result]:
        return bench.answers(sets, exact=exact)

    model.set_attn_implementation("sdpa")
    try:
        reference = theirs()
        library = bench.seconds(theirs)
    finally:
        model.set_attn_implementation("lcb_attention")
    stacked, alone = bench.seconds(lambda: ours(False)), bench.seconds(lambda: ours(True))
    texts = {
        prompt.row.id: bench.loaded.tokenizer.decode(ids, skip_special_tokens=True)
        for prompt, ids in zip(prompts.prompts, reference, strict=True)
    }
    same = sum(result.record.pred == texts[result.record.id] for result in ours(False))
    return [
        "## The full cache against `generate` of transformers\n",
        f"The same {len(reference)} prompts; {same} of {len(reference)} answers are the same text.\n",
        "| | seconds | over generate |",
        "|---|---|---|",
        f"| `generate`, prompt by prompt | {library:.1f} | 1 |",
        f"| `full`, answers decoded together | {stacked:.1f} | {stacked / library:.2f} |",
        f"| `full --exact`, prompt by prompt | {alone:.1f} | {alone / library:.2f} |\n",
    ]


def scaling(bench: Bench, plots: Path | None) -> list[str]:
    """Figure 3: time against the number of methods and against the prompt's length."""
    names = [*TWELVE, *MORE]
    rows = max(1, bench.size.rows // 4)
    by_methods = []
    for count in bench.size.methods:
        sets = bench.prompts(names[:count], rows=rows)
        by_methods.append((count, bench.seconds(lambda sets=sets: bench.answers(sets), 1)))
    by_length = []
    for tokens in bench.size.lengths:
        many = bench.prompts(TWELVE, rows=1, tokens=tokens)
        one = bench.prompts(["full"], rows=1, tokens=tokens)
        real = many[0].prompts[0].tokens
        full = bench.seconds(lambda one=one: bench.answers(one), 1)
        by_length.append((real, full, bench.seconds(lambda many=many: bench.answers(many), 1)))
    first = by_methods[0][1]
    lines = ["## Scaling\n", "| methods | seconds | over the first |", "|---|---|---|"]
    lines += [f"| {count} | {seconds:.1f} | {seconds / first:.2f} |" for count, seconds in by_methods]
    lines += ["", "| prompt tokens | `full` (s) | twelve methods (s) | twelve over one |", "|---|---|---|---|"]
    lines += [f"| {n:,} | {full:.1f} | {twelve:.1f} | {twelve / full:.2f} |" for n, full, twelve in by_length]
    if plots is not None:
        _plot(plots / "engine-scaling.svg", by_methods, by_length)
        lines += ["", "![time against methods and against prompt length](engine-scaling.svg)"]
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
    }
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(max(2, bench.size.repeats)):  # in turn, so that a busy moment hits all alike
        for name, wishes in kinds.items():
            times[name].append(bench.seconds(lambda wishes=wishes: prefill(bench.loaded, ids, observe=wishes), 1))
    least = {name: min(found) for name, found in times.items()}
    plain = least["nothing"]
    lines = ["## Observers\n", f"One prompt of {len(ids):,} tokens, least of {len(times['nothing'])} times.\n"]
    lines += ["| recorded during the prefill | seconds | over plain |", "|---|---|---|"]
    return [*lines, *(f"| {name} | {s:.2f} | {s / plain:.2f} |" for name, s in least.items()), ""]


def memory(bench: Bench) -> list[str]:
    """Figure 5: the sweep's peak against what the byte model had predicted for its largest group."""
    sets = bench.prompts(TWELVE)
    groups = make_groups(sets, bench.loaded.shape(), bench.limits)
    gc.collect()
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
    loaded = load(ModelSpec(name="demo", dtype="bfloat16"), home(), print)
    methods = [resolve(name) for name in ("full", "snapkv@budget=0.5", "knorm@budget=0.5", "kivi@bits=4")]
    wishes = [wish for method in methods for wish in method.observes()]
    (prompts,) = bench.prompts(["full"], rows=4 * bench.size.rows, tokens=400)
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
                position = torch.tensor([[cache.seen]])
                scores = adapter.forward(loaded.model, torch.tensor([[token]]), position, [cache])[0, -1]
        near += row.near_ties
    return [
        "## bfloat16\n",
        f"{len(made)} answers of at most 32 tokens, decoded together and alone: {agreed} of {total} tokens agree "
        f"({100 * agreed / total:.2f} %); {near} tokens were near ties.\n",
    ]


FIGURES = {
    "agreement": agreement,
    "sweep": sweep,
    "generate": generate,
    "scaling": scaling,
    "observers": observers,
    "memory": memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rows, small grids")
    parser.add_argument("--only", default=",".join(FIGURES), help="of " + ", ".join(FIGURES))
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks/engine.md")
    options = parser.parse_args()
    page = Path(__file__).parents[2] / "docs" / "benchmarks" / "engine.md"
    try:
        loaded = load(ModelSpec(name="demo"), home(), print)
        limits = replace(measure_limits(loaded.info), nbytes=2**33)
        bench = Bench(loaded, limits, QUICK if options.quick else FULL_SIZE)
        bench.prompts(["full"], rows=1)
    except LcbenchError as error:
        sys.exit(f"{error.message} {error.next_step}")
    lines = [
        "# Pay for the prompt once\n",
        f"`tests/bench/bench_engine.py{' --quick' if options.quick else ''}` on {date.today()}: {os.cpu_count()} cores "
        f"({platform.machine()}), {torch.get_num_threads()} threads, {loaded.info.device}, torch {torch.__version__}, "
        f"the demo model in {loaded.info.dtype}; load average {os.getloadavg()[0]:.1f} at the start. Every ratio is of "
        "two times measured in this run.\n",
    ]
    for name in options.only.split(","):
        figure = FIGURES[name]
        found = figure(bench, page.parent if options.write else None) if figure is scaling else figure(bench)
        print("\n".join(found), flush=True)
        lines += found
    if options.write:
        page.write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
