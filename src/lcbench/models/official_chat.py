"""What LongBench does by hand for the families of its paper's models (`--chat official`).

The official script (THUDM/LongBench `LongBench/pred.py`) goes by the name of the model: it wraps prompts in a format of
its own, cleans the answers of two families, and leaves every family it does not know as it is. The formats are protocol
data and lie in ``chat_formats/``; they are Jinja templates like a tokenizer's own. ChatGLM is the exception: there the
script asks the tokenizer's own code, ``build_prompt`` of ChatGLM2 for a text and ``build_chat_input`` of ChatGLM3 for
ids (its role tokens cannot be written as text).
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from lcbench.errors import ModelError

# Family to the pieces of a name that the official script, or the hub's spelling of the same models, go by; the first
# family that fits is taken.
FAMILIES: dict[str, tuple[str, ...]] = {
    "chatglm3": ("chatglm3",),
    "chatglm": ("chatglm",),
    "vicuna": ("vicuna", "longchat"),
    "llama2": ("llama2", "llama-2"),
    "xgen": ("xgen",),
    "internlm": ("internlm",),
}
_XGEN_TAG = "Assistant:"
_INTERNLM_END = "<eoa>"


def family_of(name: str) -> str | None:
    """The official family of a model name (hub id, folder or file), or None for one without a format."""
    last = name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1].lower()
    return next((family for family, pieces in FAMILIES.items() if any(p in last for p in pieces)), None)


def official_template(name: str) -> str | None:
    """The Jinja template of the model's family; None means that the official script leaves prompts as they are.

    ChatGLM3's is for people and for the hash alone: its prompts are made by `official_ids`.
    """
    family = family_of(name)
    if family is None:
        return None
    return (files("lcbench.models") / "chat_formats" / f"{family}.jinja").read_text(encoding="utf-8")


def official_ids(tokenizer: Any, name: str, text: str) -> list[int] | None:
    """Token ids of a wrapped prompt where the tokenizer's own code makes them; None where `official_template` does.

    Raises:
        ModelError: a ChatGLM3 whose tokenizer has no such code.
    """
    family = family_of(name)
    if family == "chatglm" and hasattr(tokenizer, "build_prompt"):
        return [int(i) for i in tokenizer(tokenizer.build_prompt(text), verbose=False)["input_ids"]]
    if family != "chatglm3":
        return None
    if not hasattr(tokenizer, "build_chat_input"):
        raise ModelError(
            f"LongBench wraps the prompts of {name} by code of its tokenizer (build_chat_input), which is not here.",
            "Load that code with --trust-remote-code, or use --chat auto, the tokenizer's own template.",
        )
    ids = tokenizer.build_chat_input(text)["input_ids"][0]
    return [int(i) for i in ids]


def cut_without_special_tokens(name: str) -> bool:
    """Whether the script leaves special tokens out when it counts and cuts a long prompt: for ChatGLM3 alone."""
    return family_of(name) == "chatglm3"


def answer_rule(name: str) -> str | None:
    """The family, when the script cleans its answers: "xgen", "internlm" or None."""
    family = family_of(name)
    return family if family in ("xgen", "internlm") else None


def clean_answer(rule: str | None, text: str) -> str:
    """The answer as the script writes it to its file: xgen's without outer white space and its tag, internlm's up to
    its end mark, all others unchanged.

    Args:
        rule: as `answer_rule` gives it.
        text: what was generated, special tokens removed.
    """
    if rule == "xgen":
        return text.strip().replace(_XGEN_TAG, "")
    if rule == "internlm":
        return text.split(_INTERNLM_END)[0]
    return text
