"""LongBench tasks on real rows: prompts byte for byte, official lengths, subsets said, wrong templates refused."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcbench.data.install import install
from lcbench.data.manifest import resolve as resolve_data
from lcbench.data.store import data_file
from lcbench.errors import ChecksumMismatch, CorruptFile, DataMissing
from lcbench.tasks import longbench
from lcbench.tasks.base import Task
from lcbench.tasks.longbench import LongBenchTask, fill
from lcbench.tasks.registry import all_groups, resolve

PARTS = {  # rows in ../shared/data/longbench; the others are whole
    "qasper": "subset: first 18 of 200 rows",
    "qasper_e": "subset: first 24 of 224 rows",
    "multi_news": "",
}


@pytest.fixture(scope="module")
def home(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with everything that is in the shared copy."""
    home = tmp_path_factory.mktemp("longbench")
    report = install(home, ["longbench"], str(shared_data / "longbench"))
    assert not report.problems
    return home


def task(name: str) -> LongBenchTask:
    found = resolve(name)[0]
    assert isinstance(found, LongBenchTask)
    return found


def present(home: Path) -> Iterator[Task]:
    for one in resolve("longbench,longbench-e"):
        try:
            one.check_data(home)
        except DataMissing:
            continue
        yield one


@pytest.fixture(scope="module")
def official(shared_data: Path) -> dict[str, Any]:
    return dict(json.loads((shared_data / "longbench/config/dataset2prompt.json").read_text("utf-8")))


def test_all_templates_have_the_published_hashes(home: Path, official: dict[str, str]) -> None:
    assert set(longbench.TEMPLATE_SHA256) == set(official)
    for name, template in official.items():
        assert hashlib.sha256(template.encode()).hexdigest().startswith(longbench.TEMPLATE_SHA256[name])
        assert task(name).template(home) == template
    assert task("qasper_e").template(home) == official["qasper"]


def test_prompts_equal_the_recorded_ones(shared_data: Path, home: Path) -> None:
    """The prompts another harness sent to its model, rows of nine tasks."""
    count = 0
    for path in sorted((shared_data / "predictions/pyramidkv-outputs").glob("*.FullKV.first*.jsonl.gz")):
        one = task(path.name.split(".")[0])
        rows = {row.id: row for row in one.load(home).rows}
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                recorded = json.loads(line)
                row = rows[recorded["_id"]]
                assert one.prompt(row, home).text.encode() == recorded["prompt"].encode()
                assert list(row.answers) == recorded["answers"]
                assert row.length == recorded["length"]
                assert (list(row.all_classes) if row.all_classes else None) == recorded["all_classes"]
                count += 1
    assert count == 86


def test_every_real_row_is_the_official_fill(home: Path, official: dict[str, str], shared_data: Path) -> None:
    names = set()
    for one in present(home):
        template = official[one.name.removesuffix("_e")]
        for row in one.load(home).rows:
            prompt = one.prompt(row, home)
            assert prompt.text == template.format(**row.fields)
            question = row.fields["input"]
            if "{input}" in template:
                assert prompt.question_start is not None
                assert prompt.text[: prompt.question_start].endswith(row.fields["context"])
                assert prompt.text[prompt.question_start :] == template.split("{context}")[1].format(input=question)
            else:
                assert prompt.question_start is None
        names.add(one.name)
    assert names == {path.name.split(".")[0] for path in (shared_data / "longbench").glob("*.jsonl")}


def test_tasks_without_an_input_are_the_known_ones(official: dict[str, str]) -> None:
    without = {name for name, template in official.items() if fill(template, _AnyField()).question_start is None}
    assert without == {"gov_report", "multi_news", "vcsum", "lcc", "passage_count"}


