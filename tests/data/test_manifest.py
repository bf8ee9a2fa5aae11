from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tiny_data import Tiny

from lcbench.data import manifest
from lcbench.data.checksum import digest_file
from lcbench.data.schema import FieldType, row_problem
from lcbench.errors import BadValue, CorruptFile, DataMissing, LcbenchError, UnknownName


def test_the_manifests_of_the_package_are_sound() -> None:
    known = manifest.all_manifests()
    assert set(known) >= {"longbench", "paulgraham", "100-longbench", "leval", "cnn_dailymail", "bioasq"}
    longbench = known["longbench"]
    rows = [entry for entry in longbench.files.values() if entry.kind == "rows"]
    assert len(rows) == 34
    assert sum(entry.rows or 0 for entry in rows if "longbench-e" not in entry.groups) == 4750
    assert [name for name in longbench.files if name.startswith("config/")] == [e.path for e in longbench.configs]
    assert [entry.base for entry in longbench.configs if not entry.optional] == [
        "dataset2prompt.json",
        "dataset2maxlen.json",
    ]
    # Two data sets of the hub could not be looked at when their manifests were written.
    unseen = {"cnn_dailymail", "bioasq"}
    assert all(e.expected.known for one in known.values() if one.name not in unseen for e in one.files.values())
    assert all(entry.expected.git_blob for entry in rows)
    assert len({entry.expected.git_blob for entry in rows}) == 34
    assert len(known["paulgraham"].files) == 49
    assert all(entry.expected.size for entry in known["paulgraham"].files.values())
    for one in known.values():
        assert one.licence
        assert one.citation
        assert all(re.search(r"/[0-9a-f]{40}/", source.url) for source in one.sources.values() if source.url)


def test_names_of_the_manifests_are_names_of_tasks() -> None:
    """What a user types after --task can be typed after download."""
    from lcbench.tasks.registry import all_groups, all_tasks

    files = manifest.all_manifests()["longbench"].files.values()
    tasks = {task for entry in files for task in entry.tasks}
    ours = {name: cls for name, cls in all_tasks().items() if "longbench" in cls.datasets}
    assert tasks == set(ours)
    for name, group in all_groups().items():
        if set(group.members) <= set(ours):
            [selection] = manifest.resolve([name])
            assert {task for entry in selection.files for task in entry.tasks} >= set(group.members), name


def test_known_files_match_the_manifests(shared_data: Path) -> None:
    checked = 0
    for name, folder in (("longbench", "longbench"), ("paulgraham", "haystack/paulgraham")):
        for entry in manifest.manifest(name).files.values():
            path = shared_data / folder / entry.path
            if path.is_file():
                assert entry.expected.difference(digest_file(path)) == "", path
                checked += 1
    assert checked == 3 + 4 + 49


def test_names_are_found() -> None:
    def paths(*names: str) -> list[str]:
        return [entry.path for selection in manifest.resolve(names) for entry in selection.files]

    assert paths("qasper") == paths("QASPER", "qasper.jsonl") == ["qasper.jsonl"]
    assert paths("qasper-e") == ["qasper_e.jsonl"]
    assert paths("few-shot") == paths("few_shot") == ["trec.jsonl", "triviaqa.jsonl", "samsum.jsonl", "lsht.jsonl"]
    assert len(paths("longbench-e")) == 13
    assert len(paths("longbench")) == 38
    # 100-LongBench has a file of that name too; LongBench is the larger data set.
    assert paths("dataset2prompt.json") == paths("longbench/dataset2prompt.json") == ["config/dataset2prompt.json"]
    for word, name in (("dataset2prompt.json", "longbench"), ("100-longbench/dataset2prompt.json", "100-longbench")):
        assert [selection.manifest.name for selection in manifest.resolve([word])] == [name]
    assert len(paths("passkey")) == 49
    both = manifest.resolve(["trec", "few-shot", "worked.txt"])
    assert [selection.manifest.name for selection in both] == ["longbench", "paulgraham"]
    assert both[0].named == {"trec.jsonl"}
    assert both[1].named == {"worked.txt"}


def test_an_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(UnknownName, match="'qaspr'") as caught:
        manifest.resolve(["qaspr"])
    assert "'qasper'" in caught.value.next_step
    with pytest.raises(UnknownName, match="longbnch"):
        manifest.manifest("longbnch")
    with pytest.raises(UnknownName, match=r"of data set longbench"):
        manifest.manifest("longbench").file("nothing.jsonl")
    assert manifest.manifest("longbench").file("dataset2maxlen.json").path == "config/dataset2maxlen.json"


