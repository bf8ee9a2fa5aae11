"""Token ids as pieces of text, and what a rewritten prompt lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lcbench.engine.inspection.text import pieces_of, token_texts
from lcbench.inspected import Piece
from tiny import byte_tokenizer

TOKENIZER = byte_tokenizer(bos=False)


def ids_of(text: str) -> list[int]:
    return [int(i) for i in TOKENIZER(text, add_special_tokens=False)["input_ids"]]


@given(st.text(max_size=40))
def test_texts_of_tokens_are_the_text(text: str) -> None:
    ids = ids_of(text)
    texts = token_texts(TOKENIZER, ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == text


def test_a_character_stands_at_its_last_token() -> None:
    assert token_texts(TOKENIZER, ids_of("aé🙂b")) == ["a", "", "é", "", "", "", "🙂", "b"]


def test_broken_characters_do_not_swallow_what_follows() -> None:
    texts = token_texts(TOKENIZER, [0xF0, 0x9F, *b"abc"])
    assert "".join(texts).endswith("abc")
    assert texts[-1] == "c"


def test_words_keep_their_spaces_where_a_tokenizer_drops_the_first_one() -> None:
    vocab = {"<unk>": 0, "▁the": 1, "▁key": 2, "s": 3}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    assert fast.decode([2]) == "key"
    assert token_texts(fast, [1, 2, 3, 1]) == ["the", " key", "s", " the"]


def test_what_was_cut_and_added() -> None:
    before = "One two three. Gone entirely! Four five six."
    after = "One three. Four FIVE six."
    assert pieces_of(before, after) == [
        Piece("One ", "kept"),
        Piece("two ", "cut"),
        Piece("three. ", "kept"),
        Piece("Gone entirely! ", "cut"),
        Piece("Four ", "kept"),
        Piece("five ", "cut"),
        Piece("FIVE ", "added"),
        Piece("six.", "kept"),
    ]


@given(st.text("ab .\n", max_size=60), st.text("ab .\n", max_size=60))
def test_pieces_give_both_texts_back(before: str, after: str) -> None:
    pieces = pieces_of(before, after)
    old = "".join(piece.text for piece in pieces if piece.kind != "added")
    assert "".join(old.split()) == "".join(before.split())
    assert "".join(piece.text for piece in pieces if piece.kind != "cut") == after
    assert all(piece.text.strip() for piece in pieces if piece.kind != "kept")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("The statement ***\nends here.", "The statement *** ends here."),
        ("one  two\n\nthree. Four", "one two three. Four"),
        ("a b", "ab"),
        ("end ", "end"),
    ],
)
def test_white_space_alone_is_no_change(before: str, after: str) -> None:
    assert pieces_of(before, after) == [Piece(after, "kept")]


@pytest.mark.parametrize("words", [20_000])
def test_long_prompts_are_compared_soon(words: int) -> None:
    sentences = [f"the sentence number {i} has the usual words in it. " for i in range(words // 9)]
    before, after = "".join(sentences), "".join(s for i, s in enumerate(sentences) if i % 3)
    pieces = pieces_of(before, after)
    assert sum(len(piece.text) for piece in pieces if piece.kind == "cut") == len(before) - len(after)
