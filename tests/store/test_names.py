from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcbench.store.names import file_name, identity_of


@pytest.mark.parametrize("identity", ["kivi@bits=2", "snapkv@budget=0.25,window=32", "qasper", "h2o-x_y@a=1e-05"])
def test_usual_ids_are_their_own_names(identity: str) -> None:
    assert file_name(identity) == identity


@pytest.mark.parametrize(
    ("identity", "name"),
    [
        ("100-longbench/kv@16k", "100-longbench%2Fkv@16k"),
        ("..", "%2E."),
        ("../../etc/passwd", "%2E.%2F..%2Fetc%2Fpasswd"),
        (".hidden", "%2Ehidden"),
        ("/abs", "%2Fabs"),
        ("a%2Fb", "a%252Fb"),
        ("a b:c*", "a%20b%3Ac%2A"),
        ("a\x00b", "a%00b"),
    ],
)
def test_dangerous_ids_are_encoded(identity: str, name: str) -> None:
    assert file_name(identity) == name
    assert identity_of(name) == identity


@given(st.text(st.characters(), max_size=40))
def test_names_are_safe_and_go_back(identity: str) -> None:
    name = file_name(identity)
    assert name not in ("", ".", "..")
    assert "/" not in name
    assert "\0" not in name
    assert not name.startswith(".")
    assert name.isascii()
    if "~" not in name:
        assert identity_of(name) == identity


@given(st.sets(st.text(st.characters(), min_size=100, max_size=400), min_size=2, max_size=6))
def test_long_ids_get_short_names_of_their_own(identities: set[str]) -> None:
    names = {file_name(identity) for identity in identities}
    assert len(names) == len(identities)
    assert all(len(name) <= 200 for name in names)


def test_a_shortened_name_cannot_be_taken_for_an_id(tmp_path: Path) -> None:
    name = file_name("m@" + ",".join(f"parameter{i}=ü" for i in range(60)))
    assert len(name) <= 200
    (tmp_path / f"{name}.jsonl").touch()
    assert f"{name}.jsonl" in os.listdir(tmp_path)
    with pytest.raises(ValueError, match=r"run\.json"):
        identity_of(name)
    assert "~" not in file_name("a~b")
