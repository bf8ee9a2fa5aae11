from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcbench.data.rows import as_dataset, parse_object, parse_rows
from lcbench.data.schema import FieldType
from lcbench.errors import CorruptFile

SCHEMA = {
    "text": FieldType.parse("string"),
    "answers": FieldType.parse("list[string]"),
    "length": FieldType.parse("int"),
    "classes": FieldType.parse("list[string]?"),
}
GOOD = b'{"text": "a", "answers": ["x"], "length": 1, "classes": null}'

texts = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ["2020-01-01", "2020-01-01T00:00:00Z", "1", "1e5", "null", "true", "{}", '["a"]', "\u2028", "\r", "\x00", "NaN"]
)
rows = st.fixed_dictionaries(
    {
        "text": texts,
        "answers": st.lists(texts, max_size=3),
        "length": st.integers(-(2**63), 2**63 - 1),
        "classes": st.none() | st.lists(texts, max_size=2),
    }
)


@settings(max_examples=60, deadline=None)
@given(st.lists(rows, max_size=5), st.booleans())
def test_values_come_back_as_written(written: list[dict[str, object]], escaped: bool) -> None:
    content = b"".join(json.dumps(row, ensure_ascii=escaped).encode() + b"\n" for row in written)
    parsed = parse_rows(content, SCHEMA, "x.jsonl", "")
    assert parsed == written
    back = as_dataset(parsed, SCHEMA).to_list()
    assert back == written
    assert [list(row) for row in back] == [list(SCHEMA)] * len(written)
    assert all(type(row["length"]) is int for row in back)


def test_the_json_loader_of_datasets_would_change_values(tmp_path: object) -> None:
    """Why `rows` reads the lines itself; when this fails, the loader has become exact."""
    import datasets

    row = {"text": "2020-01-01", "answers": ["2020-01-01"], "length": 1, "classes": None}
    file = f"{tmp_path}/x.jsonl"
    with open(file, "w") as out:
        out.write(json.dumps(row) + "\n")
    features = as_dataset([], SCHEMA).features
    loaded = datasets.load_dataset(
        "json", data_files=file, features=features, cache_dir=f"{tmp_path}/cache", split="train"
    )
    assert loaded.to_list() != [row]
    assert as_dataset([row], SCHEMA).to_list() == [row]


BAD: list[tuple[bytes, str]] = [
    (b'{"text": "a", "answers": ["x"], "length": 1', "not JSON"),
    (b"garbage", "not JSON"),
    (b"", "empty"),
    (b"   ", "empty"),
    (b"[1]", "a list, not an object"),
    (GOOD.replace(b'"a"', b'"\xff"'), r"not UTF-8 text \(byte 11\)"),
    (GOOD.replace(b'"a"', b'"\\ud800"'), "'text' holds half of a surrogate"),
    (GOOD.replace(b"1,", b'"1",'), "'length' is text, not int"),
    (GOOD.replace(b"1,", b"1.5,"), "'length' is a number, not int"),
    (GOOD.replace(b"1,", b"true,"), "'length' is true or false"),
    (GOOD.replace(b"1,", b"1" * 5000 + b","), "not JSON that can be read|64 bits"),
    (GOOD.replace(b'"length": 1, ', b""), "'length' is missing"),
    (GOOD.replace(b'["x"]', b'["x", 3]'), r"'answers' \[1\] is a whole number"),
    (GOOD.replace(b'["x"]', b"null"), "'answers' is null"),
    (GOOD.replace(b"}", b', "more": 1}'), "'more' is not one"),
    (GOOD + GOOD, "not JSON"),
    (b"[" * 100_000, "not JSON that can be read"),
]


@pytest.mark.parametrize(("line", "words"), BAD, ids=[words for _, words in BAD])
@pytest.mark.parametrize("number", [1, 3])
def test_a_corrupted_line_is_named(line: bytes, words: str, number: int) -> None:
    lines = [GOOD, GOOD, GOOD]
    lines[number - 1] = line
    with pytest.raises(CorruptFile, match=rf"x\.jsonl, line {number}: .*(?:{words})") as caught:
        parse_rows(b"\n".join([*lines, b""]), SCHEMA, "x.jsonl", "Do this.")
    assert caught.value.next_step == "Do this."


def test_line_ends() -> None:
    assert len(parse_rows(GOOD + b"\n" + GOOD, SCHEMA, "x", "")) == 2, "the last line may lack its end"
    assert len(parse_rows(GOOD + b"\r\n" + GOOD + b"\r\n", SCHEMA, "x", "")) == 2
    assert parse_rows(GOOD.replace(b", ", b",\r"), SCHEMA, "x", "") == parse_rows(GOOD, SCHEMA, "x", "")
    assert parse_rows(b"", SCHEMA, "x", "") == []
    with pytest.raises(CorruptFile, match="line 1"):
        parse_rows(b"\xef\xbb\xbf" + GOOD, SCHEMA, "x", "")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{\n"a": }', r"c\.json, line 2: not JSON"),
        (b'{\n\n"a": "\xff"}', r"c\.json, line 3: not UTF-8"),
        (b"[]", "not a JSON object"),
        (b"[" * 100_000, "not JSON"),
        (b"", "line 1"),
    ],
)
def test_a_corrupted_object_is_named(content: bytes, words: str) -> None:
    assert parse_object(b'{"a": "\xc3\xa4"}', "c.json", "") == {"a": "ä"}
    with pytest.raises(CorruptFile, match=words):
        parse_object(content, "c.json", "")
