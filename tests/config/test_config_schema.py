"""The JSON Schema says what the reader of the file says; the shipped copy is up to date."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from lcbench.config.schema import MODELINE, example, json_schema, render
from lcbench.config.spec import ALIASES, KEYS
from lcbench.config.study import STUDY_KEYS, make_study
from lcbench.errors import UsageError

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def validator() -> Any:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    return jsonschema.Draft202012Validator(json_schema())


def test_the_shipped_schema_is_up_to_date() -> None:
    shipped = (DOCS / "lcbench.schema.json").read_text(encoding="utf-8")
    assert shipped == render(), "docs/lcbench.schema.json is out of date: make docs"


def test_every_key_is_there_and_told() -> None:
    properties = json_schema()["properties"]
    assert set(properties) == {*KEYS, *ALIASES, *STUDY_KEYS}
    assert [key for key, schema in properties.items() if len(schema["description"]) < 10] == []


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("model: demo\nmethod: full,kivi\ntask: [qasper]\nset: {bits: 2}\nlimit: 3\nseed: 0", True),
        ("models: [a, {name: b, dtype: float16, load_in: 4bit}]\nbudgets: [0.25, 512, 4x]\nout: runs/x", True),
        ("limit: null\nrevision: null\nexact: true\nquestion: hidden", True),
        ("budget: 0.5", True),
        ("budgets: ['25%', '0.5, 4x', 1, 1.0, 0.001, '007']", True),
        ("budgets: 512,0.25\nmethods:\nlimit:\nmodel:", True),
        ("budgets: [banana]", False),
        ("budgets: [0, 2.5]", False),
        ("budgets: 2.5", False),
        ("budgets: '0%'", False),
        ("budgets: '0.0'", False),
        ("budgets: 120%", False),
        ("budgets: -3", False),
        ("methods: []", False),
        ("tasks: ''", False),
        ("model: demo\nmodels: [demo]", False),
        ("method: full\nmethods: [full]", False),
        ("metod: full", False),
        ("limit: 0", False),
        ("limit: many", False),
        ("dtype: float8", False),
        ("models: []", False),
        ("models: [{dtype: float16}]", False),
        ("models: [{name: a, limit: 3}]", False),
        ("methods: 3", False),
        ("question: seen", False),
    ],
)
def test_schema_and_reader_agree(validator: Any, tmp_path: Path, text: str, good: bool) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(text)
    assert validator.is_valid(yaml.safe_load(text)) is good
    if good:
        make_study({}, file)
        return
    with pytest.raises(UsageError):
        make_study({}, file)


def test_the_example_fits_the_schema_and_says_where_it_is(validator: Any) -> None:
    text = example("my study.yaml")
    assert text.startswith(f"{MODELINE}\n")
    assert "'my study.yaml'" in text
    assert list(validator.iter_errors(yaml.safe_load(text))) == []
