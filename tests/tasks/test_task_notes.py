"""What many tasks have in common is said once."""

from __future__ import annotations

from lcbench.tasks.notes import said_once


def test_equal_notes_share_a_line() -> None:
    notes = [
        ("a@1k", "built"),
        ("b", "subset"),
        ("a@2k", "built"),
        ("a@2k", "built"),
        ("c", ""),
        ("passkey", "passkey: x"),
    ]
    assert said_once(notes) == ["a@1k, a@2k: built", "b: subset", "passkey: x"]
    assert said_once((f"t@{n}k", "n") for n in range(1, 6)) == ["t@1k and 4 more tasks: n"]
