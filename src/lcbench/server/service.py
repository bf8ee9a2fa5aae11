"""What the server can do: tokenize a request, answer it with the method, and hand out text as it grows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lcbench.engine.single import answer_one
from lcbench.engine.stacked import Rules
from lcbench.errors import ModelError
from lcbench.methods.base import Method
from lcbench.methods.prompted import Prompted
from lcbench.models.chat import encode_messages, encode_prompt
from lcbench.models.info import LoadedModel

_NO_WINDOW = 1 << 20  # what is promised where nothing limits it
_TORN = "\N{REPLACEMENT CHARACTER}"  # stands at the end of a text whose last character is not whole yet


@dataclass(frozen=True)
class Ask:
    """One prompt, ready to be read.

    Attributes:
        ids: its tokens. max_tokens, min_tokens: of the answer. stop: texts before which the answer ends.
        stop_ids: tokens that end it too; they stay in the text, and ``min_tokens`` holds them back.
    """

    ids: Sequence[int]
    max_tokens: int
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Completion:
    """An answer.

    Attributes:
        text: without the stop text. finish_reason: "stop" or "length".
        prompt_tokens, completion_tokens: read and made; a closing end token is not counted.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


@dataclass
class Service:
    """A loaded model behind a method. Requests are answered one after another, in the order in which they come.

    Attributes:
        name: the id that clients use. method: bound and checked. chat: as `--chat`, for /chat/completions.
        seed: for methods that draw.
    """

    loaded: LoadedModel
    method: Method
    name: str
    chat: str = "auto"
    seed: int = 42
    _turn: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def window(self) -> int:
        """Tokens of prompt and answer together."""
        window = self.method.window_of(self.loaded.info.window)
        return _NO_WINDOW if window is None else window

    def about(self) -> dict[str, Any]:
        """What runs here, for /v1/models."""
        info = self.loaded.info
        return {"model": info.name, "identity": info.identity, "dtype": info.dtype, "method": self.method.id}

    def ids_of_text(self, text: str) -> list[int]:
        """Tokens of a bare prompt, with the special tokens that the tokenizer puts in front."""
        return encode_prompt(self.loaded, text, chat=False, chat_option="none").ids

    def ids_of_messages(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Tokens of a conversation in the model's chat format. Raises ModelError: it has none."""
        return encode_messages(self.loaded, messages, self.chat).ids

    def complete(
        self,
        ask: Ask,
        on_text: Callable[[str], None] | None = None,
        *,
        still_wanted: Callable[[], None] = lambda: None,
    ) -> Completion:
        """Answer; blocks until the requests before are done.

        Args:
            on_text: told every piece of the answer as it is made, text that may become a stop text held back; raising
                from it ends the answer.
            still_wanted: called before the prompt is read and after every token; raising from it ends the answer.
        """
        growing = _Growing(self.loaded.tokenizer, ask.stop, on_text)

        def add(ids: list[int]) -> bool:
            still_wanted()
            return bool(ask.stop or on_text) and growing.add(ids)

        rules = Rules(ask.max_tokens, ask.min_tokens, ask.stop_ids, add)
        with self._turn:
            still_wanted()
            done = answer_one(self.loaded, self.method, ask.ids, rules, seed=self.seed).generated
        text = growing.finish(done.ids)
        reason = "length" if done.stopped_by == "length" and not growing.stopped else "stop"
        return Completion(text, reason, len(ask.ids), done.new_tokens)


class _Growing:
    """The text of an answer while its tokens come."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], on_text: Callable[[str], None] | None) -> None:
        self._tokenizer, self._stop, self._on_text = tokenizer, tuple(stop), on_text
        self._told = ""
        self.stopped = False

    def add(self, ids: list[int]) -> bool:
        """Take the tokens so far; whether a stop text has come."""
        text = self._text(ids)
        end = self._end(text)
        self.stopped = end is not None
        self._tell(text[:end] if end is not None else self._sure(text))
        return self.stopped

    def finish(self, ids: Sequence[int]) -> str:
        """The whole answer; what was held back is told."""
        text = self._text(ids)
        end = self._end(text)
        self.stopped = end is not None
        text = text[:end]
        self._tell(text)
        return text

    def _text(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def _end(self, text: str) -> int | None:
        found = [at for at in (text.find(one) for one in self._stop) if at >= 0]
        return min(found) if found else None

    def _sure(self, text: str) -> str:
        """The text that stays whatever follows: no half character, and no beginning of a stop text, at its end."""
        text = text.rstrip(_TORN)
        longest = max((len(one) for one in self._stop), default=0) - 1
        for keep in range(min(longest, len(text)), 0, -1):
            if any(one.startswith(text[-keep:]) for one in self._stop):
                return text[:-keep]
        return text

    def _tell(self, text: str) -> None:
        if self._on_text is not None and len(text) > len(self._told) and text.startswith(self._told):
            self._on_text(text[len(self._told) :])
            self._told = text


def refuse_unservable(method: Method) -> None:
    """Raises ModelError for a method that works on text, which a server's clients send already tokenized or not."""
    if method.rewriter is not None:
        step = "Serve the model alone, and apply the method there: lcbench run --model openai:NAME --method "
        there = method
        if isinstance(method, Prompted):
            step = f"Serve --method {method.rest.id}, and shorten there: lcbench run --model openai:NAME --method "
            there = method.shortener
        raise ModelError(
            f"{method.id} rewrites the text of prompts, which belongs to whoever asks a server.",
            step + there.id,
        )
