"""The middle cut against a slow rewriting of the official rule, on a tokenizer whose pieces merge at the seam."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcbench.errors import BadValue, SampleError
from lcbench.tasks.truncation import budget, exact_ids, fit, fit_exact, middle, require_fit

BOS = 0
PIECE = re.compile(r"[a-z]{1,4}|\s+|[^a-z\s]", re.DOTALL)


class Pieces:
    """Words of up to four letters, runs of blanks, single other characters; a BOS in front. Cutting inside a word and
    joining again changes the number of tokens, as it does with real vocabularies."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {"<bos>": BOS}
        self.texts = [""]

    def encode(self, text: str) -> list[int]:
        ids = [BOS]
        for piece in PIECE.findall(text):
            if piece not in self.ids:
                self.ids[piece] = len(self.texts)
                self.texts.append(piece)
            ids.append(self.ids[piece])
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.texts[i] for i in ids)

    def wrap(self, text: str) -> list[int]:
        return self.encode(f"[user] {text} [assistant] ")


def official(tokenizer: Pieces, prompt: str, max_length: int) -> str:
    """The rule of longbench.md section 2 step 3, written down once more."""
    ids = tokenizer.encode(prompt)
    if len(ids) > max_length:
        half = int(max_length / 2)
        first, last = [], []
        for i in range(half):
            first.append(ids[i])
            last.insert(0, ids[len(ids) - 1 - i])
        prompt = tokenizer.decode(first) + tokenizer.decode(last)
    return prompt


texts = st.text(st.sampled_from("abcdefg .\n?{}é"), max_size=300)


@given(text=texts, max_length=st.integers(2, 80))
def test_middle_is_the_official_rule(text: str, max_length: int) -> None:
    tokenizer = Pieces()
    cut = middle(text, max_length, tokenizer.encode, tokenizer.decode)
    assert cut.text == official(tokenizer, text, max_length)
    assert cut.tokens_before == len(tokenizer.encode(text))
    assert cut.tokens_after == len(tokenizer.encode(cut.text))


def test_seam_merges_and_odd_length_loses_a_token() -> None:
    tokenizer = Pieces()
    text = "a b c d e f g h"  # 15 pieces and BOS
    even = middle(text, 6, tokenizer.encode, tokenizer.decode)
    assert even.text == "a g h"  # BOS, a, blank | g, blank, h
    assert even.tokens_after == 6
    odd = middle(text, 7, tokenizer.encode, tokenizer.decode)
    assert odd.text == even.text
    merged = middle("abcd" * 5, 4, tokenizer.encode, tokenizer.decode)  # 6 tokens with BOS
    assert merged.text == "abcd" * 3
    assert merged.tokens_after == 4
    blanks = middle("a" + " . " * 6, 5, tokenizer.encode, tokenizer.decode)
    assert (blanks.tokens_before, blanks.text, blanks.tokens_after) == (15, "a. ", 4)


def test_prompt_of_exactly_the_limit_is_left_alone() -> None:
    tokenizer = Pieces()
    text = "ab cd ef"
    assert middle(text, 6, tokenizer.encode, tokenizer.decode, 3).text == text
    assert middle(text, 6, tokenizer.encode, tokenizer.decode, 3).question_start == 3
    assert middle(text, 5, tokenizer.encode, tokenizer.decode).text != text
    odd = "ab cd e"
    assert len(tokenizer.encode(odd + "?")) == 7
    assert middle(odd + "?", 7, tokenizer.encode, tokenizer.decode).text == odd + "?"
    fitted = fit(
        odd + "?",
        window=9,
        answer_tokens=2,
        encode=tokenizer.encode,
        decode=tokenizer.decode,
        finish=tokenizer.encode,
    )
    assert (fitted.text, fitted.cut) == (odd + "?", False)


def test_question_is_found_again_or_given_up() -> None:
    tokenizer = Pieces()
    context, question = "word " * 50, "\nwho?"
    cut = middle(context + question, 20, tokenizer.encode, tokenizer.decode, len(context))
    assert cut.question_start is not None
    assert cut.text[cut.question_start :] == question
    long_question = "why " * 30
    cut = middle(context + long_question, 20, tokenizer.encode, tokenizer.decode, len(context))
    assert cut.question_start is None


