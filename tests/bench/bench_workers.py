"""Two worker processes on a CPU against one, on a task with many short prompts.

    python tests/bench/bench_workers.py [--write | --quick]     # needs the demo model; about five minutes on two cores

Each is the whole command `lcbench run`, from start to end: starting Python and loading the model, once a process, are
in the time. One process computes with a thread a core, two with half as many each. Their predictions are compared byte
for byte.
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
    repeats, each = (2, 4) if options.quick else (24, 16)
    task = f"passkey@lengths=256/384,depths=5,repeats={repeats},max_new_tokens={each}"
    prompts = 2 * 5 * repeats
    model = "demo"
    with tempfile.TemporaryDirectory() as folder:
        one, two = Path(folder) / "one", Path(folder) / "two"
        first, second = run(one, task, 1, model), run(two, task, 2, model)
        same = predictions(one) == predictions(two)
    rows = [["workers", "seconds", "samples a second"]]
    rows += [[n, f"{s:.1f}", f"{3 * prompts / s:.2f}"] for n, s in ((1, first), (2, second))]
    words = f"{first / second:.2f} times as fast; predictions {'equal byte for byte' if same else 'DIFFER'}"
    print(table(rows), f"Two workers: {words}.", sep="\n\n")
    if options.write:
        page(
            "workers",
            "Two worker processes against one",
            "python tests/bench/bench_workers.py --write",
            f"`lcbench run --method {METHODS} --task {task}`: {prompts} prompts, {3 * prompts} samples; the whole "
            f"command, loading included, {os.cpu_count()} cores.\n\n{table(rows)}\n\nTwo workers: {words}.",
        )


if __name__ == "__main__":
    main()
