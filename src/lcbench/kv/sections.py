"""Attention in sections: keys near by at their true distances and keys far away at others, under one softmax.

A query that sees two sections at different distances is rotated to two angles; each section brings the query as it
asks it. Grouped queries never copy keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lcbench.kv.weights import ELEMENTS
from lcbench.models.rule import AttentionRule


class Section(NamedTuple):
    """Keys with the queries that ask them.

    Attributes:
        query: ``[H, q, d]``, rotated for these keys. key, value: ``[Hk, n, d]``; n may be 0.
        hidden: bool ``[q, n]``, True where a query must not look; None where it sees everything.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    hidden: Tensor | None = None


def over_sections(
    sections: Sequence[Section], rule: AttentionRule, *, received: bool = False
) -> tuple[Tensor, Tensor | None]:
    """One softmax over all sections; every query must see at least one key.

    Args:
        rule: of the layer; its window is not looked at, a section hides what is out of sight.
        received: also sum what each key of the first section got from the q queries.

    Returns:
        Output ``[H, q, d]`` in the queries' dtype, and fp32 ``[H, n]`` of the first section or None.
    """
    assert rule.distances is None, "sections bring the distances that they are seen at"
    heads, q, _ = sections[0].query.shape
    kv_heads = sections[0].key.shape[0]
    group = heads // kv_heads
    held = sum(section.key.shape[1] for section in sections)
    step = max(1, ELEMENTS // (group * q * held))  # KV heads at once: logits of 64 MiB
    parts = [
        _some_heads(sections, slice(kv, kv + step), slice(kv * group, (kv + step) * group), rule)
        for kv in range(0, kv_heads, step)
    ]
    out = parts[0][0] if len(parts) == 1 else torch.cat([part for part, _ in parts])
    if not received:
        return out, None
    first = sections[0].key.shape[1]
    return out, torch.cat([weights[..., :first].sum(dim=1) for _, weights in parts])


def _some_heads(sections: Sequence[Section], kv: slice, mine: slice, rule: AttentionRule) -> tuple[Tensor, Tensor]:
    """Output and fp32 weights ``[h, q, n]`` of the query heads of some KV heads."""
    shrink = 2.0 ** math.floor(math.log2(rule.scaling))  # rounds nothing, and keeps fp16 logits from overflowing
    logits = []
    for section in sections:
        query, key = section.query[mine], section.key[kv]
        heads, q, d = query.shape
        rows = (query * shrink).reshape(key.shape[0], -1, d)
        part = torch.matmul(rows, key.transpose(1, 2)).float().view(heads, q, key.shape[1])
        part = rule.capped(part * (rule.scaling / shrink))
        if section.hidden is not None:
            part.masked_fill_(section.hidden, -torch.inf)
        logits.append(part)
    weights = rule.of_heads(mine).weights(torch.cat(logits, dim=-1))
    grouped = weights.view(sections[0].key[kv].shape[0], -1, weights.shape[2])
    out: Tensor | None = None
    at = 0
    for section in sections:
        value = section.value[kv]
        part = torch.matmul(grouped[..., at : at + value.shape[1]].to(value.dtype), value)
        out = part if out is None else out + part
        at += value.shape[1]
    assert out is not None
    return out.view(*weights.shape[:2], -1), weights
