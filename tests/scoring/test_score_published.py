"""Published prediction sets reproduced to the digit, under the definition of code_sim each of them was scored with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lcbench.scoring.files import read_file
from lcbench.scoring.rows import score_row
from lcbench.scoring.run import ScoreOptions, score_path

MISTRAL = "adakv/mistral-7B-instruct-v0.2"
SETS = {
    MISTRAL: "levenshtein",
    f"{MISTRAL}c256_w32_k7_maxpool_floorNone_adaptiveFalse": "levenshtein",
    f"{MISTRAL}c512_w32_k7_maxpool_floorNone_adaptiveFalse": "levenshtein",
    f"{MISTRAL}c1024_w32_k7_maxpool_floor0.5_adaptiveTrue_skip1": "levenshtein",
    "longbench-e/rwkv_5_7b_v2": "levenshtein",
    "longbench-forks/llama3-8b-instruct": "difflib",
    "longbench-forks/qwen3-8b_CXT3500": "difflib",
}
OTHER = {"levenshtein": "difflib", "difflib": "levenshtein"}


@pytest.mark.parametrize("name", SETS)
def test_result_json_is_reproduced(shared_data: Path, name: str) -> None:
    folder = shared_data / "predictions" / name
    published = json.loads((folder / "result.json").read_text())
    table = score_path(folder, ScoreOptions(code_sim=SETS[name], resamples=10))
    (method,) = table.methods.values()
    ours = {}
    for task in method.tasks.values():
        ours[task.task] = {k: b.score for k, b in task.by_length.items()} if task.by_length else task.score
    assert ours == published
    assert {t.n_error for t in method.tasks.values()} == {0}


def test_the_other_definition_gives_other_numbers_on_code_alone(shared_data: Path) -> None:
    folder = shared_data / "predictions" / MISTRAL
    found = {}
    for definition in OTHER:
        table = score_path(folder, ScoreOptions(code_sim=definition, resamples=10))
        found[definition] = {t.task: t.score for t in table.methods["mistral-7B-instruct-v0.2"].tasks.values()}
    assert (found["levenshtein"]["lcc"], found["difflib"]["lcc"]) == (55.33, 53.47)
    differing = {task for task, value in found["difflib"].items() if found["levenshtein"][task] != value}
    assert differing == {"lcc", "repobench-p"}


@pytest.mark.parametrize("name", [name for name in SETS if name.startswith("adakv")])
def test_per_sample_scores_are_reproduced(shared_data: Path, name: str) -> None:
    folder = shared_data / "predictions" / name
    published = json.loads((folder / "list_result.json").read_text())
    wrong, count = [], 0
    for path in sorted(folder.glob("*.jsonl*")):
        task = read_file(path)
        for number, (sample, theirs) in enumerate(zip(task.samples, published[task.task], strict=True)):
            ours = score_row(task.task, sample.prediction, sample.answers, task.all_classes, code_sim="levenshtein")
            count += 1
            if abs(ours - theirs) > 1e-9:
                wrong.append((task.task, number, ours, theirs))
    assert count == 3750
    assert wrong == []
