"""Tables: CNN/DailyMail and BioASQ as the hub keeps them, served by a stand-in on the loopback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from mirror_server import Mirror, Page
from pyarrow import parquet

from lcbench.data import store
from lcbench.errors import ChecksumMismatch

Cli = Callable[..., Any]
CNN = "1.0.0/test-00000-of-00001.parquet"
QUESTIONS, CORPUS = (f"{name}/test-00000-of-00001.parquet" for name in ("question-answer-passages", "text-corpus"))


def table(rows: list[dict[str, Any]]) -> bytes:
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(rows), sink, row_group_size=500)
    return bytes(sink.getvalue())


def articles(count: int) -> bytes:
    return table([{"article": f"article {i}", "highlights": f"point {i}", "id": f"{i:x}"} for i in range(count)])


def serve(mirror: Mirror, repository: str, path: str, body: bytes) -> Page:
    page = mirror.pages[f"/datasets/{repository}/resolve/main/{path}"] = Page(body)
    return page


def test_a_table_is_downloaded_counted_pinned_and_read(
    cli: Cli, own_home: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", mirror.url)
    page = serve(mirror, "abisee/cnn_dailymail", CNN, articles(11490))
    done = cli("download", "cnn_dailymail")
    assert done.code == 0, done.err
    assert "11490 rows" in done.out
    rows = store.read_rows(own_home, "cnn_dailymail", CNN, 1001)
    assert len(rows) == 1001
    assert rows[1000] == {"article": "article 1000", "highlights": "point 1000", "id": "3e8"}
    path = store.data_file(own_home, "cnn_dailymail", CNN).path
    path.write_bytes(articles(3))
    with pytest.raises(ChecksumMismatch):
        store.read_rows(own_home, "cnn_dailymail", CNN, 1)
    page.body, page.etag = articles(11491), '"v2"'  # the first download is what later ones must be
    done = cli("download", "cnn_dailymail")
    assert done.code == 2
    assert str(len(page.body)) in done.err
    page.body, page.etag = articles(11490), '"v3"'
    assert cli("download", "cnn_dailymail").code == 0
    assert len(store.read_rows(own_home, "cnn_dailymail", CNN, 5)) == 5


def test_a_table_of_unknown_length_and_more_columns(
    cli: Cli, own_home: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", mirror.url)
    asked = [{"question": "q", "answer": "a", "relevant_passage_ids": [1, 2], "id": 7}]
    serve(mirror, "enelpol/rag-mini-bioasq", QUESTIONS, table(asked))
    serve(mirror, "enelpol/rag-mini-bioasq", CORPUS, table([{"id": i, "passage": f"p{i}"} for i in range(3)]))
    done = cli("download", "bioasq")
    assert done.code == 0, done.err
    expected = [{"question": "q", "answer": "a", "relevant_passage_ids": [1, 2]}]
    assert store.read_rows(own_home, "bioasq", QUESTIONS) == expected
    assert store.read_rows(own_home, "bioasq", CORPUS, 2) == [{"id": 0, "passage": "p0"}, {"id": 1, "passage": "p1"}]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"not a table", "cannot be read as a parquet file"),
        (table([{"article": "a", "id": "1"}]), "has no column 'highlights'"),
        (table([{"article": "a", "highlights": None, "id": "1"}, {"article": "b", "highlights": "c", "id": "2"}]),
         "row 1: field 'highlights' is null"),
        (articles(5), "has 5 rows, not 11490"),
    ],
)  # fmt: skip
def test_what_is_no_such_table_is_refused(
    cli: Cli, own_home: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch, body: bytes, said: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", mirror.url)
    serve(mirror, "abisee/cnn_dailymail", CNN, body)
    done = cli("download", "cnn_dailymail")
    assert done.code == 2
    assert said in done.err
    assert not store.installed(own_home)


def test_the_beginning_of_a_table_from_a_folder(cli: Cli, own_home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "from/cnn_dailymail/1.0.0"
    folder.mkdir(parents=True)
    (folder / "test-00000-of-00001.first40.parquet").write_bytes(articles(40))
    done = cli("download", "cnn_dailymail", "--from", tmp_path / "from")
    assert done.code == 0, done.err
    assert "first 40 of 11490 rows" in done.out
    assert len(store.read_rows(own_home, "cnn_dailymail", CNN)) == 40
