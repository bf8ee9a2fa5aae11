"""Asking a server for an answer, and what it tells of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from lcbench.config.spec import SERVED, Api, ModelSpec
from lcbench.data.hub import origin_of
from lcbench.endpoint.client import OPENAI, Absent, Again, Client, NoReply, Patience, Wording, key_for
from lcbench.errors import BadValue, NetworkError, UsageError, nearest

KEY = "LCBENCH_API_KEY"
PATHS: Mapping[Api, str] = {
    "completions": "/completions",
    "token-ids": "/completions",
    "chat": "/chat/completions",
}

_PROBES = 5  # a server that fails so often before anything was asked is down; nothing is lost by saying so
_REFUSED = (400, 422)  # a question that the server does not take as it is
_COUNTED = ("prompt_tokens", "completion_tokens", "total_tokens")

_WORDING = Wording(
    who="The server",
    model="--model",
    url="--base-url",
    key=KEY,
    kept="answers that came are kept, so the same command goes on from there.",
)
# Servers have penalties of their own: vLLM, SGLang and transformers take those of the checkpoint's generation config,
# and that of llama-cpp-python is 1.1. With them nothing is greedy, so they are ruled out, in the first of these ways
# that a server takes (transformers serve: repetition_penalty is 1 + frequency_penalty).
_NO_PENALTY: tuple[Mapping[str, Any], ...] = (
    {"repetition_penalty": 1.0, "repeat_penalty": 1.0, "frequency_penalty": 0},
    {"frequency_penalty": 0},
    {},
)
# Where servers write how many tokens prompt and answer may have: vLLM, SGLang and lcbench; llama.cpp; OpenRouter; Groq.
_WINDOW_NAMES = ("max_model_len", "n_ctx", "n_ctx_train", "context_length", "context_window", "max_context_length")


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        text: of the answer. finish_reason: as the server says, "" where it does not.
        usage: token counts that the server told, by OpenAI's names.
    """

    text: str
    finish_reason: str
    usage: Mapping[str, int]


@dataclass(frozen=True)
class About:
    """What a server says of itself at ``/models``.

    Attributes:
        models: ids it lists; empty where it lists nothing. window: tokens of prompt and answer together, None where it
            does not say. lcbench: of `lcbench serve`, which model and method it runs.
    """

    models: tuple[str, ...] = ()
    window: int | None = None
    lcbench: Mapping[str, Any] | None = None


