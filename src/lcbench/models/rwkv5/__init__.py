"""RWKV-5 ("Eagle"), which transformers does not carry: model, tokenizer, and reading the published ``.pth`` files.

Architecture: "Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence", arXiv:2404.05892.
"""

from __future__ import annotations

from functools import cache


@cache
def register() -> None:
    """Let transformers' Auto classes find configuration, model and tokenizer by ``model_type`` "rwkv5"."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from lcbench.models.rwkv5.modeling import Rwkv5Config, Rwkv5ForCausalLM
    from lcbench.models.rwkv5.tokenizer import RwkvWorldTokenizer

    AutoConfig.register(Rwkv5Config.model_type, Rwkv5Config, exist_ok=True)
    AutoModelForCausalLM.register(Rwkv5Config, Rwkv5ForCausalLM, exist_ok=True)
    AutoTokenizer.register(Rwkv5Config, tokenizer_class=RwkvWorldTokenizer, exist_ok=True)
