"""Which architectures compute the same through lcbench's attention as on their own.

`adapter.check_supported` refuses what cannot be routed at all. Here are refused the models that would be routed but
answer wrongly, each found by comparing the two on random weights: families whose attention does more than the
interface is told.
"""

from __future__ import annotations

from typing import Any

from lcbench.errors import ModelError
from lcbench.models import adapter, native

_CHOOSE = "Choose a Llama, Mistral, Qwen, Gemma, Phi-3, SmolLM, OLMo, GPT-OSS or Falcon model."
_BESIDE_INTERFACE = {
    "diffllama": "differential attention",
    "doge": "attention masks computed from the values",
}


def check(model: Any) -> None:
    """Refuse a model that lcbench cannot serve; works on the meta device, before any weight is read.

    Raises:
        ModelError: as `adapter.check_supported`, and for encoders, keys and values of different
            width, layers that differ, and the families above.
    """
    if native.family_of(model) is not None:
        return  # computes by itself
    adapter.check_supported(model)
    name, config = type(model).__name__, model.config.get_text_config(decoder=True)
    layered = [m for m in model.modules() if hasattr(m, "layer_idx")]
    widths = {m.head_dim for m in layered if hasattr(m, "head_dim")}
    reason = _BESIDE_INTERFACE.get(config.model_type, "")
    if any(getattr(m, "is_causal", True) is False for m in layered):
        reason = "attention that looks ahead"
    elif getattr(config, "kv_lora_rank", None) or getattr(config, "v_head_dim", None) not in (None, *widths):
        reason = "keys and values of different width"
    elif len(widths) > 1:
        reason = "heads of different width in different layers"
    elif getattr(config, "num_kv_shared_layers", None):
        reason = "layers that share keys and values"
    elif config.model_type == "phimoe" and (config.sliding_window or 1 << 62) < config.max_position_embeddings:
        reason = "a sliding window that its attention does not announce"
    if reason:
        raise ModelError(f"{name} uses {reason}, which lcbench's attention does not compute.", _CHOOSE)
