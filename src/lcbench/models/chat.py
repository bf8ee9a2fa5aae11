"""Prompts to token ids: chat templates, and the beginning-of-text token exactly once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcbench.errors import ModelError
from lcbench.models.hub import plain
from lcbench.models.info import LoadedModel
from lcbench.models.official_chat import official_ids, official_template

# Some templates print today's date; a run continued tomorrow must ask the same question. A macro of the same name hides
# the clock behind one day, the one that Llama 3's own template falls back to.
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
    """

    ids: list[int]
    text: str
    template_sha256: str | None
    double_bos_avoided: bool


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
            f"Cannot read the chat template {option}: {reason}.", "Use --chat auto, --chat none or a Jinja file."
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


def encode_prompt(loaded: LoadedModel, text: str, *, chat: bool, chat_option: str) -> Encoded:
    """Tokenize a prompt.

    A plain prompt gets the special tokens that the tokenizer puts in front of texts. A chat prompt gets them too,
    unless its template has written the BOS already.

    Args:
        chat: whether the task wants a chat turn. chat_option: "auto", "official", "none" or a Jinja file.

    Raises:
        ModelError: as `format_chat`.
    """
    tokenizer = loaded.tokenizer
    template = chat_template(tokenizer, chat_option, loaded.info.name) if chat else None
    if template is None:
        return Encoded(_ids(tokenizer, text, True), text, None, False)
    rendered = _render(tokenizer, text, template, chat_option)
    built = official_ids(tokenizer, loaded.info.name, text) if chat_option == "official" else None
    if built is not None:
        return Encoded(built, rendered, template_sha256(template), False)
    written = bool(tokenizer.bos_token) and rendered.startswith(tokenizer.bos_token)
    doubled = written and _adds_bos(tokenizer)
    return Encoded(_ids(tokenizer, rendered, not written), rendered, template_sha256(template), doubled)


def _render(tokenizer: Any, text: str, template: str, option: str) -> str:
    program = _FIXED_DAY + template if "strftime_now" in template else template
    try:
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], chat_template=program, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # templates are programs of strangers: anything can come out of one
        where = "of the tokenizer" if option == "auto" else option
        raise ModelError(
            f"The chat template {where} failed: {plain(error)}.", "Use --chat none, or another --chat FILE.jinja."
        ) from None
    return str(rendered)


def _ids(tokenizer: Any, text: str, special: bool) -> list[int]:
    """Token ids; a closing end token that some tokenizers add would end the answer before it starts: dropped."""
    ids = [int(i) for i in tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]]
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