class _AnyField(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return key


row_text = st.text(st.sampled_from("ab{}!:0.[]\n"), max_size=40)


@given(context=row_text, question=row_text)
def test_braces_in_rows_are_left_alone(context: str, question: str) -> None:
    template = "A {{literal}} \n{context}\n\n{input}? {input}"
    fields = {"context": context, "input": question, "_id": "1"}
    prompt = fill(template, fields)
    assert prompt.text == template.format(**fields)
    assert prompt.text[: prompt.question_start] == f"A {{literal}} \n{context}"
    assert fill("{input} then {context}", fields).question_start is None


def test_lengths_are_the_official_ones(home: Path, shared_data: Path) -> None:
    lengths = json.loads((shared_data / "longbench/config/dataset2maxlen.json").read_text("utf-8"))
    for one in resolve("longbench,longbench-e"):
        assert one.answer_tokens(home) == lengths[one.name.removesuffix("_e")]
    assert task("gov_report_e").answer_tokens(home) == 512


def test_official_stop_rules() -> None:
    for one in resolve("longbench,longbench-e"):
        samsum = one.name.removesuffix("_e") == "samsum"
        assert (one.stop, one.min_new_tokens) == (("newline", 1) if samsum else ("eos", 0))
        assert one.truncate == "middle"
        assert one.datasets == ("longbench",)


def test_subsets_are_said_and_rows_are_in_order(home: Path, shared_data: Path) -> None:
    for name, note in PARTS.items():
        loaded = task(name).load(home)
        assert loaded.note == note
        assert task(name).check_data(home) == note
        file = next((shared_data / "longbench").glob(f"{name}.*jsonl"))
        raw = [json.loads(line) for line in file.read_text("utf-8").split("\n")[:-1]]
        assert [row.id for row in loaded.rows] == [row["_id"] for row in raw]
        assert [dict(row.fields) for row in loaded.rows] == raw


def test_limit_takes_the_first_rows(home: Path) -> None:
    whole, part = task("trec").load(home), task("trec").load(home, limit=3)
    assert list(part.rows) == list(whole.rows[:3])
    assert part.sha256 == whole.sha256
    assert whole.rows[0].all_classes is not None
    assert len(whole.rows[0].all_classes) == 50


def test_hash_depends_on_rows_template_and_length(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = {task(name).load(home).sha256 for name in ("qasper", "qasper_e", "trec", "hotpotqa")}
    assert len(hashes) == 4
    assert all(re.fullmatch(r"[0-9a-f]{64}", value) for value in hashes)
    before = task("qasper").load(home).sha256
    monkeypatch.setattr(LongBenchTask, "answer_tokens", lambda self, home: 129)
    assert task("qasper").load(home).sha256 != before


def test_not_downloaded(tmp_path: Path) -> None:
    for call in (task("qasper").load, task("qasper").check_data, task("qasper").answer_tokens):
        with pytest.raises(DataMissing) as caught:
            call(tmp_path)
        assert "lcbench download" in caught.value.next_step
    with pytest.raises(DataMissing) as caught:
        task("qasper").load(tmp_path)
    assert "lcbench download qasper" in caught.value.next_step


def test_a_cleaned_up_template_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store refuses changed files already; this guards against a changed manifest or mirror."""
    from lcbench.data import store

    read = store.config_json

    def changed(home: Path, dataset: str, name: str) -> dict[str, Any]:
        content = dict(read(home, dataset, name))
        if name == "dataset2prompt.json":
            content["narrativeqa"] = content["narrativeqa"].replace("asconcisely", "as concisely")
            del content["trec"]
        else:
            content["qasper"] = "128"
        return content

    monkeypatch.setattr(store, "config_json", changed)
    with pytest.raises(ChecksumMismatch, match="narrativeqa"):
        task("narrativeqa").load(home)
    with pytest.raises(ChecksumMismatch, match="trec"):
        task("trec").template(home)
    with pytest.raises(CorruptFile, match="'128' as the answer length of qasper"):
        task("qasper").load(home)  # its template is untouched, its length is not


def test_rows_with_one_id_are_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lcbench.data import store

    read = store.read_rows

    def doubled(home: Path, dataset: str, name: str, limit: int | None = None) -> list[dict[str, Any]]:
        rows = read(home, dataset, name, limit)
        return [*rows, rows[1]]

    monkeypatch.setattr(store, "read_rows", doubled)
    with pytest.raises(CorruptFile, match=r"Rows 2 and 17 of longbench/trec\.jsonl"):
        task("trec").load(home)


def test_a_torn_data_file_is_refused(home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(home, copy)
    path = data_file(copy, "longbench", "qasper.jsonl").path
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises((CorruptFile, ChecksumMismatch), match=r"qasper\.jsonl"):
        task("qasper").load(copy)


def test_without_context(home: Path) -> None:
    one = task("hotpotqa")
    row = one.load(home, limit=1).rows[0]
    asked = one.without_context(row)
    assert asked.fields["context"] == ""
    assert (asked.id, asked.answers) == (row.id, row.answers)
    text = one.prompt(asked, home).text
    assert row.fields["input"] in text
    assert row.fields["context"][:200] not in text
    assert row.fields["context"] != ""


@pytest.mark.parametrize("name", [name for name in all_groups() if name != "100-longbench"])  # that one is built
def test_download_knows_the_same_groups(name: str) -> None:
    """`lcbench download GROUP` brings every file that `--task GROUP` reads."""
    files = {path for selection in resolve_data([name]) for path in (entry.path for entry in selection.files)}
    assert {f"{one.name}.jsonl" for one in resolve(name)} <= files
