"""The converted model: Llama with latent attention and RoPE on a part of each head.

The cache holds, for a token and layer, R latent values, from which keys without rotation and values are made again, and
``rope_dims`` rotated key values a KV head. Names and row orders of the weights are those of the authors' converted
checkpoints with a joint decomposition.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM


class Mha2MlaConfig(LlamaConfig):  # type: ignore[misc, no-any-unimported, unused-ignore]
    """A Llama config and what the conversion chose.

    Attributes:
        rope_dims: r', dimensions of each head that stay rotated. rank: R, latent values a token and layer.
        rope_pairs: for each layer the rotated pairs of each KV head, ``[layers][kv_heads][rope_dims / 2]``; pair p is
            dimensions p and p + head_dim / 2.
    """

    model_type = "mha2mla"
    rope_dims: int = 64
    rank: int = 64
    rope_pairs: Any = None


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate ``x [B, H, q, r']``, halves as in Llama, by angles ``[B, H or 1, q, r']``."""
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cos + turned * sin


class LowRankKV(nn.Module):
    """From the residual stream to a latent ``[R]``, and from it to keys without rotation and values."""

    def __init__(self, width: int, rank: int, keys: int, values: int, bias: bool) -> None:
        super().__init__()
        self.down_kv = nn.Linear(width, rank, bias=False)
        self.up_k = nn.Linear(rank, keys, bias=bias) if keys else None
        self.up_v = nn.Linear(rank, values, bias=bias)


class LatentAttention(nn.Module):
    """Stands in for LlamaAttention.

    A prompt makes keys and values of all latents again and attends as Llama does; a single new token attends to the
    latents themselves, with the up-projections taken into query and output (the same up to rounding).
    """

    def __init__(self, config: Mha2MlaConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.heads, self.kv_heads = int(config.num_attention_heads), int(config.num_key_value_heads or 1)
        self.head_dim = int(config.head_dim or config.hidden_size // self.heads)
        self.num_key_value_groups = self.heads // self.kv_heads
        self.rope_dims, self.scaling, self.is_causal = int(config.rope_dims), self.head_dim**-0.5, True
        self.free = self.head_dim - self.rope_dims  # dimensions without rotation
        width, bias = int(config.hidden_size), bool(config.attention_bias)
        self.q_proj = nn.Linear(width, self.heads * self.head_dim, bias=bias)
        self.k_r_proj = nn.Linear(width, self.kv_heads * self.rope_dims, bias=bias)
        self.kv_proj = LowRankKV(
            width, int(config.rank), self.kv_heads * self.free, self.kv_heads * self.head_dim, bias
        )
        self.o_proj = nn.Linear(self.heads * self.head_dim, width, bias=bias)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **more: Any,
    ) -> tuple[Tensor, None]:
        batch, length, _ = hidden_states.shape
        query = self.q_proj(hidden_states)
        rotated, free = query.split([self.heads * self.rope_dims, self.heads * self.free], dim=-1)
        rotated, free = self._heads(rotated, self.heads), self._heads(free, self.heads)
        key = self._heads(self.k_r_proj(hidden_states), self.kv_heads)
        cos, sin = self._angles(*position_embeddings)
        groups = self.num_key_value_groups
        key = apply_rope(key, cos, sin)
        rotated = apply_rope(rotated, *(t.repeat_interleave(groups, dim=1) for t in (cos, sin)))
        latent = self.kv_proj.down_kv(hidden_states)[:, None]  # [B, 1, q, R]
        if past_key_values is not None:
            latent, key = past_key_values.update(latent, key, self.layer_idx)
        absorbs = length == 1 and attention_mask is None
        attend = self.attend_latent if absorbs else self.attend_rebuilt
        out = attend(rotated, free, latent[:, 0], key, attention_mask)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1)), None

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        return x.view(*x.shape[:2], heads, -1).transpose(1, 2)

    def _angles(self, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the kept pairs of each KV head, ``[B, Hk, q, r']``, from all pairs' ``[B, q, d]``."""
        pairs = torch.tensor(self.config.rope_pairs[self.layer_idx], device=cos.device)  # [Hk, r' / 2]
        twice = torch.cat([pairs, pairs], dim=1)
        return cos[..., twice].transpose(1, 2), sin[..., twice].transpose(1, 2)

    def attend_rebuilt(self, rotated: Tensor, free: Tensor, latent: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
        """Attention ``[B, H, q, d]`` over keys and values made of the latents ``[B, n, R]``."""
        up_k, up_v = self.kv_proj.up_k, self.kv_proj.up_v
        keys = key if up_k is None else torch.cat([key, self._heads(up_k(latent), self.kv_heads)], dim=-1)
        queries = torch.cat([rotated, free], dim=-1)
        out, _ = AttentionInterface().get_interface("sdpa", None)(
            self, queries, keys, self._heads(up_v(latent), self.kv_heads), mask, scaling=self.scaling
        )
        return out.transpose(1, 2)  # type: ignore[no-any-return]

    def attend_latent(self, rotated: Tensor, free: Tensor, latent: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
        """The same without making them: ``q W_up`` against the latents, and ``W_up`` on their weighted sum."""
        groups, up_k, up_v = self.num_key_value_groups, self.kv_proj.up_k, self.kv_proj.up_v
        logits = rotated @ key.repeat_interleave(groups, dim=1).transpose(2, 3)
        if up_k is not None:
            into = up_k.weight.view(self.kv_heads, self.free, -1).repeat_interleave(groups, dim=0)  # [H, d - r', R]
            logits = logits + (free @ into) @ latent[:, None].transpose(2, 3)  # a bias shifts all keys alike
        weights = F.softmax(logits.float() * self.scaling, dim=-1).to(latent.dtype)
        out_of = up_v.weight.view(self.kv_heads, self.head_dim, -1).repeat_interleave(groups, dim=0)  # [H, d, R]
        out = (weights @ latent[:, None]) @ out_of.transpose(1, 2)
        if up_v.bias is not None:
            out = out + up_v.bias.view(self.kv_heads, 1, -1).repeat_interleave(groups, dim=0)
        return out  # type: ignore[no-any-return]


class Mha2MlaForCausalLM(LlamaForCausalLM):  # type: ignore[misc, no-any-unimported, unused-ignore]
    """Llama with `LatentAttention` in every layer."""

    config_class = Mha2MlaConfig
    config: Mha2MlaConfig

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # transformers looks for its own wording in this file

    def __init__(self, config: Mha2MlaConfig) -> None:
        super().__init__(config)
        for index, layer in enumerate(self.model.layers):
            layer.self_attn = LatentAttention(config, index)
        self.post_init()
