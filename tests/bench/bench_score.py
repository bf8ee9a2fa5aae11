"""Scoring speed: a full LongBench (4,750 rows), lcbench against the algorithm of the official `eval.py`.

    python tests/bench/bench_score.py            (make bench-score)

Both score the same files: the rows (answers, labels, lengths) are real ones, the predictions are made of them with a
fixed seed, as long as answers of the tasks are. The other side is the official per-row algorithm written out plainly
with the packages it uses: `rouge` 1.0.1 (recursive, all three of its metrics), `fuzzywuzzy` without python-Levenshtein
and `jieba`. Whole commands are timed, from the start of Python to the result, with the dictionary caches of both sides
warm. Every single row must have the same score on both sides. The result goes to docs/benchmarks/scoring.md.
"""

from __future__ import annotations

import gzip
import json
import os
import platform
import random
import re
import statistics
import string
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from lcbench.scoring.parallel import cores
from lcbench.scoring.rows import score_row, task_facts

ROOT = Path(__file__).resolve().parents[2]
ROWS = ROOT.parent / "shared" / "data" / "predictions" / "longbench-forks" / "llama3-8b-instruct"
REPORT = ROOT / "docs" / "benchmarks" / "scoring.md"
SEED = 20240703
REPEATS = 3
WORDS = {"gov_report": (150, 400), "multi_news": (120, 300), "qmsum": (40, 120), "samsum": (8, 30)}
CHARACTERS = {"vcsum": (150, 500), "dureader": (50, 250)}

Row = dict[str, Any]


# -- the synthetic set -------------------------------------------------------------------------------------------------


def real_rows() -> dict[str, list[Row]]:
    """Dataset to its rows, predictions included; only what stands beside the predictions is used."""
    found = {}
    for path in sorted(ROWS.glob("*.jsonl*")):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        found[path.name.partition(".")[0]] = [json.loads(line) for line in data.decode().splitlines()]
    return found


