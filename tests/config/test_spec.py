"""Defaults < YAML < command line; wrong keys and values are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from lcbench.config.home import home
from lcbench.config.spec import RunSpec, make_spec
from lcbench.config.study import make_study
from lcbench.errors import BadValue, UnknownName, UsageError


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "study.yaml"
    file.write_text(text)
    return file


def test_command_line_wins_over_yaml_over_defaults(tmp_path: Path) -> None:
    file = write(
        tmp_path, "model: some/model\nmethod: full,kivi@bits=4\ntask: [qasper, passkey]\nlimit: 3\nset:\n  bits: 2\n"
    )
    (spec,) = make_study({"limit": 5, "methods": None, "dtype": "float16"}, file).runs
    assert (spec.model.name, spec.model.dtype, spec.limit) == ("some/model", "float16", 5)
    assert spec.methods == ("full", "kivi@bits=4")
    assert spec.tasks == ("qasper", "passkey")
    assert spec.settings == {"bits": "2"}
    assert make_spec({}) == RunSpec()
    assert spec.to_dict()["model"]["name"] == "some/model"


def test_the_default_model_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_spec({}).model.name == "demo"
    monkeypatch.setenv("LCBENCH_MODEL", "some/other")
    assert make_spec({}).model.name == "some/other"
    assert make_spec({"model": "third"}).model.name == "third"


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("metod: kivi", UnknownName, "Did you mean 'methods'"),
        ("budgetz: [0.5]", UnknownName, "Did you mean 'budgets'"),
        ("limit: 0", BadValue, "least"),
        ("limit: many", BadValue, "whole number"),
        ("limit: true", BadValue, "whole number"),
        ("dtype: float8", BadValue, "bfloat16"),
        ("trust_remote_code: perhaps", BadValue, "true or false"),
        ("- a\n- b", UsageError, "mapping"),
        ("a: [1", UsageError, "line"),
        ("methods: 3", BadValue, "list of texts"),
        ("set: 3", BadValue, "mapping"),
        ("methods: []", UsageError, "No method"),
        ("limit: 1\nlimit: 2", UsageError, "twice"),
        ("method: full\nmethods: kivi", UsageError, "twice"),
    ],
)
def test_wrong_yaml_is_told(tmp_path: Path, text: str, error: type[UsageError], said: str) -> None:
    with pytest.raises(error) as caught:
        make_study({}, write(tmp_path, text))
    assert said in f"{caught.value.message} {caught.value.next_step}"


def test_a_missing_config_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Cannot read"):
        make_study({}, tmp_path / "none.yaml")


def test_home_follows_the_environment(own_home: Path) -> None:
    assert home() == own_home
