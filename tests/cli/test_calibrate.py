"""``lcbench calibrate``: published tables, refusals, and head scores of the demo model."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tiny import save_tiny

LAYERS, HEADS = 2, 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), layers=LAYERS, heads=HEADS, kv_heads=2, head_dim=16)


def stored(home: Path, name: str) -> dict[str, Any]:
    (file,) = (home / "calibration").glob(f"*/{name}.json")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def mapping(layers: int = LAYERS, heads: int = HEADS) -> dict[str, list[float]]:
    """Scores as the authors publish them, heads in no particular order; the mean of head h of layer l is 10 l + h."""
    pairs = [(layer, head) for layer in range(layers) for head in range(heads)]
    return {
        f"{layer}-{head}": [10 * layer + head - 0.5, 10 * layer + head + 0.5] for layer, head in reversed(pairs)
    } | {"0-0": [0.0]}


TABLE = [[float(10 * layer + head) for head in range(HEADS)] for layer in range(LAYERS)]


@pytest.mark.parametrize("content", [mapping(), TABLE, [[int(x) for x in row] for row in TABLE]])
def test_a_published_table_is_taken_over(
    cli: Callable[..., Any], model: Path, own_home: Path, tmp_path: Path, content: Any
) -> None:
    file = tmp_path / "heads.json"
    file.write_text(json.dumps(content))
    done = cli("calibrate", "headkv-r2", "--model", model, "--from", file, "--json")
    assert done.code == 0, done.err
    line = json.loads(done.out)
    assert line["name"] == "headkv-r2"
    assert Path(line["path"]).is_file()
    found = stored(own_home, "headkv-r2")
    assert found["data"]["scores"] == TABLE
    assert found["provenance"]["published_file"] == "heads.json"
    assert str(tmp_path) not in json.dumps(found["provenance"])
    assert not list((own_home / "calibration").glob("*/headkv.json"))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("not json", "is not a table of head scores"),
        ('{"a": [1]}', "is not a table of head scores"),
        ('{"0-0": ["x"]}', "is not a table of head scores"),
        ("[1, 2]", "is not a table of head scores"),
        ("{}", "is not a table of head scores"),
        ("[[1, 2, 3, NaN], [1, 2, 3, 4]]", "is not a table of head scores"),
        ("[[1, 2, 3, -1], [1, 2, 3, 4]]", "is not a table of head scores"),
        ("[[1, 2, 3], [1, 2, 3]]", "does not have one score for each of the model's 2 layers of 4 heads"),
        (json.dumps(mapping(3, HEADS)), "does not have one score for each"),
        (json.dumps({k: v for k, v in mapping().items() if k != "1-2"}), "does not have one score for each"),
        ("[[0, 0, 0, 0], [0, 0, 0, 0]]", "All head scores in"),
    ],
)
def test_a_wrong_table_is_refused(
    cli: Callable[..., Any], model: Path, own_home: Path, tmp_path: Path, content: str, sentence: str
) -> None:
    file = tmp_path / "heads.json"
    file.write_text(content)
    done = cli("calibrate", "headkv", "--model", model, "--from", file)
    assert done.code == 2
    assert sentence in done.err
    assert "Next:" in done.err
    assert "Traceback" not in done.err
    assert not (own_home / "calibration").exists()


def test_wrong_words(cli: Callable[..., Any], model: Path, tmp_path: Path) -> None:
    done = cli("calibrate", "haedkv", "--model", model)
    assert done.code == 2
    assert "Unknown calibration 'haedkv'. " in done.err.replace("\n", " ")
    assert "Did you mean 'headkv'?" in done.err
    done = cli("calibrate", "headkv", "--model", model, "--lengths", "ten")
    assert done.code == 2
    assert "--lengths ten is not a list of whole numbers" in done.err
    done = cli("calibrate", "headkv", "--model", model, "--from", tmp_path / "absent.json")
    assert done.code == 2
    assert "absent.json: No such file" in done.err


def test_a_model_that_finds_nothing_gets_no_scores(cli: Callable[..., Any], model: Path, own_home: Path) -> None:
    done = cli("calibrate", "headkv", "--model", model, "--samples", 1, "--lengths", "10")
    assert done.code == 2
    assert "answered none of 1 retrieval probes" in done.err
    assert not (own_home / "calibration").exists()


@pytest.mark.demo
@pytest.mark.slow
def test_the_demo_model(
    cli: Callable[..., Any], demo_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    shutil.copytree(demo_home / "models", home / "models", copy_function=os.link)
    monkeypatch.setenv("LCBENCH_HOME", str(home))
    arguments = ["calibrate", "headkv", "--model", "demo", "--samples", 3, "--lengths", "40", "--dtype", "float32"]
    done = cli(*arguments)
    assert done.code == 0, done.err
    first = stored(home, "headkv")
    assert first["provenance"]["answered"] == 3  # it copies any code it is shown
    scores = first["data"]["scores"]
    assert (len(scores), {len(row) for row in scores}) == (30, {9})
    flat = sorted((s for row in scores for s in row), reverse=True)
    assert flat[0] > 0.5  # some heads copy, most do not
    assert sum(s == 0 for s in flat) > len(flat) / 2
    assert cli(*arguments).code == 0
    assert stored(home, "headkv") == first  # the same seed, the same scores
