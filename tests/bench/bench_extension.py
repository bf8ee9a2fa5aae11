"""Passkeys beyond the demo model's trained window, method by method, into docs/benchmarks/extension.md.

    python tests/bench/bench_extension.py --device cuda:0 --write    # a minute or two a method and length
    python tests/bench/bench_extension.py --lengths 5500 --depths 0.95 --methods lm-infinite   # a prompt, on a CPU

One `lcbench run` a length with all methods, longest first. With ``--minutes`` it is stopped after that time, and what
was answered by then is counted (each cell says of how many); what was not run is a dash. The page's table is written
after each length. The text is the language reference of the Python that runs this.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import platform
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcbench.methods.registry import resolve

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks" / "extension.md"
BEGIN, END = "<!-- table: made by tests/bench/bench_extension.py -->", "<!-- end of the table -->"
PLAIN = "pi@factor=1,reach=32768"
METHODS = {
    "full": "the model, with its window",
    PLAIN: "the model as it is, made to read on",
    "yarn@factor=2": "slow frequencies divided",
    "selfextend@group=4,neighbours=1024": "far keys share positions",
    "lm-infinite": "the first 10 and the newest 8,192 tokens",
    "em-llm": "a window of 4,096, events looked up",
    "infllm": "a window of 4,096, blocks looked up",
    "longcache": "a window of 4,096, spans looked up",
    "dynamic-ntk": "a rotary base by the length of the text",
    "ntk@factor=2": "a larger rotary base",
    "lift@epochs=1": "learns the text, reads it cut to the window",
    "rope-theta": "32 times the rotary base",
    "dprope@factor=2": "frequencies divided by their angles",
    "pi@factor=2": "all frequencies divided, not fine-tuned for it",
}
SHOWN = 40  # characters of an answer


@dataclass(frozen=True)
class Outcome:
    """What a method made of the prompts of one length: rows, keys found, refused; most tokens; an answer."""

    rows: int
    found: int
    refused: int
    tokens: int
    answer: str
    key: str


def main() -> None:
    options = _options()
    methods = options.methods or list(METHODS)
    lengths = [int(length) for length in options.lengths.split(",")]
    started, outcomes = time.monotonic(), dict[tuple[str, int], Outcome]()
    ends = None if options.minutes is None else started + 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        for length in sorted(lengths, reverse=True):
            if ends is None or time.monotonic() < ends:
                _ask(methods, length, options, Path(folder, str(length)), ends)
            for method, outcome in _outcomes(Path(folder, str(length))).items():
                outcomes[method, length] = outcome
            print(f"{length} words done after {time.monotonic() - started:.0f} s", flush=True)
            if options.write:
                _write(page(outcomes, methods, lengths, options))
    print(page(outcomes, methods, lengths, options))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--lengths", default="5500,7500", help="words of background, e.g. 5500,7500")
    parser.add_argument("--depths", default="5", help="as of the passkey task: a number of depths, or 0.3/0.95")
    parser.add_argument("--repeats", type=int, default=1, help="keys a depth")
    parser.add_argument("--methods", nargs="+", help="specs, apart; default: all of the table")
    parser.add_argument("--minutes", type=float, help="stop after so many")
    parser.add_argument("--write", action="store_true", help="put the table into the page")
    return parser.parse_args()


def _ask(methods: list[str], length: int, options: argparse.Namespace, out: Path, ends: float | None) -> None:
    """A run of all methods on the prompts of one length; stopped when the time is over."""
    task = f"passkey@lengths={length},depths={options.depths},repeats={options.repeats},max_new_tokens=12"
    where = ["--model", options.model, "--device", options.device, "--dtype", options.dtype]
    what = ["--task", task, "--method", ",".join(methods), "--out", str(out)]
    process = subprocess.Popen([sys.executable, "-m", "lcbench", "run", *where, *what], stdout=sys.stderr)
    try:
        process.wait(None if ends is None else max(1.0, ends - time.monotonic()))
    except subprocess.TimeoutExpired:
        print("The time is over.", flush=True)
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def _outcomes(out: Path) -> dict[str, Outcome]:
    """By method, what stands in a run directory."""
    found = {}
    for path in out.glob("predictions/*/*.jsonl"):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if rows:
            found[path.parent.name] = _outcome(rows)
    return found


def _outcome(rows: list[dict[str, Any]]) -> Outcome:
    answered = [row for row in rows if row["status"] == "ok"]
    right = [row for row in answered if row["answers"][0] in row["pred"]]
    shown = (right or answered or rows)[0]
    return Outcome(
        len(rows),
        len(right),
        len(rows) - len(answered),
        max(row["truncated_from"] or row["prompt_tokens"] for row in rows),
        " ".join(str(shown["pred"]).split())[:SHOWN] if answered else "",
        shown["answers"][0],
    )


def _cell(outcome: Outcome | None) -> str:
    if outcome is None:
        return "–"
    if outcome.refused == outcome.rows:
        return "refused"
    return f"{outcome.found} of {outcome.rows}"


def page(
    outcomes: dict[tuple[str, int], Outcome], methods: list[str], lengths: list[int], options: argparse.Namespace
) -> str:
    """The table and what it was measured on, as Markdown."""
    tokens = {n: max((o.tokens for (_, m), o in outcomes.items() if m == n), default=0) for n in lengths}
    longest = max(lengths)
    heads = ["method", "what it is", *(f"{n:,} words ({tokens[n]:,} tokens)" for n in lengths)]
    heads.append(f"an answer at {longest:,} words, a right one where there is one")
    lines = ["| " + " | ".join(heads) + " |", "|---|---|" + "---:|" * len(lengths) + "---|"]
    for method in methods:
        name = resolve(method).id
        last = outcomes.get((name, longest))
        answer = f"`{last.answer.replace('`', '')}` (key {last.key})".replace("|", "/") if last and last.answer else "–"
        cells = [f"`{method}`", METHODS.get(method, ""), *(_cell(outcomes.get((name, n))) for n in lengths), answer]
        lines.append("| " + " | ".join(cells) + " |")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers"))
    said = (
        f"Keys found; depths {options.depths}, keys a depth {options.repeats}, model `{options.model}`, "
        f"{_device(options.device)}, {options.dtype}, {versions}, the language reference of Python "
        f"{platform.python_version()} as text, {datetime.date.today()}."
    )
    return "\n".join([said, "", *lines])


def _device(name: str) -> str:
    import torch

    if name == "cpu" or not torch.cuda.is_available():
        return "CPU"
    return str(torch.cuda.get_device_name(torch.device("cuda:0" if name == "auto" else name)))


def _write(text: str) -> None:
    whole = PAGE.read_text(encoding="utf-8")
    before, rest = whole.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
