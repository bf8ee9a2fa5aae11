"""Harness cases of h2o, h2o-longctx, snapkv, pyramidkv, tova, vatp, knorm, keydiff and random."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from evict_a_replay import GROUP, Array, Heavy, Longctx, Newest, Rule, attention_matrix, replayed
from harness import HEADS, KV_HEADS, SCALING, Case, Visible, top_kept
from torch import Tensor

from lcbench.kv.cache import CacheShape
from lcbench.kv.record import LayerRecord


def cut_bytes(keep: int) -> Any:
    """Bytes where the prompt is cut to ``keep`` tokens a head and new tokens are added."""
    return lambda shape, prompt, new: shape.full_bytes(min(prompt, keep) + new)


# --- scores of a prompt, in fp64 -------------------------------------------------------------------------------------


def window_rows(record: LayerRecord, window: int, sliding: int | None) -> Array:
    """Softmax weights ``[H, w, L]`` of the last queries, one query and one head at a time."""
    queries = next(iter(record.observed.values())).double().numpy()
    keys = record.key.double().numpy()
    count, length = min(window, record.length), record.length
    rows = np.zeros((HEADS, count, length))
    for head in range(HEADS):
        for i in range(count):
            position = length - count + i
            first = 0 if sliding is None else max(0, position - sliding + 1)
            logits = keys[head // GROUP, first : position + 1] @ queries[head, i] * SCALING
            weights = np.exp(logits - logits.max())
            rows[head, i, first : position + 1] = weights / weights.sum()
    return rows


def pooled(scores: Array, kernel: int, kind: str) -> Array:
    """Pooling ``[h, n]`` written as sliding windows over zero (or absent) neighbours."""
    half = kernel // 2
    out = np.zeros_like(scores)
    for j in range(scores.shape[1]):
        near = scores[:, max(0, j - half) : j + half + 1]
        out[:, j] = near.max(axis=1) if kind == "max" else near.sum(axis=1) / kernel
    return out


def snap(record: LayerRecord, method: Any) -> Tensor:
    """SnapKV's scores ``[Hk or H, L]`` with infinity for the window."""
    rows = window_rows(record, method.window, record.window)
    before = max(0, record.length - method.window)
    scores = rows.sum(axis=1)[:, :before]
    if method.granularity == "kv":
        grouped = scores.reshape(KV_HEADS, GROUP, before)
        scores = grouped.mean(axis=1) if method.reduce == "mean" else grouped.max(axis=1)
    scores = pooled(scores, method.kernel, method.pooling)
    return torch.from_numpy(np.pad(scores, ((0, 0), (0, record.length - before)), constant_values=np.inf))


def snap_visible(method: Any, record: LayerRecord, seen: int) -> Tensor:
    return top_kept(lambda layer: snap(layer, method), at_least=method.window + 1)(method, record, seen)


# --- snapkv ----------------------------------------------------------------------------------------------------------

SNAPKV = Case(
    spec="snapkv@window=4,kernel=3,budget=16",
    noop=("snapkv@budget=60", "snapkv@budget=1.0", "snapkv@budget=0.25,window=59"),
    nbytes=cut_bytes(16),
    visible=snap_visible,
    short=(1, 2, 3, 4, 5, 15, 16, 17),
    untouched=lambda length: length <= 16,
)


def _query_bytes(shape: CacheShape, prompt: int, new: int) -> int:
    return shape.full_bytes(16 + new) * GROUP if prompt > 16 else shape.full_bytes(prompt + new)


SNAPKV_QUERY = Case(
    spec="snapkv@window=4,kernel=5,pooling=avg,budget=16,granularity=query",
    noop=("snapkv@budget=60,granularity=query",),
    nbytes=_query_bytes,
    visible=snap_visible,
    short=(3, 5, 16, 17),
    untouched=lambda length: length <= 16,
)


# --- pyramidkv: C = 16, w = 4, b = 12 on 4 layers --------------------------------------------------------------------


