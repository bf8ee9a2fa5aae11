"""Prediction files: what is read, what is refused and how, and that nothing else than our errors comes out."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lcbench.errors import CorruptFile, LcbenchError, UnknownName, UsageError
from lcbench.scoring import files
from lcbench.scoring.files import dataset_of, find_files, read_file
from lcbench.scoring.run import score_path

GOOD = '{"pred": "Paris", "answers": ["Paris"], "all_classes": null, "length": 10}'


def _file(tmp_path: Path, content: bytes | str, name: str = "qasper.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "dataset"),
    [
        ("qasper.jsonl", "qasper"),
        ("qasper.jsonl.gz", "qasper"),
        ("gov_report_e.FullKV.first10.jsonl.gz", "gov_report_e"),
        ("passkey@depths=0.5.jsonl", "passkey@depths=0.5"),
        ("passkey@depths=0.5.jsonl.gz", "passkey@depths=0.5"),
    ],
)
def test_dataset_is_the_file_name_up_to_the_first_dot(name: str, dataset: str) -> None:
    assert dataset_of(Path("some.dir") / name) == dataset


def test_plain_and_packed_files_are_read(tmp_path: Path, write_rows: Any, row: Any) -> None:
    rows = [row(pred="a\u2028b\x85c 答案", length=4000), row(all_classes=["x"])]
    for name in ("qasper.jsonl", "qasper.jsonl.gz"):
        task = read_file(write_rows(tmp_path / name, rows))
        assert (task.task, task.facts.metric, task.benchmark) == ("qasper", "qa_f1", "longbench")
        assert [s.prediction for s in task.samples] == ["a\u2028b\x85c 答案", "Paris"]
        assert task.samples[0].length == 4000
        assert task.all_classes == ("x",)


@pytest.mark.parametrize("text", [GOOD, GOOD + "\n", GOOD + "\r\n", GOOD + "\n\n\n", "\ufeff" + GOOD])
def test_line_ends_and_byte_order_marks_do_not_matter(tmp_path: Path, text: str) -> None:
    assert len(read_file(_file(tmp_path, text)).samples) == 1


def test_fields_that_the_metric_does_not_need_may_be_missing(tmp_path: Path) -> None:
    path = _file(tmp_path, '{"pred": "Paris", "answers": ["Paris"]}')
    assert read_file(path).samples[0].length is None
    assert score_path(path).methods[tmp_path.name].tasks["qasper"].score == 100.0


@pytest.mark.parametrize(
    ("content", "line", "why"),
    [
        (GOOD + "\n{broken\n", 2, "not valid JSON"),
        (GOOD + "\n\n" + GOOD, 2, "an empty line"),
        (GOOD + "\n[1]", 2, "not a JSON object"),
        (GOOD[:-20], 1, "not valid JSON"),
        ('{"answers": []}', 1, "'pred' is missing"),
        ('{"pred": "x"}', 1, "'answers' is missing"),
        ('{"pred": 3, "answers": []}', 1, "'pred' is not text"),
        ('{"pred": null, "answers": []}', 1, "'pred' is not text"),
        ('{"pred": "x", "answers": "Paris"}', 1, "'answers' is not a list of texts"),
        ('{"pred": "x", "answers": [1]}', 1, "'answers' is not a list of texts"),
        ('{"pred": "x", "answers": [], "all_classes": "a"}', 1, "'all_classes'"),
        ('{"pred": "x", "answers": [], "length": "long"}', 1, "'length' is not a number"),
        ('{"pred": "x", "answers": [], "length": NaN}', 1, "'length' is not a number"),
        ('{"pred": "x", "answers": [], "length": true}', 1, "'length' is not a number"),
        ('{"pred": "x", "answers": [], "length": -1}', 1, "'length' is not a number"),
        ('{"pred": "x", "answers": [], "length": 1e999}', 1, "'length' is not a number"),
        ('{"pred": "x", "answers": [], "status": "done"}', 1, "'status'"),
        ("[" * 100_000, 1, "not valid JSON"),
        (GOOD.encode() + b"\n\xff\xfe\n", 2, "not UTF-8"),
        ("1" * 5000, 1, "not "),
    ],
)
def test_a_bad_line_is_refused_by_file_and_line(tmp_path: Path, content: bytes | str, line: int, why: str) -> None:
    path = _file(tmp_path, content)
    with pytest.raises(CorruptFile) as caught:
        score_path(path)
    assert f"{path}, line {line}: " in caught.value.message
    assert why in caught.value.message
    assert caught.value.next_step


def test_a_length_of_hundreds_of_digits_is_a_length(tmp_path: Path) -> None:
    assert score_path(_file(tmp_path, '{"pred": "x", "answers": [], "length": 1' + "0" * 400 + "}")).n_error == 0


@pytest.mark.parametrize("content", ["", "\n\n", "  \n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(CorruptFile, match="holds no predictions"):
        read_file(_file(tmp_path, content))


def test_what_is_no_whole_gzip_file_is_refused(tmp_path: Path) -> None:
    packed = gzip.compress(GOOD.encode() * 50)
    damaged = packed[:20] + bytes([packed[20] ^ 255]) + packed[21:]
    for content in (GOOD.encode(), packed[:-4], packed[: len(packed) // 2], damaged, b""):
        path = _file(tmp_path, content, "qasper.jsonl.gz")
        with pytest.raises(CorruptFile, match=r"qasper\.jsonl\.gz"):
            read_file(path)
    with pytest.raises(CorruptFile, match="not UTF-8"):
        read_file(_file(tmp_path, packed))


def test_a_gzip_fault_names_the_line_it_begins_in(tmp_path: Path) -> None:
    import random

    letters = random.Random(1)
    lines = [json.dumps({"pred": letters.randbytes(3000).hex(), "answers": []}) for _ in range(100)]
    packed = gzip.compress("\n".join(lines).encode())
    path = _file(tmp_path, packed[: len(packed) // 2], "qasper.jsonl.gz")
    with pytest.raises(CorruptFile, match=r"qasper\.jsonl\.gz, line (\d+): the gzip file breaks off here") as caught:
        read_file(path)
    assert 30 < int(caught.value.message.split("line ")[1].split(":")[0]) <= 51
    with pytest.raises(CorruptFile, match="line 1: not a sound gzip file"):
        read_file(_file(tmp_path, GOOD, "qasper.jsonl.gz"))


def test_a_file_that_unpacks_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_BYTES", 1 << 20)
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    data = packer.compress(b" " * (4 << 20)) + packer.flush()
    with pytest.raises(CorruptFile, match="holds more than"):
        read_file(_file(tmp_path, data, "qasper.jsonl.gz"))


def test_unknown_names_offer_the_nearest(tmp_path: Path) -> None:
    path = _file(tmp_path, GOOD, "qaspr.jsonl")
    with pytest.raises(UnknownName, match="'qaspr'") as caught:
        read_file(path)
    assert str(path) in caught.value.message
    assert "'qasper'" in caught.value.next_step


def test_two_files_of_one_dataset_are_refused(tmp_path: Path) -> None:
    for name in ("qasper.jsonl", "qasper.old.jsonl", ".qasper.jsonl", "notes.txt"):
        _file(tmp_path, GOOD, name)
    with pytest.raises(UsageError, match=r"qasper.jsonl and qasper.old.jsonl"):
        find_files(tmp_path)


def test_of_the_lines_of_one_sample_of_a_run_the_last_counts(tmp_path: Path) -> None:
    lines = [
        {"pred": "", "answers": ["Paris"], "_id": "a", "status": "error", "error": "no memory", "task_version": 1},
        {"pred": "London", "answers": ["Paris"], "_id": "b", "status": "ok", "task_version": 1},
        {"pred": "Paris", "answers": ["Paris"], "_id": "a", "status": "ok", "task_version": 2},
    ]
    task = read_file(_file(tmp_path, "\n".join(map(json.dumps, lines))))
    assert [(s.prediction, s.where) for s in task.samples] == [("Paris", "line 3"), ("London", "line 2")]
    assert task.versions == (1, 2)


def test_rows_without_ids_are_all_kept(tmp_path: Path) -> None:
    assert len(read_file(_file(tmp_path, GOOD + "\n" + GOOD)).samples) == 2


def test_contexts_in_the_file_tell_which_rows_belong_together(tmp_path: Path) -> None:
    rows = [{"pred": "x", "answers": [], "context": c} for c in ("one", "two", "one")]
    a, b, c = (s.cluster for s in read_file(_file(tmp_path, "\n".join(map(json.dumps, rows)))).samples)
    assert a == c != b


@given(st.binary(max_size=200), st.sampled_from(["qasper.jsonl", "qasper.jsonl.gz", "trec.jsonl", "lcc_e.jsonl"]))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_give_a_score_or_one_of_our_errors(tmp_path: Path, content: bytes, name: str) -> None:
    _survives(_file(tmp_path, content, name))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["pred", "answers", "all_classes", "length", "_id", "status", "meta", "context", "task_version"]


@given(
    st.lists(st.dictionaries(st.sampled_from(FIELDS), JSON | st.lists(st.text(max_size=4), max_size=3)), max_size=4),
    st.sampled_from(["qasper", "trec", "passage_retrieval_en", "lcc_e", "vcsum", "passkey", "passkey@digits=64"]),
)
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_rows_give_a_score_or_one_of_our_errors(tmp_path: Path, rows: list[dict[str, Any]], task: str) -> None:
    text = "\n".join(json.dumps({"pred": "a", "answers": ["a"], **row}) for row in rows)
    _survives(_file(tmp_path, text, f"{task}.jsonl"))


def _survives(path: Path) -> None:
    said, scores = "", {}
    try:
        scores = score_path(path).to_dict()
    except LcbenchError as error:
        said = error.message
    assert scores or path.name in said
    json.dumps(scores, allow_nan=False)


def test_where_the_metric_counts_answers_may_be_numbers_as_the_official_one_takes_them(tmp_path: Path) -> None:
    """count_score compares ``str(number) == str(ground_truth)``: 3 matches "3", 3.0 does not, true is refused."""
    path = tmp_path / "passage_count.jsonl"
    path.write_text('{"pred": "3", "answers": [3]}\n{"pred": "3", "answers": [3.0]}\n')
    assert [sample.answers for sample in read_file(path).samples] == [("3",), ("3.0",)]
    assert score_path(path).methods[tmp_path.name].tasks["passage_count"].score == 50.0
    path.write_text('{"pred": "3", "answers": [3]}\n{"pred": "3", "answers": [true]}\n')
    with pytest.raises(CorruptFile, match="line 2: 'answers' is not a list of texts"):
        read_file(path)
