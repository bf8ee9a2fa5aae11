"""What sharing a prefill saves, and what our loop costs against transformers' own generate; ratios of one run.

    python tests/bench/bench_engine.py [--write]      # needs the demo model; about two minutes on two cores

``--write`` puts the table into docs/benchmarks/engine.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch

from lcbench.config.home import home
from lcbench.config.spec import ModelSpec
from lcbench.engine.generate import decode, prefill
from lcbench.methods.registry import resolve
from lcbench.models.load import load

METHODS = ("full", "kivi@bits=2", "kivi@bits=4", "streamingllm")
LENGTHS, NEW, REPEATS = (512, 2048), 16, 3


def timed(work: Callable[[], object]) -> float:
    """Median seconds of ``REPEATS`` calls after one warm-up."""
    work()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    loaded = load(ModelSpec(name="demo"), home(), print)
    methods = [resolve(name) for name in METHODS]
    rows = []
    for length in LENGTHS:
        generator = torch.Generator().manual_seed(length)
        ids = torch.randint(0, loaded.info.vocab, (length,), generator=generator).tolist()

        def answers(chosen: list[str], ids: list[int] = ids) -> None:
            record = prefill(loaded, ids)
            for method in (m for m in methods if m.id in chosen):
                decode(loaded, method.compress(record), record.logits, max_new_tokens=NEW, min_new_tokens=NEW)

        every = [m.id for m in methods]
        alone = {name: timed(lambda name=name: answers([name])) for name in every}
        shared = timed(lambda every=every: answers(every))
        loaded.model.set_attn_implementation("sdpa")
        try:
            tokens = torch.tensor([ids])
            theirs = timed(
                lambda tokens=tokens: loaded.model.generate(
                    tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=NEW, min_new_tokens=NEW,
                    do_sample=False, pad_token_id=0,
                )
            )  # fmt: skip
        finally:
            loaded.model.set_attn_implementation("lcb_attention")
        rows.append((length, shared, sum(alone.values()), alone["full"], theirs))
    lines = [
        "| prompt tokens | four methods, one prefill (s) | the four one by one (s) | saved | full over generate |",
        "|---|---|---|---|---|",
    ]
    for length, shared, separate, full, theirs in rows:
        lines.append(f"| {length:,} | {shared:.2f} | {separate:.2f} | {separate / shared:.2f}x | {full / theirs:.2f} |")
    print("\n".join(lines))
    if write:
        page = Path(__file__).parents[2] / "docs" / "benchmarks" / "engine.md"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(
            "# One prefill for many methods\n\n"
            f"`make bench` on {date.today()}: {os.cpu_count()} cores ({platform.machine()}), no GPU, torch "
            f"{torch.__version__}, demo model in float32, {NEW} new tokens, methods {', '.join(METHODS)}; medians of "
            f"{REPEATS} after a warm-up. The last column is the time of `full` in lcbench over `model.generate` of "
            "transformers on the same prompt: below 1 is faster.\n\n" + "\n".join(lines) + "\n"
        )


if __name__ == "__main__":
    main()