MISTAKES: list[tuple[str, str, type[LcbenchError], str]] = [
    ("title:", "titel:", UnknownName, "'titel' in manifest tiny.yaml"),
    ("name: tiny", "name: Tiny Data", BadValue, "'Tiny Data'"),
    ("licence: none\n", "", BadValue, "'licence' is missing"),
    ("rows: 7", "row: 7", UnknownName, "'row' in file 4 of manifest tiny.yaml"),
    ("rows: 7", "rows: -7", BadValue, "'rows'"),
    ("rows: 7", "rows: '7'", BadValue, "'rows'"),
    (", rows: 7", "", BadValue, "row count"),
    ("kind: text", "kind: texts", UnknownName, "'texts'"),
    ("path: one.jsonl", "path: ../one.jsonl", BadValue, r"'\.\./one\.jsonl'"),
    ("path: one.jsonl", "path: /one.jsonl", BadValue, "'/one"),
    ("path: one.jsonl", "path: .lock", BadValue, "'.lock'"),
    ("path: one.jsonl", "path: TWO.jsonl", BadValue, "listed twice"),
    ("source: web, kind: text", "source: wed, kind: text", UnknownName, "'wed'"),
    ("git_blob: ", "git_blob: x", BadValue, "git_blob"),
    ("tasks: [one]", "tasks: one", BadValue, "'tasks'"),
    ("optional: true", "optional: 1", BadValue, "'optional'"),
    ("length: int", "length: integer", UnknownName, "'integer' of field 'length'"),
    ("archive: data.zip", "archiv: data.zip", UnknownName, "'archiv'"),
    ("prefix: data/", "prefix: data", BadValue, "'data'"),
    ("hub: [new/tiny, old/tiny]", "hub: [tiny]", BadValue, "'tiny'"),
    ("hub: [new/tiny, old/tiny], ", "", BadValue, "either hub or url"),
    ("/web/}", "/web}", BadValue, "ending in '/'"),
    ("title: Tiny", "title: [", CorruptFile, "not YAML"),
    ("title: Tiny", "title: 3", BadValue, "'title'"),
]


@pytest.mark.parametrize(("old", "new", "kind", "words"), MISTAKES, ids=[f"{a}>{b}" for a, b, _, _ in MISTAKES])
def test_mistakes_in_a_manifest_are_named(tiny: Tiny, old: str, new: str, kind: type[LcbenchError], words: str) -> None:
    tiny.write(**{old: new})
    with pytest.raises(kind, match=words) as caught:
        manifest.all_manifests()
    assert type(caught.value) is kind


def test_the_nearest_key_is_offered(tiny: Tiny) -> None:
    tiny.write(**{"licence: none": "license: none"})
    with pytest.raises(UnknownName) as caught:
        manifest.all_manifests()
    assert "'licence'" in caught.value.next_step


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(
    st.sampled_from(["name", "title", "licence", "sources", "files", "schema", "url", "path", "x"]), x)))  # fmt: skip
def test_no_document_passes_unchecked(document: object) -> None:
    path = Path("anything.yaml")
    with pytest.raises(LcbenchError):
        manifest._manifest(yaml.safe_load(yaml.safe_dump(document)), f"manifest {path}")


def test_manifests_lie_in_the_package_or_beside_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout, ours = manifest.manifest_dir(), set(manifest.all_manifests())
    package = tmp_path / "site-packages" / "lcbench"
    package.mkdir(parents=True)
    monkeypatch.setattr(manifest.lcbench, "__file__", str(package / "__init__.py"))
    with pytest.raises(DataMissing, match="manifests are missing"):
        manifest.manifest_dir()
    shutil.copytree(checkout, package / "data_manifests")
    assert manifest.manifest_dir() == package / "data_manifests"
    assert set(manifest.all_manifests()) == ours


def test_the_wheel_packs_the_manifests() -> None:
    tomllib = pytest.importorskip("tomllib")
    root = Path(manifest.__file__).resolve().parents[3]
    if not (root / "pyproject.toml").is_file():
        pytest.skip("not a checkout")
    wheel = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"]["data_manifests"] == "lcbench/data_manifests"


TYPES: list[tuple[str, object, str]] = [
    ("string", "x", ""),
    ("string", 1, "a whole number, not string"),
    ("string", None, "null"),
    ("string?", None, ""),
    ("string", "\ud800", "surrogate"),
    ("int", 5, ""),
    ("int", True, "true or false"),
    ("int", 5.0, "a number"),
    ("int", 2**63 - 1, ""),
    ("int", 2**63, "64 bits"),
    ("float", 1, ""),
    ("float", "1", "text"),
    ("bool", True, ""),
    ("bool", 1, "whole number"),
    ("list[string]", ["a", "b"], ""),
    ("list[string]", "a", "text, not list"),
    ("list[string]", ["a", 2], r"\[1\] is a whole number"),
    ("list[string]?", None, ""),
    ("list[string?]", [None], ""),
    ("list[list[int]]", [[1], [2, 3]], ""),
    ("list[list[int]]", [[1], ["2"]], r"\[1\] \[0\] is text"),
]


@pytest.mark.parametrize(("text", "value", "problem"), TYPES)
def test_field_types(text: str, value: object, problem: str) -> None:
    kind = FieldType.parse(text)
    assert str(kind) == text
    found = kind.problem(value)
    assert re.search(problem, found) if problem else found == ""


def test_rows_have_every_field_and_no_other() -> None:
    schema = {"a": FieldType.parse("int"), "b": FieldType.parse("string?")}
    assert row_problem(schema, {"a": 1, "b": None}) == ""
    cases: list[tuple[object, str]] = [
        ([1], "a list, not an object"), ({"a": 1}, "'b' is missing"), ({"a": "1", "b": "x"}, "'a' is text"),
        ({"a": 1, "b": "x", "c": 1}, "'c' is not one"),
    ]  # fmt: skip
    check: Callable[[object], str] = lambda row: row_problem(schema, row)  # noqa: E731
    for row, words in cases:
        assert words in check(row)
