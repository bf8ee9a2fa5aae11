"""A model that somebody has loaded already: its facts, as `models.load` would have found them."""

from __future__ import annotations

from typing import Any

from lcbench.models.chat import own_template, template_sha256
from lcbench.models.info import LoadedModel, ModelInfo, library_versions, model_facts


def of_memory(model: Any, tokenizer: Any = None, name: str = "") -> LoadedModel:
    """A transformers model as a `LoadedModel`; the model itself is left as it is.

    Args:
        tokenizer: None where none is needed. name: for people; default what the config says it came from.
    """
    info = ModelInfo(
        name=name or str(getattr(model.config, "_name_or_path", "")) or type(model).__name__,
        source="memory",
        revision=None,
        weights_sha256=None,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        attn="sdpa",
        load_in=None,
        chat_template_sha256=template_sha256(own_template(tokenizer)),
        versions=library_versions(),
        **model_facts(model, tokenizer),
    )
    return LoadedModel(model, tokenizer, info)
