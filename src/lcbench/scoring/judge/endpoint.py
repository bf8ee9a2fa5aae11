"""A judge behind an OpenAI-compatible address (``/chat/completions``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lcbench.endpoint import client
from lcbench.endpoint.client import OPENAI, Again, Client, Patience, Wording

__all__ = ["OPENAI", "Endpoint", "Patience", "key_for"]

KEY = "LCBENCH_JUDGE_KEY"
TEMPERATURE, TOP_P, MAX_TOKENS = 0.1, 0.9, 1024
"""Settings of the published scores."""

_WORDING = Wording(
    who="The judge",
    model="--judge",
    url="--judge-url",
    key=KEY,
    kept="replies that came are kept, so the same command goes on from there.",
)


def key_for(url: str) -> str:
    """The key of the environment for this address, "" for none. OpenAI's own key is sent to OpenAI alone.

    Raises:
        BadValue: it holds characters that no key has.
    """
    return client.key_for(url, KEY)


@dataclass
class Endpoint:
    """A model at an address. `ask` may be called from several threads.

    Attributes:
        model: as the server calls it. url: base address, ``/v1`` included. key: never shown, not even by repr.
    """

    model: str
    url: str = OPENAI
    key: str = field(default="", repr=False)
    patience: Patience = Patience()
    concurrent: bool = True
    tries: int = 2

    def __post_init__(self) -> None:
        self._client = Client(self.model, _WORDING, self.url, self.key, self.patience)
        self.url = self._client.url

    @property
    def identity(self) -> Mapping[str, Any]:
        """Everything that can change a reply; without the key."""
        settings = {"temperature": TEMPERATURE, "top_p": TOP_P, "max_tokens": MAX_TOKENS}
        return {"kind": "openai", "model": self.model, "url": self.url, **settings}

    @property
    def label(self) -> str:
        return self._client.label

    @property
    def calls(self) -> int:
        """Requests made, those tried again included."""
        return self._client.calls

    def ask(self, system: str, user: str) -> str:
        """The text of the reply.

        Raises:
            NoReply: this question got none; others may.
            UsageError: the server refuses the key, or has no such model or address.
            NetworkError: it does not answer at all.
        """
        body = {
            "model": self.model,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
            "temperature": TEMPERATURE,
            "top_p": TOP_P,
            "max_tokens": MAX_TOKENS,
        }
        return self._client.post("/chat/completions", body, _content)

    def stop(self) -> None:
        """No more attempts; calls that are under way may end, and their replies are kept: they are paid for."""
        self._client.stop()


def _content(data: Any) -> str:
    """Text of the first choice of a chat completion."""
    try:
        text = data["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise Again("its answer is no chat completion") from None
    if not isinstance(text, str) or not text.strip():
        raise Again("its answer is empty")
    return text
