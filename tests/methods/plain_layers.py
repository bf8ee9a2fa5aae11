"""The layers of plain transformers models whose positions, norms or softmax are their own, in fp64.

Queries and keys are taken from the model before it turns them, and turned here by what the config says of each layer:
no angle in some of SmolLM3, a base of its own in the sliding layers of Gemma-3, stretched and scaled ones in GPT-OSS.
Nothing of lcbench is used.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from harness import HEAD_DIM, HEADS, KV_HEADS
from torch import Tensor
from transformers import GptOssConfig

GROUP = HEADS // KV_HEADS
SLIDING = {"sliding_window": 48, "layer_types": ["sliding_attention", "full_attention"] * 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "smollm3": {"no_rope_layers": [1, 0, 1, 0]},
    "olmo2": {},
    "gpt_oss": {**SLIDING, "rope_parameters": GptOssConfig().rope_parameters},
    "qwen3": {},
    "gemma3": {
        **SLIDING,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
        },
    },
}


@dataclass(frozen=True)
class Layer:
    """One layer of the plain model over a text of L tokens, fp64.

    Attributes:
        bare, query: ``[H, L, d]`` before and after turning. key, value: ``[Hk, L, d]``, turned.
        frequencies, scale: see `frequencies`. window, scaling, sinks: as in `AttentionRule`; L for no window.
    """

    bare: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    frequencies: Tensor
    scale: float
    window: int
    scaling: float
    sinks: Tensor | None

    def weights(self, rows: range) -> Tensor:
        """Attention ``[H, rows, L]`` of some queries on the prompt's keys."""
        logits = self.query[:, rows.start :] @ self.key.repeat_interleave(GROUP, dim=0).transpose(1, 2) * self.scaling
        age = torch.tensor(rows)[:, None] - torch.arange(self.key.shape[1])[None]
        logits = logits.masked_fill((age < 0) | (age >= self.window), -math.inf)
        if self.sinks is None:
            return torch.softmax(logits, dim=-1)
        column = self.sinks.view(-1, 1, 1).expand(-1, len(rows), 1)
        return torch.softmax(torch.cat([logits, column], dim=-1), dim=-1)[..., :-1]


def turned(x: Tensor, angles: Tensor, scale: float) -> Tensor:
    """``x [..., n, d]`` with channel c and c + d / 2 turned by ``angles [n, d / 2]``, times ``scale``."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos() * scale, angles.sin() * scale
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def frequencies(config: Any, layer: int) -> tuple[Tensor, float]:
    """Radians a position ``[d / 2]`` and the factor on turned channels, from the config; zeros for a layer without."""
    rope = config.rope_parameters
    if "rope_theta" not in rope:
        rope = rope[config.layer_types[layer]]
    half = torch.arange(0, HEAD_DIM, 2, dtype=torch.float64)
    plain = rope["rope_theta"] ** (-half / HEAD_DIM)
    if config.model_type == "smollm3" and not config.no_rope_layers[layer]:
        return torch.zeros_like(plain), 1.0
    if rope["rope_type"] == "default":
        return plain, 1.0
    assert rope["rope_type"] == "yarn"
    factor, original = rope["factor"], rope["original_max_position_embeddings"]

    def channel(turns: float) -> float:
        return HEAD_DIM * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope["rope_theta"]))

    low, high = channel(rope["beta_fast"]), channel(rope["beta_slow"])
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, HEAD_DIM - 1)
    ramp = ((torch.arange(HEAD_DIM // 2, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)
    return plain / factor * ramp + plain * (1 - ramp), 0.1 * math.log(factor) + 1


def plain_layers(plain: Any, ids: Tensor) -> list[Layer]:
    """Every layer of the unmodified model, run in fp64 over a text."""
    model = copy.deepcopy(plain)
    if model.config.model_type != "gpt_oss":  # whose experts torch multiplies in fp32 and below alone
        model = model.double()
    caught: dict[tuple[int, str], Tensor] = {}

    def catch(layer: int, name: str) -> Callable[..., None]:
        def hook(module: Any, arguments: Any, output: Tensor) -> None:
            rows = output[0]
            if rows.ndim == 2:  # [L, heads * d]
                rows = rows.view(len(ids), -1, HEAD_DIM)
            caught[layer, name] = (rows if rows.shape[1] == len(ids) else rows.transpose(0, 1)).double()

        return hook

    for i, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        for name in ("q", "k", "v"):
            norm = getattr(attention, f"{name}_norm", None)
            (norm or getattr(attention, f"{name}_proj")).register_forward_hook(catch(i, name))
    with torch.inference_mode():
        model(input_ids=ids[None], use_cache=False)
    found = []
    for i, layer in enumerate(model.model.layers):
        attention, config = layer.self_attn, model.config
        radians, scale = frequencies(config, i)
        angles = torch.arange(len(ids), dtype=torch.float64)[:, None] * radians
        slides = getattr(config, "layer_types", None) and config.layer_types[i] == "sliding_attention"
        found.append(
            Layer(
                caught[i, "q"],
                turned(caught[i, "q"], angles, scale),
                turned(caught[i, "k"], angles, scale),
                caught[i, "v"],
                radians,
                scale,
                config.sliding_window if slides else len(ids),
                attention.scaling,
                attention.sinks.detach().double() if hasattr(attention, "sinks") else None,
            )
        )
    return found
