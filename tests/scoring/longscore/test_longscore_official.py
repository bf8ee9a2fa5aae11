"""LongScores of result files that 100-LongBench's own scorer wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lcbench.cli import app
from lcbench.errors import CorruptFile
from lcbench.scoring.longscore.official import read_results

LLAMA = {  # llama-3.1-8B, as published
    "kv_retrieval_0": 58.59, "kv_retrieval_8": 61, "kv_retrieval_16": 56, "kv_retrieval_32": 67,
    "kv_retrieval_64": 75, "kv_retrieval_128": 71,
    "passage_count_0": 56.57, "passage_count_8": 22, "passage_count_16": 2, "passage_count_32": 0,
    "passage_count_64": 0, "passage_count_128": 0,
}  # fmt: skip


def write(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def test_one_models_file(tmp_path: Path) -> None:
    (found,) = read_results(write(tmp_path / "llama" / "result.json", LLAMA)).items()
    model, (mean, kv, count) = found
    assert (model, kv.name, kv.long_score, kv.average) == ("llama", "100-longbench/kv_retrieval", 12.65, 66.0)
    assert [rung.value for rung in kv.rungs] == [4.11, -4.42, 14.35, 28.01, 21.18]
    assert (count.long_score, count.average) == (-91.51, 4.8)
    assert mean.members == ("100-longbench/kv_retrieval", "100-longbench/passage_count")
    assert mean.base.score == pytest.approx(57.58)


def test_several_models_are_ranked_by_the_command(tmp_path: Path) -> None:
    better = {**LLAMA, "kv_retrieval_0": 40, "passage_count_128": 1}
    path = write(tmp_path / "all.json", {"llama": LLAMA, "other": better})
    done = CliRunner().invoke(app, ["score", str(path)], env={"COLUMNS": "140", "TERM": "dumb"})
    assert done.exit_code == 0, done.output
    assert "Two rankings: mean of 2 tasks" in done.stdout
    assert "12.65" in done.stdout
    data = json.loads(CliRunner().invoke(app, ["score", str(path), "--json"]).stdout)
    kv = data["entries"][0]["curves"]["100-longbench/kv_retrieval"]
    assert (kv["long_score"], kv["average"]) == (12.65, 66.0)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("[1", "not JSON"),
        ([], "no scores"),
        ({}, "no scores"),
        ({"kv_retrieval": 5}, "'kv_retrieval' is no task"),
        ({"kv_retrieval_8": "5"}, "not a number"),
        ({"kv_retrieval_8": 500}, "not a number"),
        ({"kv_retrieval_8": True}, "not a number"),
        ('{"kv_retrieval_8": NaN}', "not a number"),
        ({"kv_retrieval_0": 5}, "no score at a length"),
        ({"m": {"x": 1}}, "'x' is no task"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, data: Any, said: str) -> None:
    with pytest.raises(CorruptFile, match=said) as raised:
        read_results(write(tmp_path / "r.json", data))
    assert raised.value.next_step
