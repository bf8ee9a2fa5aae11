"""The uncompressed cache: the row every other method is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lcbench.methods.base import Method, Traits
from lcbench.methods.registry import method


@method("full", paper="", traits=Traits(family="baseline"))
@dataclass(frozen=True)
class Full(Method):
    """Dense attention over all keys and values: what every other method is compared with. One layer holds
    ``2 Hk d e`` bytes a token, e bytes an element."""

    proof: ClassVar[str] = (
        "Logits of whole prompts, prompts in chunks, single steps and several rows at once against the unmodified "
        "transformers models: Llama, Mistral and Qwen2 with sliding windows, Qwen2 and Qwen3 without."
    )
