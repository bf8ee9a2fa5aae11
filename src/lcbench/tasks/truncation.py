"""Prompts longer than the window: cut in the middle, as LongBench does, or refused.

What is official (`LongBench/pred.py`), done by `middle`:

* The prompt alone is counted, before the chat format, with the special tokens the tokenizer adds (BOS counts).
* With more tokens than ``max_length``, ``half = max_length // 2`` tokens of each end are decoded, special tokens
  skipped, and joined by nothing; that text is wrapped and tokenized again. An odd ``max_length`` loses one token.
* The second tokenization may differ by a few tokens from ``max_length``: the BOS comes back, tokens merge or split at
  the seam. Nothing marks the cut.
* ``max_length`` is a table by model (3500 for a 4k model, 7500 for 8k, 31500 for 32k) whose head-room pays for the
  chat format and the answer.

What is ours, done by `fit`:

* Without an explicit length, ``max_length`` is the model's window less the answer and the chat format (`budget`), so
  every model uses its whole window and needs no table entry. To reproduce a published run give its table value as
  ``max_input_tokens``: then ``max_length`` is exactly that number and everything above holds to the token.
* In both cases the finished input (chat format included, tokenized again) plus the answer must fit the model's
  window. Where it does not, ``max_length`` is lowered by the excess and the cut is made again from the whole prompt,
  a few times at most. The official script would run over the window instead. With a published table value and the
  model it belongs to this never happens; `Fitted.shrunk` says when it did.

``exact ids`` (`exact_ids`, `fit_exact`) is the alternative that never tokenizes twice: the ids of the finished input
lose their middle, so the length is exact, no text changes at the seam, and the chat format stays whole.

Nothing here knows a tokenizer: ``encode`` turns text into ids, special tokens included as the tokenizer adds them;
``decode`` turns ids into text, special tokens skipped; ``finish`` turns the prompt's text into the ids the model is
fed (chat format included).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lcbench.errors import BadValue, SampleError

Encode = Callable[[str], Sequence[int]]
Decode = Callable[[Sequence[int]], str]

LEAST_LENGTH = 2
"""One token of each end; below that the halves are empty."""

_ROUNDS = 16


@dataclass(frozen=True)
class Cut:
    """What `middle` made of a text.

    Attributes:
        text: the prompt, shortened or as it was.
        tokens_before: tokens of the prompt given, special tokens included.
        tokens_after: tokens of ``text``, special tokens included; near ``max_length``, not equal to it.
        question_start: index in ``text`` where the question begins; None when unknown or when the cut runs into it.
    """

    text: str
    tokens_before: int
    tokens_after: int
    question_start: int | None = None


@dataclass(frozen=True)
class CutIds:
    """What `exact_ids` made of a list of ids.

    Attributes:
        ids: the first ``head`` and the last ``tail`` of those given, or all of them.
        tokens_before, tokens_after: how many there were and are.
        head, tail: how many of each end were kept; they sum to ``tokens_after``.
    """

    ids: Sequence[int]
    tokens_before: int
    tokens_after: int
    head: int
    tail: int

    def position(self, before: int) -> int | None:
        """Where the token that stood at ``before`` stands now; None when it was cut out."""
        if before < self.head:
            return before
        dropped = self.tokens_before - self.tokens_after
        return before - dropped if before >= self.head + dropped else None


@dataclass(frozen=True)
class Fitted:
    """A prompt made ready for a window.

    Attributes:
        ids: what the model is fed, chat format included.
        text: the prompt without chat format after the cut; None when ids were cut.
        tokens_before: tokens of the whole prompt, without chat format, special tokens included.
        max_length: the length asked of the cut; None when there is no limit.
        cut: whether anything was left out.
        question_start: as in `Cut`; None when ids were cut.
        shrunk: tokens by which ``max_length`` had to be lowered for the input and the answer to fit the window.
    """

    ids: Sequence[int]
    text: str | None
    tokens_before: int
    max_length: int | None
    cut: bool
    question_start: int | None = None
    shrunk: int = 0

    @property
    def truncated_from(self) -> int | None:
        """``tokens_before`` when the prompt was cut, else None: the field of the record."""
        return self.tokens_before if self.cut else None


def budget(window: int, answer_tokens: int, chat_overhead: int = 0) -> int:
    """Tokens a prompt may take: the window less the answer and the chat format.

    Args:
        window: positions of the model.
        answer_tokens: most new tokens of an answer.
        chat_overhead: tokens the chat format adds.

    Raises:
        BadValue: nothing is left for a prompt.
    """
    left = window - answer_tokens - chat_overhead
    if left < LEAST_LENGTH:
        chat = f" and the chat format of {chat_overhead}" if chat_overhead else ""
        raise BadValue(
            f"A window of {window} tokens has no room for a prompt beside an answer of {answer_tokens}{chat}.",
            "Use a model with a longer window, or a task with shorter answers.",
        )
    return left


def middle(text: str, max_length: int, encode: Encode, decode: Decode, question_start: int | None = None) -> Cut:
    """Cut the middle out of a prompt exactly as the official script does.

    Args:
        text: the prompt without chat format.
        max_length: the prompt is cut when it has more tokens than this; at least 2.
        question_start: index in ``text`` where the question begins.

    Raises:
        BadValue: ``max_length`` below 2 (a half would be empty, and Python's ``ids[-0:]`` is everything).
    """
    _check_length(max_length)
    ids = encode(text)
    if len(ids) <= max_length:
        return Cut(text, len(ids), len(ids), question_start)
    joined, start = _rejoin(text, ids, max_length, decode, question_start)
    return Cut(joined, len(ids), len(encode(joined)), start)


def exact_ids(ids: Sequence[int], max_length: int, fixed_head: int = 0, fixed_tail: int = 0) -> CutIds:
    """Leave out the middle of ``ids`` so that exactly ``max_length`` remain; an odd one goes to the end.

    Args:
        ids: the finished input.
        max_length: ids that may remain, the fixed ones included.
        fixed_head, fixed_tail: ids at the ends that are never cut and do not count in the halves (chat format).

    Raises:
        BadValue: ``max_length`` leaves fewer than 2 ids beside the fixed ones.
    """
    _check_length(max_length - fixed_head - fixed_tail)
    if len(ids) <= max_length:
        return CutIds(ids, len(ids), len(ids), len(ids), 0)
    head = fixed_head + (max_length - fixed_head - fixed_tail) // 2
    tail = max_length - head
    return CutIds([*ids[:head], *ids[len(ids) - tail :]], len(ids), max_length, head, tail)


def fit(
    text: str,
    *,
    window: int | None,
    answer_tokens: int,
    encode: Encode,
    decode: Decode,
    finish: Encode,
    question_start: int | None = None,
    chat_overhead: int = 0,
    max_input_tokens: int | None = None,
) -> Fitted:
    """Make a prompt ready: the official cut, and an input that fits the window together with its answer.

    Args:
        text: the prompt without chat format.
        window: positions of the model; None for a model without a limit.
        answer_tokens: most new tokens of an answer.
        finish: the prompt's text to the ids the model is fed.
        question_start: index in ``text`` where the question begins.
        chat_overhead: tokens the chat format adds, where it is known; an estimate is enough.
        max_input_tokens: the official ``max_length``, given by the user.

    Raises:
        BadValue: no room for a prompt at all. SampleError: this prompt cannot be made to fit.
    """
    limit = _limit(window, answer_tokens, chat_overhead, max_input_tokens)
    ids = encode(text)
    start = limit
    for _ in range(_ROUNDS):
        kept, question = text, question_start
        if limit is not None and len(ids) > limit:
            kept, question = _rejoin(text, ids, limit, decode, question_start)
        final = finish(kept)
        excess = 0 if window is None else len(final) + answer_tokens - window
        if excess <= 0:
            shortened = limit is not None and len(ids) > limit
            shrunk = (start or 0) - (limit or 0)
            return Fitted(final, kept, len(ids), limit, shortened, question, shrunk)
        limit = (len(ids) if limit is None else min(limit, len(ids))) - excess
        if limit < LEAST_LENGTH:
            break
    raise SampleError(
        f"The prompt of {len(ids)} tokens cannot be cut to fit a window of {window} with an answer of {answer_tokens}.",
        "Use a model with a longer window.",
    )


def fit_exact(
    text: str,
    *,
    window: int | None,
    answer_tokens: int,
    encode: Encode,
    finish: Encode,
    max_input_tokens: int | None = None,
) -> Fitted:
    """Make a prompt ready without tokenizing twice: cut the ids of the finished input.

    The chat format is found as the ids that the finished input has in common with the finished empty prompt at both
    ends; it is kept, and both halves are taken from the prompt. ``max_input_tokens`` limits the prompt, the window
    limits input plus answer.

    Raises:
        BadValue: no room for a prompt.
    """
    before, final = len(encode(text)), finish(text)
    limits = [] if window is None else [budget(window, answer_tokens)]
    if max_input_tokens is not None:
        _check_length(max_input_tokens)
        limits.append(max_input_tokens + max(0, len(final) - before))
    if not limits or len(final) <= min(limits):
        return Fitted(final, text, before, min(limits, default=None), cut=False)
    empty = finish("")
    head = _common(final, empty)
    tail = _common(final[::-1], empty[::-1][: len(empty) - head])
    if window is not None:
        budget(window, answer_tokens, head + tail)
    cut = exact_ids(final, min(limits), head, tail)
    return Fitted(cut.ids, None, before, min(limits), cut=True)


def require_fit(tokens: int, *, window: int | None, answer_tokens: int, max_input_tokens: int | None = None) -> None:
    """Refuse an input that is too long, for tasks whose prompts may not be cut.

    Args:
        tokens: of the finished input.

    Raises:
        SampleError: longer than ``max_input_tokens``, or input and answer longer than ``window``.
    """
    if max_input_tokens is not None and tokens > max_input_tokens:
        raise SampleError(
            f"The prompt has {tokens} tokens, more than --max-input-tokens {max_input_tokens}, and this task's "
            "prompts are not cut.",
            "Use shorter prompts (passkey@lengths=...) or a greater --max-input-tokens.",
        )
    if window is not None and tokens + answer_tokens > window:
        raise SampleError(
            f"The prompt of {tokens} tokens and an answer of {answer_tokens} do not fit the model's window of "
            f"{window}, and this task's prompts are not cut.",
            "Use shorter prompts (passkey@lengths=...), a model with a longer window, or a method that reads beyond it "
            "(`lcbench list methods`, category extend; em-llm, infllm, longcache).",
        )


def _limit(window: int | None, answer_tokens: int, chat_overhead: int, max_input_tokens: int | None) -> int | None:
    if max_input_tokens is not None:
        _check_length(max_input_tokens)
        return max_input_tokens
    return None if window is None else budget(window, answer_tokens, chat_overhead)


def _check_length(max_length: int) -> None:
    if max_length < LEAST_LENGTH:
        raise BadValue(
            f"A prompt cannot be cut to {max_length} tokens.", f"Allow {LEAST_LENGTH} or more (--max-input-tokens)."
        )


def _rejoin(
    text: str, ids: Sequence[int], max_length: int, decode: Decode, question_start: int | None
) -> tuple[str, int | None]:
    """The text without its middle, and where the question begins in it."""
    half = max_length // 2
    tail = decode(ids[len(ids) - half :])
    joined = decode(ids[:half]) + tail
    # Decoding is not always the inverse of encoding, so the question's place is looked up, not computed.
    question = None if question_start is None else text[question_start:]
    whole = question is not None and tail.endswith(question)
    start = len(joined) - len(question) if question is not None and whole else None
    return joined, start


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count
