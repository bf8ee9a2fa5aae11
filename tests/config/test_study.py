"""A file with a whole study: models, budgets, what goes over what; the stored file; what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lcbench.config.options import parse_item, with_budgets
from lcbench.config.spec import ModelSpec, make_spec
from lcbench.config.study import Study, make_study
from lcbench.config.yaml_file import to_yaml
from lcbench.errors import BadValue, UnknownName, UsageError

TWO = """\
models:
  - demo
  - {name: big/model, dtype: bfloat16}
dtype: float32
methods: [full, snapkv]
budgets: [0.25, 512, 4x]
limit: 3
out: runs/two
"""


def study(tmp_path: Path, text: str, **command_line: object) -> Study:
    file = tmp_path / "study.yaml"
    file.write_text(text)
    return make_study(command_line, file)


def test_one_run_a_model_with_its_own_keys(tmp_path: Path) -> None:
    found = study(tmp_path, TWO)
    assert [run.model for run in found.runs] == [
        ModelSpec("demo", dtype="float32"),
        ModelSpec("big/model", dtype="bfloat16"),
    ]
    assert all((run.methods, run.limit) == (("full", "snapkv"), 3) for run in found.runs)
    assert found.runs[0].budgets == ("0.25", "512", "4x")
    assert (found.out, found.folders) == (Path("runs/two"), True)


def test_the_command_line_goes_over_the_file_and_its_models(tmp_path: Path) -> None:
    found = study(tmp_path, TWO, dtype="float16", limit=1, budgets=["0.5,64"])
    assert [run.model.dtype for run in found.runs] == ["float16", "float16"]
    assert {(run.limit, run.budgets) for run in found.runs} == {(1, ("0.5", "64"))}


def test_a_named_model_is_taken_from_the_list_or_replaces_it(tmp_path: Path) -> None:
    listed = study(tmp_path, TWO, model="big/model")
    assert [run.model for run in listed.runs] == [ModelSpec("big/model", dtype="bfloat16")]
    assert listed.folders  # it continues what the whole study began
    other = study(tmp_path, TWO, model="another")
    assert [run.model for run in other.runs] == [ModelSpec("another", dtype="float32")]
    assert not other.folders


def test_one_listed_model_is_one_run(tmp_path: Path) -> None:
    found = study(tmp_path, "models: [demo]\n")
    assert (len(found.runs), found.folders, found.out) == (1, False, None)


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("model: a\nmodels: [b]", UsageError, "Both model and models"),
        ("models: demo", BadValue, "list of models"),
        ("models: []", BadValue, "list of models"),
        ("models: [3]", BadValue, "neither a name nor a mapping"),
        ("models: [{dtype: float32}]", UsageError, "without a name"),
        ("models: [{name: a, dtpye: float32}]", UnknownName, "Did you mean 'dtype'"),
        ("models: [{name: a, methods: full}]", UnknownName, "models[0]"),
        ("models: [a, {name: b, dtype: int3}]", BadValue, "models[1]"),
        ("models: [a, a]", UsageError, "listed twice"),
        ("modles: [a]", UnknownName, "Did you mean 'models'"),
        ("budgets: [much]", BadValue, "not a budget"),
        ("budgets: [1.5]", BadValue, "not a budget"),
        ("budgets: [true]", BadValue, "not a budget"),
        ("out: [a]", BadValue, "name of a folder"),
    ],
)
def test_wrong_studies_are_told(tmp_path: Path, text: str, error: type[UsageError], said: str) -> None:
    with pytest.raises(error) as caught:
        study(tmp_path, text)
    assert said in f"{caught.value.message} {caught.value.next_step}"


def test_the_stored_file_asks_for_the_same_run(tmp_path: Path) -> None:
    spec = make_spec(
        {"model": "x/y", "load_in": "4bit", "methods": "full,kivi@bits=2", "tasks": ["qasper"], "set": {"bits": 4}},
        {"limit": 7, "question": "hidden", "exact": True, "revision": "1.0"},
    )
    text = to_yaml(spec)
    assert yaml.safe_load(text)["model"] == "x/y"
    assert study(tmp_path, text).runs == (spec,)


def test_budgets_multiply_the_methods_that_take_one() -> None:
    fields = {"full": set(), "kivi": {"bits"}, "snapkv": {"budget", "window"}, "infllm": {"budget", "preset"}}
    texts = ["full", "kivi", "snapkv@window=8", "snapkv@budget=9", "infllm@4x"]
    items = [[parse_item(text, "method")] for text in texts]
    items.append([parse_item("snapkv", "method"), parse_item("kivi@bits=2", "method")])
    made = ["+".join(map(str, parts)) for parts in with_budgets(items, ["0.5", "64"], fields)]
    assert made == [
        "full",
        "kivi",
        "snapkv@window=8,budget=0.5",
        "snapkv@window=8,budget=64",
        "snapkv@budget=9",
        "infllm@preset=4x",
        "snapkv@budget=0.5+kivi@bits=2",
        "snapkv@budget=64+kivi@bits=2",
    ]
    assert with_budgets(items, [], fields) == items
    with pytest.raises(UnknownName, match="no chosen method has it"):
        with_budgets([[parse_item("kivi", "method")]], ["0.5"], fields)