def synthetic(rows: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """The same rows with made-up predictions."""
    rng = random.Random(SEED)
    result = {}
    for task, ours in rows.items():
        make = _MAKERS[task_facts(task).metric]
        result[task] = [
            {**row, "pred": make(rng, task, row["answers"], rng.choice(ours)["answers"], row["all_classes"])}
            for row in ours
        ]
    return result


def _summary(rng: random.Random, task: str, own: list[str], other: list[str], labels: Any) -> str:
    wanted = rng.randint(*WORDS[task])
    pool = [" ".join(own).split(), " ".join(other).split()]
    words: list[str] = []
    while len(words) < wanted:
        source = rng.choices(pool, (2, 1))[0]
        start = rng.randrange(len(source))
        words += source[start : start + rng.randint(3, 25)]
        if rng.random() < 0.7:
            words[-1] = words[-1].rstrip(".") + "."
    return " ".join(words[:wanted])


def _chinese_summary(rng: random.Random, task: str, own: list[str], other: list[str], labels: Any) -> str:
    wanted, pool, text = rng.randint(*CHARACTERS[task]), ["".join(own), "".join(other)], ""
    while len(text) < wanted:
        source = rng.choices(pool, (2, 1))[0]
        start = rng.randrange(len(source))
        text += source[start : start + rng.randint(4, 40)] + rng.choice("，。")
    return text[:wanted]


def _answer(rng: random.Random, task: str, own: list[str], other: list[str], labels: Any) -> str:
    words = rng.choice(own + other).split() + rng.choice(other).split()
    kept = [word for word in words if rng.random() < 0.8][:40]
    return " ".join(kept) + ("\nQuestion: and then?" if rng.random() < 0.3 else "")


def _chinese_answer(rng: random.Random, task: str, own: list[str], other: list[str], labels: Any) -> str:
    text = rng.choice(own + other) + rng.choice(other)
    start = rng.randrange(len(text))
    return text[start:] + text[: rng.randint(0, start)]


def _label(rng: random.Random, task: str, own: list[str], other: list[str], labels: Any) -> str:
    named = [rng.choice([*own, rng.choice(labels)]) for _ in range(rng.randint(1, 2))]
    return "\n" * rng.randint(0, 1) + " ".join(named) + "\nQuestion: next\nType: " + rng.choice(labels)


def _number(rng: random.Random, task: str, own: list[str], other: list[str], labels: Any) -> str:
    numbers = [re.findall(r"\d+", rng.choice(own + other))[0] for _ in range(rng.randint(1, 3))]
    return "Paragraph " + " or ".join(numbers)


def _code(rng: random.Random, task: str, own: list[str], other: list[str], labels: Any) -> str:
    line = list(rng.choice([own[0], own[0], other[0]]))
    for _ in range(rng.randint(0, 12)):
        if line:
            line[rng.randrange(len(line))] = rng.choice(string.ascii_lowercase + " ().")
    before = "# a comment\n" if rng.random() < 0.2 else "\n" * rng.randint(0, 1)
    return before + "".join(line) + "\n" + other[0]


_MAKERS: dict[str, Callable[..., str]] = {
    "rouge": _summary, "rouge_zh": _chinese_summary, "qa_f1": _answer, "qa_f1_zh": _chinese_answer,
    "classification": _label, "count": _number, "retrieval": _number, "retrieval_zh": _number, "code_sim": _code,
}  # fmt: skip


# -- the official algorithm, plainly -----------------------------------------------------------------------------------


class Official:
    """Row scores with the packages of the official requirements, one answer after the other."""

    def __init__(self) -> None:
        # The official requirements do not install it, and fuzzywuzzy would take it.
        sys.modules["Levenshtein"] = None  # type: ignore[assignment]
        import warnings

        warnings.simplefilter("ignore")
        import jieba
        from fuzzywuzzy import fuzz
        from rouge import Rouge

        jieba.setLogLevel(60)
        # Deep walks are wanted here as scores: both sides count rows the official limit would make 0.
        sys.setrecursionlimit(100_000)
        self._cut, self._ratio, self._rouge = jieba.cut, fuzz.ratio, Rouge
        self._rules: dict[str, Callable[[str, str, Any], float]] = {
            "qa_f1": lambda p, a, _: self._f1(self._english(p), self._english(a)),
            "qa_f1_zh": lambda p, a, _: self._f1(self._chinese(p), self._chinese(a)),
            "rouge": lambda p, a, _: self._rouge_l(p, a),
            "rouge_zh": lambda p, a, _: self._rouge_l(" ".join(self._cut(p)), " ".join(self._cut(a))),
            "classification": self._classification,
            "count": lambda p, a, _: self._share(p, a),
            "retrieval": lambda p, a, _: self._share(p, re.findall(r"Paragraph (\d+)", a)[0]),
            "retrieval_zh": lambda p, a, _: self._share(p, re.findall(r"段落(\d+)", a)[0]),
            "code_sim": lambda p, a, _: self._code(p, a),
        }

    def row(self, task: str, prediction: str, answers: list[str], labels: Any) -> float:
        facts = task_facts(task)
        if facts.cut_first_line:
            prediction = prediction.lstrip("\n").split("\n")[0]
        return max([0.0] + [self._rules[facts.metric](prediction, answer, labels) for answer in answers])

    def _rouge_l(self, prediction: str, answer: str) -> float:
        try:
            found = self._rouge().get_scores([prediction], [answer], avg=True)
        except ValueError:
            return 0.0
        return float(found["rouge-l"]["f"])

    def _english(self, text: str) -> list[str]:
        kept = "".join(c for c in text.lower() if c not in set(string.punctuation))
        return re.sub(r"\b(a|an|the)\b", " ", kept).split()

    def _chinese(self, text: str) -> list[str]:
        from lcbench.scoring.metrics.qa_f1_zh import CHINESE_PUNCTUATION

        marks = set(string.punctuation + CHINESE_PUNCTUATION)
        words = ("".join("".join(c for c in w.lower() if c not in marks).split()) for w in self._cut(text))
        return [word for word in words if word]

    def _f1(self, prediction: list[str], answer: list[str]) -> float:
        same = sum((Counter(prediction) & Counter(answer)).values())
        if same == 0:
            return 0.0
        precision, recall = same / len(prediction), same / len(answer)
        return (2 * precision * recall) / (precision + recall)

    def _classification(self, prediction: str, answer: str, labels: list[str]) -> float:
        found = [label for label in labels if label in prediction]
        for label in found:
            if label in answer and label != answer:
                found.remove(label)
        return 1.0 / len(found) if answer in found else 0.0

    def _share(self, prediction: str, right: str) -> float:
        numbers = re.findall(r"\d+", prediction)
        return sum(number == right for number in numbers) / len(numbers) if numbers else 0.0

    def _code(self, prediction: str, answer: str) -> float:
        lines = [n for n in prediction.lstrip("\n").split("\n") if "`" not in n and "#" not in n and "//" not in n]
        return float(self._ratio(lines[0] if lines else "", answer) / 100)


def run_official(folder: Path) -> None:
    """Score every file of ``folder``; row scores and seconds by task as JSON on stdout."""
    official = Official()
    scores, seconds = {}, {}
    for path in sorted(folder.glob("*.jsonl")):
        start = time.perf_counter()
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        task = path.name.partition(".")[0]
        scores[task] = [official.row(task, r["pred"], r["answers"], rows[-1]["all_classes"]) for r in rows]
        seconds[task] = time.perf_counter() - start
    print(json.dumps({"scores": scores, "seconds": seconds}))


# -- measuring ---------------------------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """One command: seconds of wall time and of all cores (its own processes), and what it printed."""

    wall: float
    cpu: float
    printed: str


def timed(command: list[str], environment: dict[str, str]) -> Measured:
    """Run a command and measure it from start to end."""
    start, before = time.perf_counter(), os.times()
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    wall, after = time.perf_counter() - start, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return Measured(wall, used, done.stdout)


def ours_by_task(rows: dict[str, list[Row]]) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Row scores and seconds by task, in this one process."""
    from lcbench.scoring.metrics import dictionary

    dictionary.load()
    scores, seconds = {}, {}
    for task, ours in rows.items():
        start = time.perf_counter()
        labels = ours[-1]["all_classes"]
        scores[task] = [score_row(task, r["pred"], r["answers"], labels) for r in ours]
        seconds[task] = time.perf_counter() - start
    return scores, seconds


def main() -> None:
    if not ROWS.is_dir():
        sys.exit("The published predictions, from which the rows are taken, are not here: nothing measured.")
    rows = synthetic(real_rows())
    count = sum(map(len, rows.values()))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "synthetic"
        folder.mkdir()
        for task, ours in rows.items():
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ours)
            (folder / f"{task}.jsonl").write_text(lines, encoding="utf-8")
        environment = {**os.environ, "LCBENCH_HOME": str(Path(name) / "home"), "PYTHONPATH": str(ROOT / "src")}
        os.environ["LCBENCH_HOME"] = environment["LCBENCH_HOME"]
        command = [sys.executable, "-c", "from lcbench.cli import main; main()", "score", str(folder), "--json"]
        timed(command, environment)  # warms our dictionary cache
        timed([sys.executable, "-c", "import jieba; jieba.setLogLevel(60); jieba.initialize()"], environment)
        runs = [timed(command, environment) for _ in range(REPEATS)]
        one = [timed([*command, "--jobs", "1"], environment) for _ in range(REPEATS)]
        theirs = timed([sys.executable, __file__, "official", str(folder)], environment)
        scores, seconds = ours_by_task(rows)
    official = json.loads(theirs.printed)
    compare(official["scores"], scores, json.loads(runs[0].printed))
    text = report(count, theirs, runs, one, official["seconds"], seconds)
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(text, encoding="utf-8")
    print(text)


def compare(official: dict[str, list[float]], ours: dict[str, list[float]], printed: dict[str, Any]) -> None:
    """Every row equal, and the command's numbers those of the rows. Stops the bench otherwise."""
    for task, theirs in official.items():
        different = [i for i, (a, b) in enumerate(zip(theirs, ours[task], strict=True)) if a != b]
        if different:
            sys.exit(f"{task}: {len(different)} rows differ, the first is row {different[0] + 1}")
        if printed[task] != round(100 * sum(theirs) / len(theirs), 2):
            sys.exit(f"{task}: the command printed {printed[task]}")


def report(
    count: int,
    theirs: Measured,
    all_cores: list[Measured],
    one_core: list[Measured],
    official: dict[str, float],
    ours: dict[str, float],
) -> str:
    """The page for docs/benchmarks."""
    rows = []
    for name, runs in (("`lcbench score --jobs 1`", one_core), (f"`lcbench score` ({cores()} cores)", all_cores)):
        wall, used = statistics.median(r.wall for r in runs), statistics.median(r.cpu for r in runs)
        rows.append(f"| {name} | {wall:.2f} | {theirs.wall / wall:.1f} | {used:.2f} | {theirs.cpu / used:.1f} |")
    lines = [
        "# Scoring speed",
        "",
        "Made by `make bench-score`; do not edit.",
        "",
        f"{count:,} rows: all 21 tasks of LongBench, real answers and labels, predictions made of them with a fixed",
        "seed. Whole commands, from the start of Python to the printed result: reading the files, loading jieba's",
        f"dictionary and the bootstrap intervals are in. lcbench: median of {REPEATS}. The official algorithm, written",
        "out with `rouge` 1.0.1, `fuzzywuzzy` without python-Levenshtein and `jieba`: once, without intervals. The",
        "scores of all rows are equal.",
        "",
        f"* Date: {date.today().isoformat()}",
        f"* Machine: {cpu()}, {cores()} cores, Python {platform.python_version()}",
        f"* Other work on it: load {os.getloadavg()[1]:.1f} over five minutes (processor time hardly depends on it)",
        "",
        "| | seconds | times faster | seconds of processor time | times less |",
        "|---|---:|---:|---:|---:|",
        f"| official algorithm | {theirs.wall:.2f} | 1 | {theirs.cpu:.2f} | 1 |",
        *rows,
        "",
        "By task, one process, the dictionary loaded:",
        "",
        "| task | metric | official s | lcbench s | times faster |",
        "|---|---|---:|---:|---:|",
    ]
    for task in sorted(official, key=official.__getitem__, reverse=True):
        faster = official[task] / ours[task]
        metric = task_facts(task).metric
        lines.append(f"| {task} | {metric} | {official[task]:.3f} | {ours[task]:.3f} | {faster:.1f} |")
    return "\n".join(lines) + "\n"


def cpu() -> str:
    """Model name of the processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    if sys.argv[1:2] == ["official"]:
        run_official(Path(sys.argv[2]))
    else:
        main()
