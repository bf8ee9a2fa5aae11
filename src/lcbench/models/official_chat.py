"""LongBench's hand-written chat formats by model family (`--chat official`).

The official script (THUDM/LongBench `LongBench/pred.py`, function that builds the chat prompt) wraps prompts by the
name of the model and leaves every family it does not know unwrapped. The formats are protocol data and lie in
``chat_formats/``; they are Jinja templates like a tokenizer's own. ChatGLM is refused: its format is made by code of
its own tokenizer. What the script then does to the answers of two families (xgen: strip, drop the assistant tag;
internlm: cut at its end-of-answer tag) is not done here; docs/parity.md says so.
"""

from __future__ import annotations

from importlib.resources import files

from lcbench.errors import ModelError

# Family to the pieces of a name that the official script, or the hub's spelling of the same models, go by.
FAMILIES: dict[str, tuple[str, ...]] = {
    "llama2": ("llama2", "llama-2"),
    "vicuna": ("vicuna", "longchat"),
    "xgen": ("xgen",),
    "internlm": ("internlm",),
}


def family_of(name: str) -> str | None:
    """The official family of a model name (hub id, folder or file), or None for one without a format."""
    last = name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1].lower()
    return next((family for family, pieces in FAMILIES.items() if any(p in last for p in pieces)), None)


def official_template(name: str) -> str | None:
    """The Jinja template of the model's family; None means that the official script leaves prompts as they are.

    Raises:
        ModelError: a ChatGLM, which the script wraps by the tokenizer's own code.
    """
    family = family_of(name)
    if family is None and "chatglm" in name.lower():
        raise ModelError(
            f"LongBench wraps the prompts of {name} by code of its tokenizer, not by a format.",
            "Use --chat auto, which takes the tokenizer's own template.",
        )
    if family is None:
        return None
    return (files("lcbench.models") / "chat_formats" / f"{family}.jinja").read_text(encoding="utf-8")
