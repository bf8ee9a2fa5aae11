"""What lcbench knows of a model: the facts that go into run.json, and the loaded model itself."""

from __future__ import annotations

import copy
import dataclasses
import importlib.metadata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from lcbench.models import native
from lcbench.models.rope_facts import RopeFacts, rope_facts
from lcbench.models.rope_length import rope_follows_length
from lcbench.models.shape import CacheShape, StateShape

UNBOUNDED = 2**24
"""The window of a model whose config names none: text of any length goes through a state."""

Source = Literal["hub", "folder", "gguf", "demo", "memory", "random"]


@dataclass(frozen=True)
class ModelInfo:
    """Everything about a model that decides predictions, or that a table wants to name. JSON types only.

    Attributes:
        name: what the user asked for: "demo", a hub id, a folder or a GGUF file.
        source: where the weights came from; "memory" for a model that was handed over, "random" for drawn ones.
        architecture: class name, e.g. "LlamaForCausalLM".
        revision: commit of a hub model. weights_sha256: hex digest of local weights, or of the config and
            seed that random ones are drawn from. One of them is set, except for models in memory.
        layers, heads, kv_heads, head_dim: N, H, Hk, d; H, Hk and d are 0 without attention layers.
        scaling: factor on the attention logits.
        window: positions the model was trained for, RoPE scaling of its config included; `UNBOUNDED` where the config
            of a model with a state does not say.
        vocab: width of the logits. parameters: their number, tied ones counted once.
        weight_bytes: bytes of the parameters as they lie in memory.
        dtype: of activations, keys and values. device: "cpu" or "cuda:N".
        attn: what really computes the attention of prompts, "sdpa" or "flash_attention_2"; for models that run on
            their own cache also "eager", and "none" without attention layers.
        load_in: "8bit", "4bit" or None.
        eos_ids: every token that ends an answer, of generation config, config and tokenizer; ascending.
        bos_id: the tokenizer's, or None.
        chat_template_sha256: hex digest of the template that prompts are wrapped in, None without one.
        versions: library to version.
        answer_rule: family whose answers LongBench cleans its own way ("xgen", "internlm"), with ``--chat official``.
        rope_follows_length: the rotary frequencies depend on how long the text is (dynamic, longrope), so that a prompt
            read in pieces is not the prompt read at once.
        rope: how positions become angles.
        state: of a model that runs on the cache it brings along, else None.
        hidden: width of the hidden states, 0 where the config does not say.
    """

    name: str
    source: Source
    architecture: str
    revision: str | None
    weights_sha256: str | None
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    scaling: float
    window: int
    vocab: int
    parameters: int
    weight_bytes: int
    dtype: str
    device: str
    attn: str
    load_in: str | None
    eos_ids: tuple[int, ...]
    bos_id: int | None
    chat_template_sha256: str | None
    versions: Mapping[str, str]
    answer_rule: str | None = None
    rope_follows_length: bool = False
    rope: RopeFacts = RopeFacts()
    state: StateShape | None = None
    hidden: int = 0

    @property
    def unbounded(self) -> bool:
        """Whether nobody says how long a text the model was trained for."""
        return self.window == UNBOUNDED

    @property
    def identity(self) -> str:
        """Commit or weight hash: the same for two runs exactly when the weights are the same."""
        return self.revision or self.weights_sha256 or ""

    def shape(self) -> CacheShape:
        """The numbers that decide the size of the cache."""
        return CacheShape(
            self.layers,
            self.heads,
            self.kv_heads,
            self.head_dim,
            getattr(torch, self.dtype),
            torch.device(self.device),
            self.state,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, keys in field order."""
        data = dataclasses.asdict(self)
        data["eos_ids"], data["versions"] = list(self.eos_ids), dict(self.versions)
        return data


@dataclass(frozen=True)
class LoadedModel:
    """A model whose attention runs through `models.adapter`, with its tokenizer and facts.

    Attributes:
        model: a transformers decoder in eval mode. tokenizer: a transformers tokenizer; None with random weights.
    """

    model: Any
    tokenizer: Any
    info: ModelInfo

    def shape(self) -> CacheShape:
        """The numbers that decide the size of the cache."""
        return self.info.shape()


def model_facts(model: Any, tokenizer: Any) -> dict[str, Any]:
    """The fields of `ModelInfo` that can be read off a model, on the meta device too, and its tokenizer (or None)."""
    config = model.config.get_text_config(decoder=True)
    return {
        "architecture": type(model).__name__,
        "layers": int(config.num_hidden_layers),
        **(_attention_facts(model) if native.family_of(model) is None else _native_facts(model)),
        "window": trained_window(config),
        "vocab": int(config.vocab_size),
        "hidden": int(getattr(config, "hidden_size", None) or 0),
        "parameters": sum(p.numel() for p in model.parameters()),
        "weight_bytes": weight_bytes(model),
        "eos_ids": eos_ids(model, tokenizer),
        "bos_id": None if (bos := getattr(tokenizer, "bos_token_id", None)) is None else int(bos),
        "rope_follows_length": rope_follows_length(config),
    }


def _attention_facts(model: Any) -> dict[str, Any]:
    config = model.config.get_text_config(decoder=True)
    attention = next((m for m in model.modules() if hasattr(m, "layer_idx") and hasattr(m, "head_dim")), None)
    heads = int(config.num_attention_heads)
    head_dim = int(
        getattr(attention, "head_dim", None) or getattr(config, "head_dim", None) or config.hidden_size // heads
    )
    return {
        "heads": heads,
        "kv_heads": int(
            getattr(config, "num_key_value_heads", None) or getattr(attention, "num_kv_heads", None) or heads
        ),
        "head_dim": head_dim,
        "scaling": float(getattr(attention, "scaling", None) or head_dim**-0.5),
        "rope": rope_facts(model),
    }


def _native_facts(model: Any) -> dict[str, Any]:
    """The same of a model that runs on its own cache, read from its config: its modules name other things alike."""
    config = model.config.get_text_config(decoder=True)
    state = native.measure(model) if next(model.parameters()).is_meta else native.measure(_on_meta(model))
    heads = int(getattr(config, "num_attention_heads", None) or 0) if state.attention_layers else 0
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads) if heads else 0
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads) if heads else 0
    scaling = head_dim**-0.5 if heads else 0.0
    return {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "scaling": scaling, "state": state}


def _on_meta(model: Any) -> Any:
    """The same architecture without weights."""
    with torch.device("meta"):
        return type(model)._from_config(copy.deepcopy(model.config), dtype=model.dtype)


def weight_bytes(model: Any) -> int:
    """Bytes of all parameters, tied ones once."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def trained_window(config: Any) -> int:
    """Positions a model was trained for, from a transformers text config.

    ``max_position_embeddings`` is the stretched window for llama3 and longrope scaling; for yarn it may be either, so
    the original window times the factor counts where it is larger; for linear and dynamic scaling it is the original
    window, as in LongChat and Vicuna checkpoints.
    """
    if getattr(config, "max_position_embeddings", None) is None:
        return UNBOUNDED
    window = int(config.max_position_embeddings)
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if "rope_type" not in rope and "type" not in rope:  # one dict a layer type
        rope = rope.get("full_attention") or {}
    kind, factor = rope.get("rope_type") or rope.get("type") or "default", float(rope.get("factor") or 1.0)
    if kind in ("linear", "dynamic"):
        return int(window * factor)
    if kind == "yarn":
        return max(window, int((rope.get("original_max_position_embeddings") or window) * factor))
    return window


def eos_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every end token that generation config, config or tokenizer names, ascending."""
    found: set[int] = set()
    for source in (
        getattr(model, "generation_config", None),
        model.config,
        model.config.get_text_config(decoder=True),
        tokenizer,
    ):
        value = getattr(source, "eos_token_id", None)
        if value is not None:
            found.update(int(v) for v in (value if isinstance(value, list | tuple) else [value]))
    return tuple(sorted(found))


def library_versions(extra: Iterable[str] = ()) -> dict[str, str]:
    """Versions of the libraries that compute: torch, transformers, tokenizers, and ``extra`` ones."""
    return {name: importlib.metadata.version(name) for name in ("torch", "transformers", "tokenizers", *extra)}