@pytest.mark.parametrize("max_length", [1, 0, -5])
def test_lengths_without_halves_are_refused(max_length: int) -> None:
    tokenizer = Pieces()
    with pytest.raises(BadValue):
        middle("a b c", max_length, tokenizer.encode, tokenizer.decode)
    with pytest.raises(BadValue):
        exact_ids([1, 2, 3], max_length)


@given(count=st.integers(0, 60), max_length=st.integers(8, 70), head=st.integers(0, 3), tail=st.integers(0, 3))
def test_exact_ids(count: int, max_length: int, head: int, tail: int) -> None:
    ids = list(range(count))
    cut = exact_ids(ids, max_length, head, tail)
    assert len(cut.ids) == cut.tokens_after == min(count, max_length) == cut.head + cut.tail
    assert cut.tokens_before == count
    assert list(cut.ids) == ids[: cut.head] + ids[count - cut.tail :]
    if count > max_length:
        assert cut.head - head == (max_length - head - tail) // 2
        assert cut.tail - tail - (cut.head - head) in (0, 1)
    for before in ids:
        now = cut.position(before)
        assert (cut.ids[now] == before) if now is not None else before not in cut.ids


def test_exact_ids_selects_what_the_official_halves_select() -> None:
    tokenizer = Pieces()
    ids = tokenizer.encode("a b c d e f g h")
    assert list(exact_ids(ids, 6).ids) == ids[:3] + ids[-3:]


def test_budget() -> None:
    assert budget(8192, 128) == 8064
    assert budget(8192, 128, 30) == 8034
    with pytest.raises(BadValue, match="512"):
        budget(500, 512)
    with pytest.raises(BadValue, match="chat format of 40"):
        budget(553, 512, 40)


@given(
    text=texts,
    window=st.integers(25, 120),
    answer=st.integers(1, 8),
    overhead=st.sampled_from([0, 7]),
    limit=st.none() | st.integers(2, 200),
    chat=st.booleans(),
)
def test_fit_always_fits(text: str, window: int, answer: int, overhead: int, limit: int | None, chat: bool) -> None:
    tokenizer = Pieces()
    finish = tokenizer.wrap if chat else tokenizer.encode
    fitted = fit(
        text,
        window=window,
        answer_tokens=answer,
        encode=tokenizer.encode,
        decode=tokenizer.decode,
        finish=finish,
        chat_overhead=overhead,
        max_input_tokens=limit,
    )
    assert len(fitted.ids) + answer <= window
    assert fitted.text is not None
    assert list(fitted.ids) == finish(fitted.text)
    assert fitted.max_length is not None
    assert fitted.text == official(tokenizer, text, fitted.max_length)
    assert fitted.cut == (fitted.tokens_before > fitted.max_length)
    assert fitted.truncated_from == (fitted.tokens_before if fitted.cut else None)
    wanted = limit if limit is not None else window - answer - overhead
    assert fitted.max_length == wanted - fitted.shrunk
    if fitted.shrunk:  # only where the official cut would have run over the window
        assert len(finish(official(tokenizer, text, wanted))) + answer > window


@given(text=texts, limit=st.integers(2, 60))
def test_explicit_length_is_exactly_the_official_one(text: str, limit: int) -> None:
    tokenizer = Pieces()
    fitted = fit(
        text,
        window=1000,
        answer_tokens=100,
        encode=tokenizer.encode,
        decode=tokenizer.decode,
        finish=tokenizer.wrap,
        max_input_tokens=limit,
    )
    assert fitted.text == official(tokenizer, text, limit)
    assert (fitted.max_length, fitted.shrunk) == (limit, 0)


def test_growing_seam_is_cut_again() -> None:
    """A tokenizer that needs two more tokens after every cut: one round is not enough."""

    def encode(text: str) -> list[int]:
        return [ord(c) for c in text] + [1] * (2 * text.count("#"))

    def decode(ids: Sequence[int]) -> str:
        return "".join(chr(i) for i in ids if i != 1) + "#"

    fitted = fit("x" * 50, window=30, answer_tokens=5, encode=encode, decode=decode, finish=encode)
    assert len(fitted.ids) <= 25
    assert fitted.shrunk > 0
    assert fitted.truncated_from == 50