@dataclass
class Asker:
    """A model at an address.

    Attributes:
        client: the connection. model: as the server calls it.
    """

    client: Client
    model: str
    _most: str = field(default="max_tokens", repr=False)
    _plain: tuple[Mapping[str, Any], ...] = field(default=_NO_PENALTY, repr=False)  # one, when it has been taken

    @classmethod
    def of(cls, spec: ModelSpec, timeout: float) -> Asker:
        """Raises BadValue: no name, no address, or a key with characters that no key has."""
        name = spec.name.removeprefix(SERVED).strip()
        if not name:
            raise BadValue(f"--model {spec.name} names no model.", f"Write --model {SERVED}NAME.")
        url = spec.base_url or OPENAI
        patience = Patience(attempts=8, first_attempts=2, timeout=timeout, longest_wait=30.0)
        client = Client(name, _WORDING, url, key_for(url, KEY), patience)
        return cls(client, name) if origin_of(url) != origin_of(OPENAI) else cls(client, name, _plain=_NO_PENALTY[-1:])

    def about(self) -> About:
        """Look at ``/models``; servers without it are no error.

        Raises:
            UsageError: the server refuses the key. NetworkError: it does not answer.
        """
        try:
            data = self.client.get("/models", attempts=3)
        except (Absent, NoReply):
            return About()
        found = data.get("data") if isinstance(data, Mapping) else data
        entries = [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []
        mine: Mapping[str, Any] = next((one for one in entries if one.get("id") == self.model), {})
        ids = tuple(str(one["id"]) for one in entries if isinstance(one.get("id"), str))
        about = mine.get("lcbench")
        return About(ids, _window(mine), about if isinstance(about, Mapping) else None)

    def has_completions(self, about: About) -> bool:
        """Whether bare prompts can be asked: one token is asked for, with the prompt "a".

        Raises:
            UsageError: the server has no such model at all. NetworkError: it does not answer.
        """
        try:
            self.client.post(
                "/completions", {"model": self.model, "prompt": "a", "max_tokens": 1}, _answer_of, attempts=_PROBES
            )
            return True
        except (Absent, NoReply) as error:
            if isinstance(error, NoReply) and not error.status:
                raise NetworkError(
                    f"{self.client.label} did not answer a first question of one token: {error.reason}.",
                    "Look at the server, and give the command again; with --api the run begins without that question.",
                ) from None
            if isinstance(error, Absent) and about.models and self.model not in about.models:
                self._require(about)
            return False

    def _require(self, about: About) -> None:
        """A name that the server does not list may still be known to it (an alias): ask one token of the chat."""
        body = {"model": self.model, "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
        try:
            self.client.post("/chat/completions", body, _answer_of)
        except Absent as error:
            close = nearest(self.model, about.models)
            known = f"Did you mean {close}?" if close else f"It has {', '.join(about.models[:5])}."
            raise UsageError(error.message, known) from None
        except NoReply:
            return

    def ask(
        self,
        api: Api,
        prompt: str | Sequence[int],
        *,
        max_tokens: int,
        stop: Sequence[str] = (),
        more: Mapping[str, Any] = MappingProxyType({}),
    ) -> Answer:
        """The answer to a prompt, as greedy as the server can be.

        Args:
            prompt: a text, or token ids for "token-ids". stop: texts before which the answer ends.
            more: fields that not every server knows.

        Raises:
            NoReply: this prompt got none. UsageError, NetworkError: going on makes no sense.
        """
        body: dict[str, Any] = {"model": self.model}
        if api == "chat":
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt if isinstance(prompt, str) else list(prompt)
        body |= {"temperature": 0, **more}
        if stop:
            body["stop"] = list(stop)
        *ways, last = self._plain
        for plain in ways:
            try:
                answer = self._post(api, {**body, **plain}, max_tokens)
            except NoReply as error:
                if error.status not in _REFUSED:
                    raise
            else:
                self._plain = (plain,)
                return answer
        answer = self._post(api, {**body, **last}, max_tokens)
        self._plain = (last,)
        return answer

    def _post(self, api: Api, body: dict[str, Any], most: int) -> Answer:
        """Ask for so many tokens, by the name that the server has for that."""
        name, newer = self._most, "max_completion_tokens"  # which OpenAI's reasoning models insist on
        try:
            return self.client.post(PATHS[api], {**body, name: most}, _answer_of)
        except NoReply as error:
            if error.status not in _REFUSED or newer not in error.said or name == newer:
                raise
        self._most = newer
        return self.client.post(PATHS[api], {**body, newer: most}, _answer_of)


def _answer_of(data: Any) -> Answer:
    """The first choice of a completion or chat completion. Raises Again: it is none."""
    try:
        choice = data["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        finish = choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise Again("its answer is no completion") from None
    if text is None and finish is not None and "message" in choice:
        text = ""  # a chat model that thought until its tokens were used up
    if not isinstance(text, str):
        raise Again("its answer is no completion")
    usage = data.get("usage")
    counts = usage.items() if isinstance(usage, Mapping) else ()
    told = {k: v for k, v in counts if k in _COUNTED and isinstance(v, int) and not isinstance(v, bool) and v >= 0}
    return Answer(text, finish if isinstance(finish, str) else "", told)


def _window(entry: Mapping[str, Any]) -> int | None:
    meta = entry.get("meta")
    for place in (entry, meta if isinstance(meta, Mapping) else {}):
        for name in _WINDOW_NAMES:
            value = place.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None
