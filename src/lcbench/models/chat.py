"""Prompts to token ids: chat templates, and the beginning-of-text token exactly once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcbench.errors import ModelError
from lcbench.models.hub import plain
from lcbench.models.info import LoadedModel
from lcbench.models.official_chat import official_ids, official_template

# Some templates print today's date; a run continued tomorrow must ask the same question. A macro of the same name hides
# the clock behind one day, the one that Llama 3's own template falls back to.
_NAMED = ("auto", "official", "none")
_DAY = {"%d": "26", "%m": "07", "%b": "Jul", "%B": "July", "%y": "24", "%Y": "2024", "%a": "Fri", "%A": "Friday"}
_FIXED_DAY = (
    "{% macro strftime_now(pattern) %}{{ pattern"
    + "".join(f" | replace('{code}', '{value}')" for code, value in _DAY.items())
    + " }}{% endmacro +%}"
)


@dataclass(frozen=True)
class Encoded:
    """A prompt as the model reads it.

    Attributes:
        ids: its tokens. text: the text they were made from, chat template included.
        template_sha256: hex digest of the chat template, None for a plain prompt.
        double_bos_avoided: the template had written the BOS that the tokenizer would have written again.
        question_tokens: how many of the last ids are the question and what the template puts after it; 0 when it was
            not asked for or cannot be told.
    """

    ids: list[int]
    text: str
    template_sha256: str | None
    double_bos_avoided: bool
    question_tokens: int = 0


def chat_template(tokenizer: Any, option: str, name: str = "") -> str | None:
    """The Jinja template that ``--chat`` means: "auto" the tokenizer's own, "official" LongBench's for the family that
    ``name`` belongs to (None for a family it leaves unwrapped), "none" None, else the file of that name.

    Raises:
        ModelError: "auto" without a template (``name`` is the model's), or a file that cannot be read.
    """
    if option == "none":
        return None
    if option == "official":
        return official_template(name)
    if option == "auto":
        template = own_template(tokenizer)
        if template is None:
            raise ModelError(
                f"{f'Model {name}' if name else 'This model'} has no chat template, and the task asks it as a chat.",
                "Use --chat none for plain prompts, or --chat FILE.jinja.",
            )
        return template
    try:
        return Path(option).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ModelError(
            f"Cannot read the chat template {option}: {reason}.", "Use --chat auto, official, none or a Jinja file."
        ) from None


def own_template(tokenizer: Any) -> str | None:
    """The template that the tokenizer carries (the one named "default", of several), or None."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    return template or None


def template_sha256(template: str | None) -> str | None:
    """Hex digest of a template's text; None for none."""
    return None if template is None else hashlib.sha256(template.encode()).hexdigest()


def format_chat(tokenizer: Any, text: str, chat: str, name: str = "") -> str | None:
    """``text`` as a single user turn with the assistant's turn opened; None when ``chat`` is "none".

    The template runs in the sandbox of transformers. A system message that the template adds on its own stays: it is
    part of the model.

    Raises:
        ModelError: no template, or one that fails.
    """
    template = chat_template(tokenizer, chat, name)
    return None if template is None else _render(tokenizer, text, template, chat)


def encode_messages(loaded: LoadedModel, messages: Sequence[Mapping[str, str]], chat_option: str) -> Encoded:
    """Tokenize a conversation, the assistant's turn opened; a single user turn gives what `encode_prompt` gives.

    Args:
        messages: each with ``role`` and ``content``. chat_option: "auto", "official", "none" (the contents alone, in
            lines) or a Jinja file.

    Raises:
        ModelError: as `format_chat`.
    """
    if len(messages) == 1 and messages[0]["role"] == "user":
        return encode_prompt(loaded, messages[0]["content"], chat=True, chat_option=chat_option)
    tokenizer = loaded.tokenizer
    template = chat_template(tokenizer, chat_option, loaded.info.name)
    if template is None:
        text = "\n".join(message["content"] for message in messages)
        return Encoded(_ids(tokenizer, text, True), text, None, False)
    rendered = _rendered(tokenizer, messages, template, chat_option)
    written = bool(tokenizer.bos_token) and rendered.startswith(tokenizer.bos_token)
    doubled = written and _adds_bos(tokenizer)
    return Encoded(_ids(tokenizer, rendered, not written), rendered, template_sha256(template), doubled)


def encode_prompt(
    loaded: LoadedModel, text: str, *, chat: bool, chat_option: str, question_start: int | None = None
) -> Encoded:
    """Tokenize a prompt.

    A plain prompt gets the special tokens that the tokenizer puts in front of texts. A chat prompt gets them too,
    unless its template has written the BOS already.

    The whole prompt is tokenized once, whether its question is told apart or not: context and question are cut between
    two of its tokens, at the first token that reaches into the question. A token that spans the border belongs to the
    question.

    Args:
        chat: whether the task wants a chat turn. chat_option: "auto", "official", "none" or a Jinja file.
        question_start: index in ``text`` of the question's first character, to have `Encoded.question_tokens`.

    Raises:
        ModelError: as `format_chat`; or the question was to be told apart and the tokenizer has no offsets.
    """
    tokenizer = loaded.tokenizer
    template = chat_template(tokenizer, chat_option, loaded.info.name) if chat else None
    if template is None:
        ids = _ids(tokenizer, text, True)
        asked = 0 if question_start is None else _tokens_from(tokenizer, text, True, ids, question_start)
        return Encoded(ids, text, None, False, asked)
    rendered = _render(tokenizer, text, template, chat_option)
    built = official_ids(tokenizer, loaded.info.name, text) if chat_option == "official" else None
    if built is not None:
        return Encoded(built, rendered, template_sha256(template), False)
    written = bool(tokenizer.bos_token) and rendered.startswith(tokenizer.bos_token)
    doubled = written and _adds_bos(tokenizer)
    ids = _ids(tokenizer, rendered, not written)
    asked = 0
    if question_start is not None:
        place = _place_in(rendered, text, question_start)
        asked = 0 if place is None else _tokens_from(tokenizer, rendered, not written, ids, place)
    return Encoded(ids, rendered, template_sha256(template), doubled, asked)


def _place_in(rendered: str, text: str, index: int) -> int | None:
    """Where ``text[index]`` stands in the rendered chat; templates may strip the text. None when it is not found."""
    inner = text.strip()
    if not inner:
        return None
    at = rendered.rfind(inner)
    return None if at < 0 else at + max(0, index - (len(text) - len(text.lstrip())))


def _tokens_from(tokenizer: Any, text: str, special: bool, ids: list[int], index: int) -> int:
    """How many of ``ids``, the tokens of ``text``, come at or after the first that reaches beyond ``index``."""
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"The tokenizer {type(tokenizer).__name__} does not tell which characters its tokens stand for, so context "
            "and question cannot be told apart.",
            "Use --question visible.",
        )
    encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
    offsets = encoded["offset_mapping"][: len(ids)]
    first = next((i for i, (_, end) in enumerate(offsets) if end > index), len(ids))
    return len(ids) - first