def test_large_unknown_chat_format_is_paid_for_at_once() -> None:
    tokenizer = Pieces()
    fitted = fit(
        "word " * 500,
        window=200,
        answer_tokens=20,
        encode=tokenizer.encode,
        decode=tokenizer.decode,
        finish=lambda text: tokenizer.encode(". " * 50 + text),
    )
    assert 170 <= len(fitted.ids) <= 180
    assert fitted.shrunk == 180 - (fitted.max_length or 0) >= 99


def test_no_window_no_cut_and_no_room_is_said() -> None:
    tokenizer = Pieces()
    text = "word " * 500
    fitted = fit(
        text, window=None, answer_tokens=9, encode=tokenizer.encode, decode=tokenizer.decode, finish=tokenizer.encode
    )
    assert (fitted.text, fitted.cut, fitted.max_length, fitted.truncated_from) == (text, False, None, None)

    def huge_chat(prompt: str) -> list[int]:
        return tokenizer.encode(". " * 40 + prompt)

    with pytest.raises(SampleError, match="cannot be cut to fit"):
        fit(text, window=60, answer_tokens=9, encode=tokenizer.encode, decode=tokenizer.decode, finish=huge_chat)
    with pytest.raises(BadValue):
        fit(text, window=10, answer_tokens=9, encode=tokenizer.encode, decode=tokenizer.decode, finish=huge_chat)


@given(text=texts, window=st.integers(25, 120), limit=st.none() | st.integers(4, 200), chat=st.booleans())
def test_fit_exact_is_exact_and_keeps_the_chat_format(text: str, window: int, limit: int | None, chat: bool) -> None:
    tokenizer = Pieces()
    finish = tokenizer.wrap if chat else tokenizer.encode
    whole = finish(text)
    fitted = fit_exact(
        text, window=window, answer_tokens=5, encode=tokenizer.encode, finish=finish, max_input_tokens=limit
    )
    overhead = len(whole) - len(tokenizer.encode(text))
    allowed = min(window - 5, window if limit is None else limit + max(0, overhead))
    assert len(fitted.ids) == min(len(whole), allowed)
    assert fitted.cut == (len(whole) > allowed)
    if chat and fitted.cut:
        prefix, suffix = tokenizer.encode("[user]"), tokenizer.encode("[assistant]")[1:]
        assert list(fitted.ids[: len(prefix)]) == prefix
        assert list(fitted.ids[-len(suffix) - 1 : -1]) == suffix


def test_require_fit() -> None:
    require_fit(100, window=128, answer_tokens=28)
    require_fit(10**6, window=None, answer_tokens=28)
    with pytest.raises(SampleError, match="window of 128"):
        require_fit(101, window=128, answer_tokens=28)
    with pytest.raises(SampleError, match="--max-input-tokens 99"):
        require_fit(100, window=None, answer_tokens=1, max_input_tokens=99)


def test_official_rule_on_a_hugging_face_tokenizer(shared_data: Path) -> None:
    """Real text and a fast tokenizer: the halves are slices of one tensor there, lists of ids here."""
    import json

    tiny = pytest.importorskip("tiny")
    tokenizer = tiny.byte_tokenizer()
    with (shared_data / "longbench" / "qasper.first18.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][:3]
    for row, max_length in zip(rows, (2000, 2001, 3500), strict=True):
        prompt = f"Article: {row['context']}\n\nQuestion: {row['input']}\n\nAnswer:"
        tensor = tokenizer(prompt, truncation=False, return_tensors="pt").input_ids[0]
        half = max_length // 2
        expected = tokenizer.decode(tensor[:half], skip_special_tokens=True)
        expected += tokenizer.decode(tensor[-half:], skip_special_tokens=True)
        cut = middle(
            prompt,
            max_length,
            lambda text: tokenizer(text).input_ids,
            lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
            prompt.index("\n\nQuestion:"),
        )
        assert cut.text == expected
        assert cut.question_start is not None
        assert cut.text[cut.question_start :].startswith("\n\nQuestion:")
