"""What clients may ask, read from JSON: OpenAI's fields for completions and chat completions, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lcbench.errors import ModelError
from lcbench.server.service import Ask, Service

_COMPLETION_TOKENS = 16  # OpenAI's default for completions
_ONLY = {
    "n": (None, 1), "best_of": (None, 1), "echo": (None, False), "suffix": (None, ""), "logprobs": (None, False),
    "repetition_penalty": (None, 1), "repeat_penalty": (None, 1),
}  # fmt: skip
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_SAMPLING = {"temperature": 2, "top_p": 1}
_NEVER = ("tools", "functions", "logit_bias", "frequency_penalty", "presence_penalty", "top_logprobs")


class Refused(Exception):
    """A request that cannot be served.

    Attributes:
        status: HTTP status. message: one sentence. param, code: of OpenAI's error object.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class Request:
    """A request as it is answered.

    Attributes:
        asks: one a prompt. chat: whether the answer is a chat message. stream: whether it is sent as it grows.
        include_usage: a stream ends with a count of tokens.
    """

    asks: tuple[Ask, ...]
    chat: bool
    stream: bool
    include_usage: bool


def read_request(body: Any, service: Service, *, chat: bool) -> Request:
    """A parsed JSON body as a request. Raises Refused."""
    if not isinstance(body, Mapping):
        raise Refused(400, "The body is not a JSON object.")
    if body.get("model") != service.name:
        raise no_model(body.get("model"), service)
    _refuse_unsupported(body)
    prompts = [_messages(body, service)] if chat else _prompts(body.get("prompt"), service)
    stop, stop_ids, fewest = _stop(body.get("stop")), _stop_ids(body, service), _count(body, "min_tokens", 0, 0)
    asks = []
    for ids in prompts:
        most = _count(body, "max_completion_tokens", None, 1) if chat else None
        most = _count(body, "max_tokens", None if chat else _COMPLETION_TOKENS, 1) if most is None else most
        most = service.window - len(ids) if most is None else most
        if not ids:
            raise Refused(400, "The prompt has no tokens.", param="prompt")
        if most < 1 or len(ids) + most > service.window:
            raise Refused(
                400,
                f"This model's maximum context length is {service.window} tokens; the prompt has {len(ids)} and "
                f"{max(most, 1)} were asked for.",
                param="messages" if chat else "prompt",
                code="context_length_exceeded",
            )
        asks.append(Ask(ids, most, fewest, stop, stop_ids))
    stream = body.get("stream") or False
    if not isinstance(stream, bool):
        raise Refused(400, "stream is not true or false.", param="stream")
    options = body.get("stream_options")
    usage = isinstance(options, Mapping) and options.get("include_usage") is True
    return Request(tuple(asks), chat, stream, usage)


def no_model(name: Any, service: Service) -> Refused:
    """The refusal of a name that is not that of the model."""
    message = f"There is no model {name!r} here, only {service.name!r}."
    return Refused(404, message, param="model", code="model_not_found")


def _refuse_unsupported(body: Mapping[str, Any]) -> None:
    """What would change the answer and is not done here is refused, not ignored."""
    for name, allowed in _ONLY.items():
        if body.get(name) not in allowed:
            raise Refused(400, f"{name}={body[name]!r} is not supported here.", param=name, code="unsupported")
    for name in _NEVER:
        if body.get(name):
            raise Refused(400, f"{name} is not supported here.", param=name, code="unsupported")
    for name, most in _SAMPLING.items():  # checked, and then not used: answers are greedy
        value = body.get(name)
        if value is not None and not (_is_number(value) and 0 <= value <= most):
            raise Refused(400, f"{name} is not a number from 0 to {most}.", param=name)
    shape = body.get("response_format")
    if shape is not None and not (isinstance(shape, Mapping) and shape.get("type") == "text"):
        raise Refused(400, "response_format is not supported here.", param="response_format", code="unsupported")


def _prompts(prompt: Any, service: Service) -> list[list[int]]:
    """Token ids of every prompt: a text, texts, token ids, or lists of token ids."""
    if isinstance(prompt, str):
        return [service.ids_of_text(prompt)]
    if isinstance(prompt, list) and prompt:
        if all(isinstance(part, str) for part in prompt):
            return [service.ids_of_text(part) for part in prompt]
        lists = [prompt] if all(isinstance(part, int) for part in prompt) else prompt
        if all(isinstance(ids, list) and ids and all(_is_id(i, service) for i in ids) for ids in lists):
            return lists
    raise Refused(400, "prompt is neither text nor token ids of this model, nor a list of such.", param="prompt")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_id(value: Any, service: Service) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < service.loaded.info.vocab


def _messages(body: Mapping[str, Any], service: Service) -> list[int]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refused(400, "messages is not a list of one message or more.", param="messages")
    read = []
    for message in messages:
        role = message.get("role") if isinstance(message, Mapping) else None
        if not isinstance(role, str):
            raise Refused(400, "A message has no role.", param="messages")
        if role not in _ROLES:
            raise Refused(400, f"The role of a message is none of {', '.join(_ROLES)}.", param="messages")
        read.append({"role": role, "content": _content(message.get("content"))})
    try:
        return service.ids_of_messages(read)
    except ModelError as error:
        raise Refused(400, error.message, param="messages") from None


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [None]
    texts = [part.get("text") for part in parts if isinstance(part, Mapping) and part.get("type") == "text"]
    if len(texts) != len(parts) or not all(isinstance(text, str) for text in texts):
        raise Refused(400, "The content of a message is not text.", param="messages")
    return "".join(str(text) for text in texts)


def _stop(stop: Any) -> tuple[str, ...]:
    if stop is None:
        return ()
    texts = [stop] if isinstance(stop, str) else stop
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Refused(400, "stop is neither a text nor a list of texts.", param="stop")
    return tuple(text for text in texts if text)


def _stop_ids(body: Mapping[str, Any], service: Service) -> tuple[int, ...]:
    ids = body.get("stop_token_ids") or []
    if not isinstance(ids, list) or not all(_is_id(i, service) for i in ids):
        raise Refused(400, "stop_token_ids is not a list of token ids of this model.", param="stop_token_ids")
    return tuple(ids)


def _count(body: Mapping[str, Any], name: str, default: Any, least: int) -> Any:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise Refused(400, f"{name} is not a whole number of {least} or more.", param=name)
    return value