def pyramid(prompt: int) -> list[int]:
    """Tokens a layer keeps, by hand: min 12 // 4 = 3, max 21, clipped to L - 4, step (max - min) // 3."""
    if prompt <= 16:
        return [prompt] * 4
    if prompt < 24:
        return [16] * 4
    if prompt - 4 <= 21:
        high, low = prompt - 4, 24 - (prompt - 4)
    else:
        high, low = 21, 3
    return [high - i * ((high - low) // 3) + 4 for i in range(4)]


def _pyramid_visible(method: Any, record: LayerRecord, seen: int) -> Tensor:
    keep = pyramid(record.length)[record.index]
    scores = snap(record, method)
    rows = torch.ones(scores.shape[0], seen, dtype=torch.bool)
    for head, row in enumerate(scores.tolist()):
        rows[head, sorted(range(record.length), key=lambda j: (-row[j], j))[keep:]] = False
    return rows


def _pyramid_bytes(shape: CacheShape, prompt: int, new: int) -> int:
    return sum(shape.full_bytes(keep + new) for keep in pyramid(prompt)) // shape.layers


PYRAMIDKV = Case(
    spec="pyramidkv@window=4,kernel=3,beta=4,budget=16",
    noop=("pyramidkv@budget=60", "pyramidkv@budget=1.0"),
    nbytes=_pyramid_bytes,
    visible=_pyramid_visible,
    short=(1, 3, 4, 5, 15, 16, 17, 23, 24, 25, 26),
    untouched=lambda length: length <= 16,
)


# --- knorm, keydiff, random ------------------------------------------------------------------------------------------


def _norms(record: LayerRecord) -> Tensor:
    return -(record.key.double() ** 2).sum(dim=-1)


def _differences(record: LayerRecord) -> Tensor:
    scores = torch.empty(record.key.shape[:2], dtype=torch.float64)
    for head, keys in enumerate(record.key.double().numpy()):
        unit = keys / np.linalg.norm(keys, axis=1)[:, None]
        anchor = unit.mean(axis=0)
        scores[head] = torch.from_numpy(-(unit @ anchor) / np.linalg.norm(anchor))
    return scores


def _draws(record: LayerRecord) -> Tensor:
    torch.manual_seed(17)  # as `harness.compressed`
    return [torch.rand(KV_HEADS, record.length) for _ in range(record.index + 1)][-1]


def _scorer(spec: str, visible: Visible, **more: Any) -> Case:
    name = spec.split("@")[0]
    return Case(
        spec=spec,
        noop=(f"{name}@budget=1.0", f"{name}@budget=60"),
        nbytes=cut_bytes(16),
        visible=visible,
        short=(1, 2, 15, 16, 17),
        untouched=lambda length: length <= 16,
        **more,
    )


# --- h2o and vatp: scores add up while decoding ----------------------------------------------------------------------


def h2o_rule(method: Any, query: Array, key: Array, value: Array, prompt: int, window: int | None) -> Rule:
    sums = attention_matrix(query[:, :prompt], key[:, :prompt], window).sum(axis=1)
    limits = method.limits(prompt)
    return Heavy(sums, limits.heavy, limits.recent, KV_HEADS if method.granularity == "kv" else HEADS)


def _h2o_bytes(shape: CacheShape, prompt: int, new: int) -> int:
    held = min(prompt + new, 20)
    return shape.full_bytes(held) + 4 * shape.layers * shape.heads * held


H2O = Case(
    spec="h2o@heavy=13,recent=7",
    noop=("h2o@budget=1.0", "h2o@heavy=0.5,recent=0.5", "h2o@budget=124"),
    nbytes=_h2o_bytes,
    reference=replayed(h2o_rule),
    short=(1, 2, 7, 19, 20, 21),
)


def vatp_rule(method: Any, query: Array, key: Array, value: Array, prompt: int, window: int | None) -> Rule:
    matrix = attention_matrix(query[:, :prompt], key[:, :prompt], window)
    received = matrix.sum(axis=1) if method.base == "h2o" else matrix[:, -method.window :].mean(axis=1)
    norms = np.abs(value).sum(axis=-1)
    scores = received * norms[:, :prompt].repeat(GROUP, axis=0)
    heavy, recent = (10, 10) if method.base == "h2o" else (16, 4)
    stored = KV_HEADS if method.granularity == "kv" else HEADS
    return Heavy(scores, heavy, recent, stored, norms, method.sinks)


def _vatp_bytes(shape: CacheShape, prompt: int, new: int) -> int:
    held = min(prompt + new, 20)
    return shape.full_bytes(held) + 4 * shape.layers * (shape.heads + shape.kv_heads) * held


def _vatp(options: str) -> Case:
    return Case(
        spec=f"vatp@budget=20,sinks=2,{options}",
        noop=("vatp@budget=1.0", "vatp@budget=124"),
        nbytes=_vatp_bytes,
        reference=replayed(vatp_rule),
        short=(1, 2, 3, 19, 20, 21),
    )


# --- h2o-longctx -----------------------------------------------------------------------------------------------------


def longctx_rule(method: Any, query: Array, key: Array, value: Array, prompt: int, window: int | None) -> Rule:
    ratio = {"2x": 0.25, "4x": 0.125, "6x": 0.083, "8x": 0.0625}[method.preset]
    return Longctx(
        prompt,
        ratio if method.heavy is None else method.heavy,
        ratio if method.recent is None else method.recent,
    )


def _longctx_bytes(shape: CacheShape, prompt: int, new: int) -> int:
    held = prompt + new
    return shape.full_bytes(held) + (5 * shape.layers * shape.heads * held if new else 0)


LONGCTX = Case(
    spec="h2o-longctx@preset=2x",
    noop=("h2o-longctx@recent=0",),
    nbytes=_longctx_bytes,
    reference=replayed(longctx_rule),
    short=(1, 2, 3, 7, 8),
    untouched=lambda length: True,  # nothing is removed from the prompt, whatever its length
)


# --- tova ------------------------------------------------------------------------------------------------------------


def tova_rule(method: Any, query: Array, key: Array, value: Array, prompt: int, window: int | None) -> Rule:
    last = attention_matrix(query[:, :prompt], key[:, :prompt], window)[:, -1]
    capacity = method.budget.tokens or math.floor(method.budget.ratio * prompt)
    return Newest(last, capacity, decode=method.decode, keep_last=method.keep_last)


TOVA = Case(
    spec="tova@budget=16",
    noop=("tova@budget=1.0", "tova@budget=124", "tova@budget=60,decode=false"),
    nbytes=lambda shape, prompt, new: shape.full_bytes(min(prompt + new, 16)),
    reference=replayed(tova_rule),
    short=(1, 2, 15, 16, 17),
    untouched=lambda length: length <= 16,
)


CASES: dict[str, list[Case]] = {
    "snapkv": [SNAPKV, SNAPKV_QUERY],
    "pyramidkv": [PYRAMIDKV],
    "knorm": [_scorer("knorm@budget=16", top_kept(_norms))],
    "keydiff": [_scorer("keydiff@budget=16", top_kept(_differences))],
    "random": [_scorer("random@budget=16", top_kept(_draws), seeded=True)],
    "h2o": [H2O],
    "h2o-longctx": [LONGCTX],
    "vatp": [_vatp("window=9,recent=4"), _vatp("base=h2o")],
    "tova": [TOVA],
}
