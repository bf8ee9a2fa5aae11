"""Tiny random models and a byte tokenizer, made in memory: real transformers classes, no download.

Weights have standard deviation 0.2 (not the 0.02 of an untrained model), so that logits and attention are not flat and
a wrong mask, position or head shows.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from lcbench.models import adapter
from lcbench.models.info import LoadedModel, ModelInfo, library_versions, model_facts

KINDS: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "phi3": (Phi3Config, Phi3ForCausalLM),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM),
    "smollm3": (SmolLM3Config, SmolLM3ForCausalLM),
    "olmo2": (Olmo2Config, Olmo2ForCausalLM),
    "gpt_oss": (GptOssConfig, GptOssForCausalLM),
    "falcon": (FalconConfig, FalconForCausalLM),
}
SPECIAL: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "falcon": {"hidden_size": None, "new_decoder_architecture": True},
    "phi3": {"hidden_size": None, "pad_token_id": 0},  # a head is hidden / heads wide
    "gpt_oss": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},  # not stretched
    },
}

BOS, EOS, TURN, END = "<s>", "</s>", "<|turn|>", "<|end|>"  # token ids 256, 257, 258, 259
VOCAB = 260

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|turn|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


def tiny_model(
    kind: str = "llama",
    *,
    layers: int = 4,
    heads: int = 8,
    kv_heads: int = 2,
    head_dim: int = 32,
    hidden: int = 64,
    window: int = 4096,
    seed: int = 0,
    std: float = 0.2,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> Any:
    """A random decoder in eval mode with plain attention (sdpa, or eager where the class has none); call
    `adapter.install` on it to route it through ours.

    Args:
        kind: one of `KINDS`.
        hidden: width of the residual stream (independent of heads x head_dim).
        config: further arguments of the transformers config, e.g. ``sliding_window=16``.
    """
    config_class, model_class = KINDS[kind]
    settings: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": window,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "pad_token_id": None,
        "tie_word_embeddings": False,
    }
    settings |= SPECIAL.get(kind, {})
    if settings["hidden_size"] is None:
        settings["hidden_size"] = heads * head_dim
        std *= (hidden / settings["hidden_size"]) ** 0.5  # logits as large as the others'
    if kind == "falcon":  # has names of its own
        settings["num_kv_heads"], settings["ffn_hidden_size"] = kv_heads, settings["intermediate_size"]
        del settings["num_key_value_heads"], settings["head_dim"], settings["intermediate_size"]
    config_ = config_class(**{**settings, **config})
    implementation = "sdpa" if model_class._supports_sdpa else "eager"
    model = model_class._from_config(config_, attn_implementation=implementation)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * std
            parameter.copy_(1 + noise if "norm" in name or ".ln_" in name else noise)  # ln_f: Falcon's last norm
    return model.to(dtype).eval()


def byte_tokenizer(chat: bool = True, bos: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer whose ids 0..255 are the bytes of the UTF-8 text; round-trips any text.

    Args:
        chat: whether it carries a chat template. bos: whether it has a BOS token and puts it before every text (the
            chat template then writes it too, as Llama's and Mistral's do).
    """
    tokenizer = Tokenizer(models.BPE(vocab=byte_vocab(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (BOS, EOS, TURN, END)])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, 256)]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS if bos else None,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
    )
    if chat:
        fast.chat_template = CHAT_TEMPLATE if bos else CHAT_TEMPLATE.replace("{{ bos_token }}", "")
    return fast


def byte_vocab() -> dict[str, int]:
    """The printable stand-in that byte-level BPE uses for each byte, to that byte; in the order of the bytes."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in shown]
    characters = {**{b: chr(b) for b in shown}, **{b: chr(256 + i) for i, b in enumerate(hidden)}}
    return {characters[b]: b for b in range(256)}


def loaded_tiny(
    kind: str = "llama", *, chat: bool = True, bos: bool = True, name: str = "tiny", **overrides: Any
) -> LoadedModel:
    """A tiny model with the byte tokenizer, its attention routed through lcbench's: what `models.load` would return.

    Args:
        overrides: as `tiny_model`.
    """
    return loaded(tiny_model(kind, **overrides), chat=chat, bos=bos, name=name)


def loaded(model: Any, *, chat: bool = True, bos: bool = True, name: str = "tiny") -> LoadedModel:
    """A model in memory with the byte tokenizer, as `models.load` would return it."""
    tokenizer = byte_tokenizer(chat, bos)
    template = tokenizer.chat_template
    info = ModelInfo(
        name=name,
        source="memory",
        revision=None,
        weights_sha256=None,
        dtype=str(model.dtype).removeprefix("torch."),
        device="cpu",
        attn="sdpa",
        load_in=None,
        chat_template_sha256=hashlib.sha256(template.encode()).hexdigest() if template else None,
        versions=library_versions(),
        **model_facts(model, tokenizer),
    )
    adapter.install(model)
    return LoadedModel(model, tokenizer, info)


def save_tiny(folder: Path, kind: str = "llama", *, chat: bool = True, bos: bool = True, **overrides: Any) -> Path:
    """Write a tiny model and its tokenizer as a local folder in hub layout; returns the folder."""
    tiny_model(kind, **overrides).save_pretrained(folder)
    byte_tokenizer(chat, bos).save_pretrained(folder)
    return folder
