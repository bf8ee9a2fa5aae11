"""Harness case of positional-hidden: a plain model run by hand, with inputs of queries and keys scaled."""

from __future__ import annotations

from typing import Any

import torch
from explicit_model import one_query, turned
from harness import HEAD_DIM, Case, Models
from torch import Tensor

from lcbench.kv.cache import CacheShape


def scaled_logits(
    pair: Models, ids: Tensor, prompt: int, *, channels: list[int], factor: float, layers: range, rows: int
) -> Tensor:
    """Logits ``[T, vocab]`` of the whole text, fp64 attention."""
    body, total = pair.plain.model, len(ids)
    with torch.inference_mode():
        hidden = body.embed_tokens(ids[None])
        for number, layer in enumerate(body.layers):
            normed = layer.input_layernorm(hidden)
            other = normed.clone()
            if number in layers:
                other[..., channels] = other[..., channels] * factor
            attend = layer.self_attn

            def heads(project: Any, x: Tensor) -> Tensor:
                return project(x)[0].view(total, -1, HEAD_DIM).transpose(0, 1).double()

            value = heads(attend.v_proj, normed)
            pairs = []
            for x in (normed, other):
                query, key = heads(attend.q_proj, x), heads(attend.k_proj, x)
                pairs.append((turned(pair.plain, query, range(total)), turned(pair.plain, key, range(total))))
            out = []
            for i in range(total):
                query, key = pairs[i >= prompt - rows]
                low = 0 if pair.window is None else max(0, i - pair.window + 1)
                out.append(one_query([(query[:, i], key[:, low : i + 1], value[:, low : i + 1])])[0])
            mixed = torch.stack(out, dim=1).transpose(0, 1).reshape(1, total, -1).to(hidden.dtype)
            hidden = hidden + attend.o_proj(mixed)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        logits: Tensor = pair.plain.lm_head(body.norm(hidden))[0]
        return logits


def _reference(pair: Models, method: Any, ids: Tensor, prompt: int, seen: list[tuple[Tensor, Tensor]]) -> Tensor:
    options = {"channels": list(method.channels), "factor": method.factor, "rows": method.rows}
    return scaled_logits(pair, ids, prompt, layers=range(method.first, method.last + 1), **options)[prompt:]


def _bytes(shape: CacheShape, prompt: int, new: int) -> int:
    return shape.full_bytes(prompt + new)


CASES: dict[str, list[Case]] = {
    "positional-hidden": [
        Case(
            spec="positional-hidden@channels=5/17/40,factor=-3,first=1,last=2,rows=2",
            noop=("positional-hidden@channels=5,factor=1",),
            nbytes=_bytes,
            reference=_reference,
            short=(2, 3),
            untouched=lambda length: True,
            keeps_all=True,
        )
    ]
}
