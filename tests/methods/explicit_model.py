"""A plain Llama, Mistral or Qwen2 run by hand, its attention replaced by a function of unrotated queries and keys.

For methods that put keys at other angles: the reference says for every query which keys it sees and at which angles,
in fp64, and nothing of lcbench is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from harness import HEAD_DIM, HEADS, KV_HEADS, LAYERS, SCALING, Models
from torch import Tensor

GROUP = HEADS // KV_HEADS
# (layer, query [H, T, d], key [Hk, T, d], value [Hk, T, d]), unrotated fp64 -> output [H, T, d]
Attention = Callable[[int, Tensor, Tensor, Tensor], Tensor]


def logits(model: Any, ids: Tensor, attention: Attention) -> Tensor:
    """Logits ``[T, vocab]`` of the whole text."""
    body = model.model
    with torch.inference_mode():
        hidden = body.embed_tokens(ids[None])
        for number, layer in enumerate(body.layers):
            normed = layer.input_layernorm(hidden)
            query, key, value = (
                project(normed)[0].view(len(ids), -1, HEAD_DIM).transpose(0, 1).double()
                for project in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
            )
            out = attention(number, query, key, value)
            hidden = hidden + layer.self_attn.o_proj(out.transpose(0, 1).reshape(1, len(ids), -1).to(hidden.dtype))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return model.lm_head(body.norm(hidden))[0]


def turned(model: Any, x: Tensor, angles: Tensor | Sequence[int]) -> Tensor:
    """``x [..., n, d]`` rotated at the angles ``[n]``, pair (c, c + d/2) by angle times frequency, fp64."""
    frequencies, scaling = model.model.rotary_emb.inv_freq, model.model.rotary_emb.attention_scaling
    turns = (torch.as_tensor(angles)[:, None].float() * frequencies.float()).double()
    half = HEAD_DIM // 2
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * turns.cos() - b * turns.sin(), b * turns.cos() + a * turns.sin()], dim=-1) * scaling


def one_query(
    sections: Sequence[tuple[Tensor, Tensor, Tensor]], visible: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Attention of one token under one softmax.

    Args:
        sections: (query ``[H, d]``, keys ``[Hk, n, d]``, values ``[Hk, n, d]``), rotated; n may differ.
        visible: bool ``[H, n]``, keys of the only section that a query head sees; None for all.

    Returns:
        Output ``[H, d]`` and, for each section, the weights ``[H, n]``.
    """
    parts = [
        (query.view(KV_HEADS, GROUP, -1) @ key.transpose(1, 2) * SCALING).flatten(0, 1) for query, key, _ in sections
    ]
    if visible is not None:
        parts = [part.masked_fill(~visible, -torch.inf) for part in parts]
    shares = torch.softmax(torch.cat(parts, dim=1), dim=1).split([part.shape[1] for part in parts], dim=1)
    out = sum(
        (share.view(KV_HEADS, GROUP, -1) @ value).flatten(0, 1)
        for share, (_, _, value) in zip(shares, sections, strict=True)
    )
    return out, list(shares)


def dense(pair: Models) -> Attention:
    """Ordinary causal attention, to see that the model above is the plain one."""

    def attention(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        total = query.shape[1]
        rotated_query, rotated_key = (turned(pair.plain, x, range(total)) for x in (query, key))
        rows = []
        for i in range(total):
            low = 0 if pair.window is None else max(0, i - pair.window + 1)
            seen = slice(low, i + 1)
            rows.append(one_query([(rotated_query[:, i], rotated_key[:, seen], value[:, seen])])[0])
        return torch.stack(rows, dim=1)

    return attention


__all__ = ["GROUP", "LAYERS", "Attention", "dense", "logits", "one_query", "turned"]
