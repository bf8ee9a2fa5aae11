"""Two worker processes on a CPU against one, on a task with many short prompts.

    python tests/bench/bench_workers.py [--write | --quick]     # needs the demo model; about five minutes on two cores

Each is the whole command `lcbench run`, from start to end. One process computes with a thread a core, two with half as
many each. Starting Python and loading the model happen once a process, and two processes do so on the same cores; so
each is run with few prompts and with many, and what the further prompts take is told apart from what the start takes.
Work is handed out group by group (`engine.groups`): few short prompts are one group, and a second worker has nothing
to do while the first computes with half the threads.
Predictions are compared byte for byte.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sweeps import arguments, page, table

METHODS = "full,kivi@bits=2,streamingllm"


def run(out: Path, task: str, workers: int, model: str) -> float:
    """Seconds of the command."""
    words = ["run", "--model", model, "--method", METHODS, "--task", task, "--out", str(out), "--quiet"]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "lcbench", *words, "--workers", str(workers)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return time.perf_counter() - start


def predictions(run: Path) -> dict[str, bytes]:
    return {str(f.relative_to(run)): f.read_bytes() for f in sorted((run / "predictions").rglob("*.jsonl"))}


def main() -> None:
    options = arguments(__doc__)
    few, many, each = (1, 2, 4) if options.quick else (1, 6, 16)
    seconds: dict[tuple[int, int], float] = {}
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        for repeats in (few, many):
            for workers in (1, 2):
                out = Path(folder) / f"{workers}-{repeats}"
                seconds[workers, repeats] = run(out, task_of(repeats, each), workers, "demo")
                print(f"{workers} workers, {10 * repeats} prompts: {seconds[workers, repeats]:.1f} s", flush=True)
        same = predictions(Path(folder) / f"1-{many}") == predictions(Path(folder) / f"2-{many}")
    rows = [["workers", f"{10 * few} prompts (s)", f"{10 * many} prompts (s)", "samples a second once running"]]
    rates = {}
    for workers in (1, 2):
        first, second = seconds[workers, few], seconds[workers, many]
        rates[workers] = 3 * 10 * (many - few) / (second - first)
        rows.append([str(workers), f"{first:.1f}", f"{second:.1f}", f"{rates[workers]:.2f}"])
    words = (
        f"{seconds[1, many] / seconds[2, many]:.2f} times as fast over the whole command with {10 * many} prompts, "
        f"{rates[2] / rates[1]:.2f} times once running; predictions {'equal byte for byte' if same else 'DIFFER'}"
    )
    print(table(rows), f"Two workers: {words}.", sep="\n\n")
    if options.write:
        page(
            "workers",
            "Two worker processes against one",
            "python tests/bench/bench_workers.py --write",
            f"`lcbench run --method {METHODS} --task {task_of(many, each)}`, three samples a prompt; the whole "
            f"command, loading included, {os.cpu_count()} cores; load average {before:.1f} at the start, "
            f"{os.getloadavg()[0]:.1f} at the end.\n\n{table(rows)}\n\nTwo workers: {words}.",
        )


def task_of(repeats: int, new_tokens: int) -> str:
    """Ten prompts a repeat."""
    return f"passkey@lengths=256/384,depths=5,repeats={repeats},max_new_tokens={new_tokens}"


if __name__ == "__main__":
    main()
