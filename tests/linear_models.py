"""Tiny random models of every architecture that keeps a state beside, or instead of, keys and values.

Like those of `tiny`: real transformers classes, random weights that are not flat, the byte vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from lcbench.models.info import LoadedModel
from lcbench.models.mha2mla import modeling as mha2mla_modeling
from lcbench.models.rwkv5 import modeling as rwkv5_modeling
from tiny import VOCAB, byte_tokenizer, loaded

_ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096}
_MAMBA_2 = {"mamba_n_heads": 8, "mamba_n_groups": 2, "mamba_d_state": 8, "mamba_chunk_size": 16}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_MLA = {"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
_INKLING = {
    **_ATTENTION,
    "head_dim": 16,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 16,
    "sliding_window_size": 24,
    "d_rel": 4,
    "rel_extent": 16,
    "moe_intermediate_size": 32,
    "num_experts_per_tok": 2,
}

#: Name to transformers class and configuration; every layer kind of the architecture occurs.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("Mamba", {"state_size": 8}),
    "falcon_mamba": ("FalconMamba", {"state_size": 8}),
    "mamba2": ("Mamba2", {"num_heads": 8, "head_dim": 16, "n_groups": 2, "state_size": 8, "chunk_size": 16}),
    "rwkv": ("Rwkv", {"context_length": 4096, "rescale_every": 2}),
    "rwkv5": ("Rwkv5", {"head_size": 8, "context_length": 4096}),
    "xlstm": (
        "xLSTM",
        {"hidden_size": 128, "num_heads": 2, "chunk_size": 16, "autocast_kernel_dtype": "float32"},
    ),
    "recurrent_gemma": ("RecurrentGemma", {**_ATTENTION, "num_key_value_heads": 1, "attention_window_size": 24}),
    "jamba": (
        "Jamba",
        {
            **_ATTENTION,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 4,
            "mamba_d_state": 8,
            "num_hidden_layers": 4,
        },
    ),
    "zamba": (
        "Zamba",
        {
            **_ATTENTION,
            "mamba_d_state": 8,
            "mamba_dt_rank": 8,
            "layers_block_type": ["linear_attention", "linear_attention", "hybrid", "linear_attention"],
            "num_hidden_layers": 4,
        },
    ),
    "zamba2": (
        "Zamba2",
        {
            **_ATTENTION,
            "n_mamba_heads": 8,
            "mamba_ngroups": 2,
            "mamba_d_state": 8,
            "chunk_size": 16,
            "use_mem_rope": True,
            "layers_block_type": ["linear_attention", "linear_attention", "hybrid", "linear_attention"],
            "num_hidden_layers": 4,
        },
    ),
    "bamba": ("Bamba", {**_ATTENTION, **_MAMBA_2, "attn_layer_indices": [1]}),
    "granitemoehybrid": (
        "GraniteMoeHybrid",
        {
            **_ATTENTION,
            **_MAMBA_2,
            "num_local_experts": 4,
            "shared_intermediate_size": 32,
            "attention_multiplier": 0.25,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        },
    ),
    "falcon_h1": ("FalconH1", {**_ATTENTION, **_MAMBA_2, "mamba_d_ssm": 128}),
    "nemotron_h": (
        "NemotronH",
        {
            **_ATTENTION,
            "head_dim": 16,
            "mamba_num_heads": 8,
            "mamba_head_dim": 16,
            "n_groups": 2,
            "ssm_state_size": 8,
            "chunk_size": 16,
            "layers_block_type": ["linear_attention", "mlp", "full_attention", "linear_attention"],
            "num_hidden_layers": 4,
        },
    ),
    "lfm2": ("Lfm2", {**_ATTENTION, "layer_types": ["conv", "full_attention", "conv"]}),
    "lfm2_moe": (
        "Lfm2Moe",
        {**_ATTENTION, **_EXPERTS, "num_dense_layers": 1, "layer_types": ["conv", "full_attention", "conv"]},
    ),
    "lfm3": (
        "Lfm3",
        {
            **_ATTENTION,
            "head_dim": 16,
            "sliding_window": 24,
            "layer_types": ["conv", "full_attention", "sliding_attention", "conv"],
            "num_hidden_layers": 4,
        },
    ),
    "zaya": (
        "Zaya",
        {
            **_ATTENTION,
            "head_dim": 16,
            "num_experts": 4,
            "moe_intermediate_size": 32,
            "router_hidden_size": 16,
            "layer_types": ["hybrid", "hybrid", "hybrid"],
        },
    ),
    "qwen3_next": (
        "Qwen3Next",
        {
            **_ATTENTION,
            **_EXPERTS,
            **_DELTA,
            "head_dim": 16,
            "shared_expert_intermediate_size": 32,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        },
    ),
    "qwen3_5_text": (
        "Qwen3_5",
        {
            **_ATTENTION,
            **_DELTA,
            "head_dim": 32,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        },
    ),
    "qwen3_5_moe_text": (
        "Qwen3_5Moe",
        {
            **_ATTENTION,
            **_EXPERTS,
            **_DELTA,
            "head_dim": 32,
            "shared_expert_intermediate_size": 32,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        },
    ),
    "inkling_text": (
        "Inkling",
        {
            **_INKLING,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding"],
            "mlp_layer_types": ["dense", "sparse", "sparse"],
            "logits_mup_width_multiplier": 1.0,
        },
    ),
    "inkling2_text": (
        "Inkling2",
        {
            **_INKLING,
            "n_routed_experts": 4,
            "n_layers_per_attn_res_block": 2,
            "unpadded_vocab_size": VOCAB,
            "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding"],
        },
    ),
    "qwen4_exp_text": (
        "Qwen4Exp",
        {
            **_ATTENTION,
            **_EXPERTS,
            **_DELTA,
            "head_dim": 16,
            "shared_expert_intermediate_size": 32,
            "hc_count": 2,
            "hc_lowrank": 8,
            "ple_layer_ids": [1],
            "ngram_vocab_size_base": 101,
            "make_ngram_vocab_size_divisible_by": 4,
            "split_ngram_parts": 1,
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 16,
            "indexer_budget": 16,
            "indexer_compress_ratio": 4,
            "layer_types": ["linear_attention", "indexed_attention", "linear_attention"],
        },
    ),
    "olmo_hybrid": (
        "OlmoHybrid",
        {
            **_ATTENTION,
            **_DELTA,
            "linear_num_key_heads": 4,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        },
    ),
    "minimax": (
        "MiniMax",
        {
            **_ATTENTION,
            "head_dim": 16,
            "num_local_experts": 4,
            "block_size": 16,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        },
    ),
    "mha2mla": (
        "Mha2Mla",
        {**_ATTENTION, "head_dim": 16, "rope_dims": 4, "rank": 12, "rope_pairs": [[[0, 1], [2, 5]]] * 3},
    ),
    "kimi_linear": (
        "KimiLinear",
        {
            **_MLA,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "moe_intermediate_size": 32,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "linear_head_dim": 8,
            "linear_num_heads": 4,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        },
    ),
    "bailing_hybrid": (
        "BailingHybrid",
        {
            **_MLA,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "moe_intermediate_size": 32,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "head_dim": 16,
            "num_mtp_layers": 0,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        },
    ),
}


_OWN: dict[str, Any] = {"rwkv5": rwkv5_modeling, "mha2mla": mha2mla_modeling}


def linear_model(
    name: str, *, seed: int = 0, std: float = 0.15, dtype: torch.dtype = torch.float32, **config: Any
) -> Any:
    """A random decoder of an architecture in eval mode.

    Args:
        name: of `ARCHITECTURES`. config: further arguments of the transformers config.
    """
    stem, facts = ARCHITECTURES[name]
    settings: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "pad_token_id": None,
        "tie_word_embeddings": False,
        **facts,
        **config,
    }
    library = _OWN.get(name, transformers)
    found = (getattr(library, text, None) for text in (f"{stem}TextConfig", f"{stem}Config"))
    config_class = next(filter(None, found), None)
    if config_class is None:
        pytest.skip(f"the installed transformers has no {stem}")
    made = config_class(**settings)
    model = getattr(library, f"{stem}ForCausalLM")._from_config(made)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * std
            parameter.copy_(
                1 + noise if "norm" in parameter_name or "ln" in parameter_name.split(".")[-2][:2] else noise
            )
    model = model.to(dtype)
    exact = set(model._keep_in_fp32_modules_strict or ())  # routers that their class computes in fp32
    for parameter_name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and any(_within(parameter_name, kept) for kept in exact):
            tensor.data = tensor.data.float()
    return model.eval()


def _within(name: str, pattern: str) -> bool:
    """Whether a parameter's name has the parts of a dotted pattern side by side."""
    return f".{pattern}." in f".{name}."


def loaded_linear(name: str, *, chat: bool = False, **config: Any) -> LoadedModel:
    """A tiny model of an architecture with the byte tokenizer, as `models.load` would return it."""
    return loaded(linear_model(name, **config), chat=chat, name=name)


def save_linear(folder: Path, name: str, **config: Any) -> Path:
    """Write a tiny model and its tokenizer as a local folder in hub layout; returns the folder."""
    linear_model(name, **config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
