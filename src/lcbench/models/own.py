"""Architectures that transformers does not carry and lcbench does: made known to its Auto classes."""

from __future__ import annotations

from functools import cache


@cache
def register() -> None:
    """Let AutoConfig, AutoModelForCausalLM and AutoTokenizer find them by ``model_type``."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from lcbench.models.mha2mla.modeling import Mha2MlaConfig, Mha2MlaForCausalLM
    from lcbench.models.rwkv5.modeling import Rwkv5Config, Rwkv5ForCausalLM
    from lcbench.models.rwkv5.tokenizer import RwkvWorldTokenizer

    for config, model in ((Rwkv5Config, Rwkv5ForCausalLM), (Mha2MlaConfig, Mha2MlaForCausalLM)):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForCausalLM.register(config, model, exist_ok=True)
    AutoTokenizer.register(Rwkv5Config, tokenizer_class=RwkvWorldTokenizer, exist_ok=True)
