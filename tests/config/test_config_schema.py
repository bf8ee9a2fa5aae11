"""The JSON Schema says what the reader of the file says; the shipped copy is up to date."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lcbench.config.schema import MODELINE, example, json_schema, render
from lcbench.config.spec import ALIASES, KEYS, ModelSpec
from lcbench.config.study import STUDY_KEYS, make_study
from lcbench.errors import UsageError

VALIDATOR = jsonschema.Draft202012Validator(json_schema())
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
        ("", True),
        ("# only a comment", True),
        ("- model: demo", False),
        ("demo", False),
        ("revision: 1.0\ndevice: cpu\nchat: none", True),
        ("revision: 2024-01-01", False),  # YAML makes a date of it
        ("chat: no", False),  # and of this a truth value
        ("limit: 3.0\nseed: -1", True),
        ("limit: 3.5", False),
        ("limit: true", False),
        ("limit: '3'", False),
        ("exact: 1", False),
        ("exact: yes", True),
        ("model: ''", False),
        ("models: ['']", False),
        ("model: 7", True),
        ("models: [7]", False),
        ("models: [{name: a, dtype: null, revision: 3}]", True),
        ("models: [{name: null}]", False),
        ("models: [{name: ' '}]", False),
        ("models: [a, a]", False),
        ("models: [{name: a, limit: 3}, b]", False),
        ("models: {name: a}", False),
        ("models: null", True),
        ("model: a\nmodels: null", False),
        ("model: null\nmodels: [a]", False),
        ("out: ''", False),
        ("out: 3", False),
        ("budgets: []", True),
        ("budgets: ''", True),
        ("budgets: '0.5,'", True),
        ("budgets: ['0.5', '']", True),
        ("budgets: 512.0", True),
        ("budgets: 2.5e+0", False),
        ("budgets: ['.5%', 5.%, 1e-2, 9.9E-1]", True),
        ("budgets: ['+0.5']", False),
        ("budgets: ['5e-0']", False),
        ("budgets: ['0e-1']", False),
        ("budgets: ['1_0']", False),
        ("budgets: [[0.5]]", False),
        ("budgets: [null]", False),
        ("workers: auto\nray_gpus: 0.5\nray_cpus: 2\nengine: ray", True),
        ("workers: '2'\nray_gpus: '.25'", True),
        ("workers: 2.0\nray_gpus: 2.0", True),
        ("workers: many", False),
        ("workers: 0", False),
        ("workers: 1.5", False),
        ("ray_gpus: 1.5", False),
        ("ray_gpus: '1e-1'", False),
        ("ray_gpus: half", False),
        ("ray_gpus: -1", False),
        ("group_memory: 8GiB", True),
        ("group_memory: 1000000", True),
        ("group_memory: 8 bananas", False),
        ("group_memory: 0GiB", False),
        ("group_memory: 0", False),
        ("group_memory: 4", False),
        ("group_memory: 999999", False),
        ("group_memory: '0999999.9 B'", False),
        ("group_memory: '01000000 b'", True),
        ("group_memory: 4kB", True),
        ("model: openai:gpt\nbase_url: http://x/v1\nwindow: 4096\napi: chat", True),
        ("models: ['openai:a', {name: 'openai:b', window: 100}]\ntokenizer: t", True),
        ("model: demo\nwindow: 4096", False),
        ("window: 4096", False),  # the demo model is none behind an address
        ("models: ['openai:a', b]\nbase_url: http://x/v1", False),
        ("models: ['openai:a', {name: b, api: chat}]", False),
        ("model: openai:gpt\nwindow: 0", False),
        ("model: openai:gpt\ngroup_memory: 8GiB", False),
        ("models: [a, {name: 'openai:b'}]\ngroup_memory: 8GiB", False),
        ("model: openai:gpt\ngroup_memory: null\nbase_url: null", True),
        ("set: {bits: 2, name: x, on_: true, share: 0.5}", True),
        ("set: {bits: [2, 4]}", False),
        ("set: {bits: null}", False),
        ("set: {bits: {a: 1}}", False),
        ("set: bits=2", False),
        ("methods: [full, [kivi]]", False),
        ("methods: [' , ', full]", True),
        ("methods: [null]", False),
        ("tasks: [3]", False),
        ("base: &b {limit: 3}\n<<: *b", False),
        ("limit: &n 3\nmax_input_tokens: *n", True),
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


_SCALARS = st.sampled_from(
    [None, True, False, 0, 1, -1, 7, 1.0, 2.0, 0.5, 1.5, "", " ", "a", "auto", "none", "openai:x", "3", "0.5", "4x",
     "0.5,64", "50%", "8GiB", "float16", "8bit", "cpu", "hidden", "truncate", "ray", ","]
)  # fmt: skip
_MODEL_KEYS = sorted(key for key in KEYS if key in {f.name for f in dataclasses.fields(ModelSpec)})
_ENTRY = st.one_of(
    st.sampled_from(["a", "openai:x", ""]),
    st.dictionaries(st.sampled_from(["name", *_MODEL_KEYS]), _SCALARS, max_size=3),
)
_VALUES = st.one_of(_SCALARS, st.lists(_SCALARS, max_size=3), st.dictionaries(st.sampled_from("ab"), _SCALARS))
_FILES = st.dictionaries(st.sampled_from([*KEYS, *ALIASES, "out", "limitt"]), _VALUES, max_size=4)


def _names(entries: list[Any]) -> list[Any]:
    return [entry.get("name") if isinstance(entry, dict) else entry for entry in entries]


@settings(max_examples=600)
@given(_FILES, st.one_of(st.none(), st.lists(_ENTRY, max_size=3)))
def test_schema_and_reader_agree_on_whatever_is_written(
    tmp_path_factory: pytest.TempPathFactory, data: dict[str, Any], models: list[Any] | None
) -> None:
    if models is not None:
        data = {**data, "models": models}
        # The same model once as a name and once as a mapping is what a schema cannot see.
        assume(len({str(name) for name in _names(models)}) == len(models))
    file = tmp_path_factory.getbasetemp() / "study.yaml"
    file.write_text(yaml.safe_dump(data), encoding="utf-8")
    try:
        make_study({}, file)
        read = ""
    except UsageError as error:
        read = error.message
    schema = [error.message for error in VALIDATOR.iter_errors(data)]
    assert (not read) == (not schema), (read, schema)