def _render(tokenizer: Any, text: str, template: str, option: str) -> str:
    rendered = _rendered(tokenizer, [{"role": "user", "content": text}], template, option)
    if option not in _NAMED and text.strip() and text.strip() not in rendered:
        raise ModelError(
            f"The chat template {option} leaves the prompt out.",
            "Write the user's turn as {{ messages[0]['content'] }}, as the templates of tokenizers do.",
        )
    return rendered


def _rendered(tokenizer: Any, messages: Sequence[Mapping[str, str]], template: str, option: str) -> str:
    program = _FIXED_DAY + template if "strftime_now" in template else template
    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages), chat_template=program, tokenize=False, add_generation_prompt=True
            )
        )
    except Exception as error:  # templates are programs of strangers: anything can come out of one
        where = "of the tokenizer" if option == "auto" else option
        raise ModelError(
            f"The chat template {where} failed: {plain(error)}.", "Use --chat none, or another --chat FILE.jinja."
        ) from None


def _ids(tokenizer: Any, text: str, special: bool) -> list[int]:
    """Token ids; a closing end token that some tokenizers add would end the answer before it starts: dropped."""
    ids = list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
    if special and ids and ids[-1] == tokenizer.eos_token_id:
        own = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if _closing(ids, ids[-1]) > _closing(own, ids[-1]):
            ids.pop()
    return ids


def _closing(ids: list[int], end: int) -> int:
    """How many end tokens a text closes with."""
    return next((i for i, token in enumerate(reversed(ids)) if token != end), len(ids))


def _adds_bos(tokenizer: Any) -> bool:
    ids = tokenizer("a", add_special_tokens=True)["input_ids"]
    return bool(ids) and ids[0] == tokenizer.bos_token_id
