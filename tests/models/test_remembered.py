"""Remembered token ids: those of the tokenizer, shared by tokenizers that split alike and by no others."""

from __future__ import annotations

from typing import Any

from lcbench.models.remembered import TokenMemory
from tiny import byte_tokenizer

TEXTS = ("", "the key is 4711")


class Counting:
    """A tokenizer of a stranger's: no class of transformers."""

    calls = 0

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        self.calls += 1
        return {"input_ids": [1, 2]}


def test_it_answers_as_the_tokenizer_does() -> None:
    plain = byte_tokenizer(chat=True, bos=True)
    remembered = TokenMemory().of(plain)
    for text in TEXTS:
        for special in (True, False):
            expected = plain(text, add_special_tokens=special)["input_ids"]
            for _ in range(2):
                assert remembered(text, add_special_tokens=special, verbose=False)["input_ids"] == expected
    assert remembered(TEXTS[1])["input_ids"] == plain(TEXTS[1])["input_ids"]
    ids = plain(TEXTS[1])["input_ids"]
    for skip in (True, False, True):
        assert remembered.decode(ids, skip_special_tokens=skip) == plain.decode(ids, skip_special_tokens=skip)
    assert remembered.bos_token == plain.bos_token
    offsets = remembered("ab", return_offsets_mapping=True)
    assert offsets["offset_mapping"] == plain("ab", return_offsets_mapping=True)["offset_mapping"]


def test_equal_tokenizers_share_and_others_do_not() -> None:
    memory = TokenMemory()
    one, same, other = byte_tokenizer(True, True), byte_tokenizer(True, True), byte_tokenizer(True, True)
    other.add_tokens(["key"])
    for tokenizer, computed in ((one, 1), (same, 1), (other, 2)):
        assert memory.of(tokenizer)("the key")["input_ids"] == tokenizer("the key")["input_ids"]
        assert memory.computed == computed
    assert memory.of(other)("the key")["input_ids"] != memory.of(one)("the key")["input_ids"]
    strangers = Counting(), Counting()
    for tokenizer in strangers:
        memory.of(tokenizer)("the key")
    assert [stranger.calls for stranger in strangers] == [1, 1], "nobody knows that they are alike"
    mine = memory.of(strangers[0])
    mine("the key"), mine("the key")
    assert strangers[0].calls == 2
