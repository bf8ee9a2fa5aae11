"""Names to tasks."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from lcbench.errors import BadValue, UnknownName, UsageError
from lcbench.tasks import registry
from lcbench.tasks.base import Loaded, Prompt, Row, Task
from lcbench.tasks.registry import all_groups, all_tasks, resolve


def names(text: str) -> list[str]:
    return [task.id for task in resolve(text)]


def test_all_built_in_tasks_are_there() -> None:
    tasks = all_tasks()
    assert len([n for n, cls in tasks.items() if cls.benchmark == "longbench"]) == 21
    assert len([n for n, cls in tasks.items() if cls.benchmark == "longbench-e"]) == 13
    assert "passkey" in tasks
    for name, cls in tasks.items():
        assert cls.name == name
        assert cls().id == name
        assert cls.version == max(cls.changelog)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("qasper", ["qasper"]),
        ("longbench/qasper", ["qasper"]),
        ("longbench-e/qasper", ["qasper_e"]),
        ("longbench-e/qasper_e", ["qasper_e"]),
        ("passkey/passkey", ["passkey"]),
        ("code", ["lcc", "repobench-p"]),
        ("longbench-e/code", ["lcc_e", "repobench-p_e"]),
        ("longbench/single-doc-qa", ["narrativeqa", "qasper", "multifieldqa_en", "multifieldqa_zh"]),
        ("few-shot", ["trec", "triviaqa", "samsum", "lsht"]),
        ("trec,qasper,few-shot", ["trec", "qasper", "triviaqa", "samsum", "lsht"]),
        ("qasper,passkey@digits=64,repeats=1,qasper", ["qasper", "passkey@repeats=1,digits=64"]),
        ("passkey@digits=7", ["passkey@digits=7"]),
        ("passkey,passkey@digits=7", ["passkey"]),
        ("passkey,passkey@digits=9", ["passkey", "passkey@digits=9"]),
    ],
)
def test_resolve(text: str, expected: list[str]) -> None:
    assert names(text) == expected


def test_benchmarks() -> None:
    assert len(names("longbench")) == 21
    assert len(names("longbench-e")) == 13
    assert all(name.endswith("_e") for name in names("longbench-e"))
    assert set(names("longbench-en")) | set(names("longbench-zh")) == set(names("longbench"))
    assert len(names("longbench-en")) == 16
    assert len(names("longbench-zh")) == 7
    assert names("longctx") == [n for n in names("longbench-en") if n != "passage_count"]
    assert len(names("longctx")) == 15


def test_longctx_is_what_the_workbench_configures(shared_data: Path) -> None:
    configured = {path.stem for path in (shared_data / "longctx_bench/eval_config/longbench").glob("*.json")}
    assert set(names("longctx")) == configured - {"passage_count"}  # it is run there but left out of the averages


def test_order_does_not_depend_on_what_was_imported_first() -> None:
    for first in ("passkey", "longbench", "documentation"):
        code = (
            f"import lcbench.tasks.{first}; from lcbench.tasks.registry import *; print([*all_tasks(), *all_groups()])"
        )
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert out.strip() == str([*all_tasks(), *all_groups()])


def test_several_texts_and_items_are_taken() -> None:
    assert [t.id for t in resolve(["qasper,trec", "qasper", "code"])] == ["qasper", "trec", "lcc", "repobench-p"]


@pytest.mark.parametrize(
    ("text", "offered"),
    [
        ("qaspr", "qasper"),
        ("narrativeqa_e", "narrativeqa"),
        ("longbnch", "longbench"),
        ("longbench/qaspr", "longbench/qasper"),
        ("single-docqa", "single-doc-qa"),
        ("longbench-e/narrativeqa", "longbench-e/"),
    ],
)
def test_unknown_names_offer_the_nearest(text: str, offered: str) -> None:
    with pytest.raises(UnknownName, match="Unknown task") as caught:
        resolve(text)
    assert offered in caught.value.next_step
    assert "lcbench list tasks" in caught.value.next_step


def test_wrong_options() -> None:
    with pytest.raises(UnknownName, match="digit") as caught:
        resolve("passkey@digit=7")
    assert "digits" in caught.value.next_step
    with pytest.raises(UnknownName, match="of task 'narrativeqa'"):
        resolve("longbench@digits=7")
    with pytest.raises(BadValue):
        resolve("passkey@digits=0")
    with pytest.raises(UsageError):
        resolve("")
    with pytest.raises(UsageError):
        resolve([])


def test_tasks_can_be_pickled() -> None:
    for task in resolve("longbench,longbench-e,passkey@digits=9"):
        again = pickle.loads(pickle.dumps(task))
        assert again == task
        assert again.id == task.id


def test_tasks_of_one_shape_are_not_equal() -> None:
    qasper, trec = resolve("qasper,trec")
    assert qasper != trec
    assert len({qasper, trec, *resolve("qasper")}) == 2


@dataclass(frozen=True)
class Echo(Task):
    benchmark = "own"
    category = "own"
    metric = "qa_f1"

    def load(self, home: Path, limit: int | None = None) -> Loaded:
        return Loaded((Row("1", {"text": "say a"}, ("a",)),))

    def answer_tokens(self, home: Path) -> int:
        return 4

    def prompt(self, row: Row, home: Path) -> Prompt:
        return Prompt(row.fields["text"])


@pytest.fixture
def clean_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    all_tasks()
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    monkeypatch.setattr(registry, "_groups", dict(registry._groups))


@pytest.mark.usefixtures("clean_registry")
def test_decorator_registers_and_refuses_a_second_of_that_name() -> None:
    assert registry.task("echo")(Echo) is Echo
    assert registry.task("echo")(Echo) is Echo  # a reload is no conflict
    assert names("echo,own/echo") == ["echo"]
    with pytest.raises(BadValue, match="echo"):
        resolve("echo")[0].without_context(Row("1", {}, ()))
    with pytest.raises(UsageError, match="Two tasks are named 'qasper'"):
        registry.task("qasper")(Echo)
    registry.group("mine", "two of them", ["echo", "qasper"])
    assert names("mine") == ["echo", "qasper"]
    assert all_groups()["mine"].doc == "two of them"
    with pytest.raises(UsageError, match="ghost"):
        registry.group("mine", "one that is not there", ["echo", "ghost"])


@pytest.mark.usefixtures("clean_registry")
def test_plug_ins_of_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def points(group: str) -> list[EntryPoint]:
        return [EntryPoint("broken", "no_such_package_of_tasks", group)] if group == "lcbench.tasks" else []

    monkeypatch.setattr(registry, "entry_points", points)
    registry._import_all.cache_clear()
    try:
        assert "qasper" in all_tasks()
        with pytest.raises(UsageError, match="plug-in 'broken'"):
            registry.resolve("broken")
        assert list(registry.broken_plugins()) == ["broken"]
    finally:
        monkeypatch.undo()
        registry._broken.clear()
        registry._import_all.cache_clear()
    assert "qasper" in all_tasks()
