from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcbench.config.spec import ModelSpec, RunSpec
from lcbench.errors import NotARun
from lcbench.store.locate import default_run_path, latest_run, remember_run, study_paths
from lcbench.store.rundir import RunDirectory


def test_the_default_path_is_readable() -> None:
    spec = RunSpec(methods=("full", "kivi@bits=2"), tasks=("qasper",))
    path = default_run_path(spec)
    assert re.fullmatch(r"runs/demo-qasper-full\+kivi-bits-2-[0-9a-f]{6}", str(path))
    assert default_run_path(spec) == path
    assert default_run_path(spec.to_dict()) == path


def test_everything_in_the_spec_moves_the_path() -> None:
    spec = RunSpec()
    others = [
        RunSpec(seed=1),
        RunSpec(limit=3),
        RunSpec(max_input_tokens=100),
        RunSpec(model=ModelSpec(name="demo", dtype="float32")),
        RunSpec(methods=("full", "kivi")),
    ]
    assert len({default_run_path(s) for s in [spec, *others]}) == 6


def test_long_lists_lose_their_options_then_their_ends() -> None:
    model = ModelSpec(name="meta-llama/Llama-3.1-8B")
    spec = RunSpec(model=model, methods=("full", *(f"kivi@bits={b}" for b in range(1, 9))))
    assert default_run_path(spec).name[:-7] == "Llama-3.1-8B-passkey-full+kivi"
    spec = RunSpec(model=model, tasks=("passkey@lengths=256/384,depths=2,repeats=1",))
    assert default_run_path(spec).name[:-7] == "Llama-3.1-8B-passkey-full"
    spec = RunSpec(tasks=tuple(f"some_long_task_{i}" for i in range(9)))
    assert default_run_path(spec).name[:-7] == "demo-some_long_task_0+8more-full"


@given(
    model=st.text(max_size=60),
    methods=st.lists(st.text(min_size=1, max_size=60), min_size=1, max_size=5),
    tasks=st.lists(st.text(min_size=1, max_size=300), min_size=1, max_size=5),
)
def test_any_spec_gives_a_safe_bounded_name(model: str, methods: list[str], tasks: list[str]) -> None:
    path = default_run_path({"model": {"name": model}, "methods": methods, "tasks": tasks})
    assert path.parent == Path("runs")
    assert {unicodedata.category(sign)[0] for sign in path.name if sign not in "._+-"} <= set("LMN")
    assert not path.name.startswith(("-", "."))
    assert len(path.name) <= 130
    assert len(path.name.encode()) <= 240


def test_names_in_other_scripts_stay_legible() -> None:
    models = [ModelSpec("./模型"), ModelSpec("./数据"), ModelSpec("./tiny 二"), ModelSpec("🙂"), ModelSpec("./🙃")]
    names = [path.name for path in study_paths(Path("out"), models)]
    assert names[:3] == ["模型", "数据", "tiny-二"]
    assert [re.fullmatch("model-[0-9a-f]{6}", name) is not None for name in names[3:]] == [True, True]
    assert len(set(names)) == 5
    long = study_paths(Path("out"), [ModelSpec("模" * 300), ModelSpec("a/" + "模" * 300, dtype="float16")])
    assert max(len(path.name.encode()) for path in long) <= 240
    spec = {"model": {"name": "./模型"}, "methods": ["full"], "tasks": ["passkey"]}
    assert default_run_path(spec).name[:-7] == "模型-passkey-full"


def _make(path: Path, when: int) -> Path:
    spec: dict[str, Any] = {"methods": ["m"], "tasks": ["t"]}
    RunDirectory.create_or_continue(path, spec, {}).close()
    os.utime(path / "run.json", (when, when))
    return path


def test_the_latest_run_is_the_one_last_started_or_continued(tmp_path: Path, own_home: Path) -> None:
    with pytest.raises(NotARun) as caught:
        latest_run()
    assert "lcbench run" in caught.value.next_step
    first = _make(Path("runs/first"), 1000)
    _make(Path("runs/second"), 2000)
    Path("runs/not-a-run").mkdir()
    assert latest_run() == Path("runs/second")
    assert latest_run(tmp_path / "cwd") == tmp_path / "cwd/runs/second"
    RunDirectory.create_or_continue(first, {"methods": ["m"], "tasks": ["t"]}, {}).close()
    assert latest_run() == first


def test_a_run_elsewhere_is_remembered(tmp_path: Path, own_home: Path) -> None:
    _make(Path("runs/here"), 1000)
    remember_run(_make(Path("../elsewhere"), 2000))
    assert latest_run() == Path(os.path.abspath("../elsewhere"))
    assert (own_home / "state/last-run.json").exists()
    os.utime("runs/here/run.json", (3000, 3000))
    assert latest_run() == Path("runs/here")
    os.utime("runs/here/run.json", (1000, 1000))
    os.unlink("../elsewhere/run.json")
    assert latest_run() == Path("runs/here")
    for broken in ("", "[]", "{}", '{"path": 3}'):
        (own_home / "state/last-run.json").write_text(broken)
        assert latest_run() == Path("runs/here")


def test_remembering_is_never_in_the_way(own_home: Path) -> None:
    own_home.write_text("a file where the folder should be")
    remember_run("runs/x")
    with pytest.raises(NotARun):
        latest_run()


def test_models_of_a_study_have_folders_of_their_own() -> None:
    models = [
        ModelSpec("demo"),
        ModelSpec("a/x"),
        ModelSpec("b/x", dtype="float16"),
        ModelSpec("b/x", load_in="4bit"),
        ModelSpec("one/models/Y"),
        ModelSpec("two/models/y/"),
    ]
    paths = study_paths(Path("out"), models)
    names = [path.name for path in paths]
    assert names[:4] == ["demo", "a-x", "b-x-dtype-float16", "b-x-load_in-4bit"]
    assert [re.fullmatch(r"[Yy]-[0-9a-f]{6}", name) is not None for name in names[4:]] == [True, True]
    assert len({name.lower() for name in names}) == 6
    assert study_paths(Path("out"), models[::-1]) == paths[::-1]
    assert study_paths(Path("out"), [ModelSpec("../..")])[0].parent == Path("out")
