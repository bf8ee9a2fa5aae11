"""Harness cases of infllm, quest, squeezed-attention, shadowkv, longcache and streamingllm-longctx."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import explicit_model
import retrieve_oracle as oracle
from explicit_model import Attention
from harness import Case, Models, Reference
from torch import Tensor

from lcbench.kv.cache import CacheShape


def _reference(attention: Callable[[Models, Any, int], Attention]) -> Reference:
    def logits(pair: Models, method: Any, ids: Tensor, prompt: int, seen: list[tuple[Tensor, Tensor]]) -> Tensor:
        return explicit_model.logits(pair.plain, ids, attention(pair, method, prompt))[prompt:]

    return logits


# --- streamingllm-longctx --------------------------------------------------------------------------------------------


def _streaming(n_init: int, n_local: int, variant: str) -> Case:
    name = "streamingllm-longctx"
    return Case(
        spec=f"{name}@n_init={n_init},n_local={n_local},variant={variant}",
        noop=(f"{name}@n_local=124", f"{name}@n_init=4,n_local=124,variant=official"),
        nbytes=lambda shape, prompt, new: shape.full_bytes(min(prompt + new, n_init + n_local)),
        reference=_reference(lambda pair, method, prompt: oracle.streaming(pair, n_init, n_local, variant)),
        short=(1, 2, n_init + 1, n_local - 1, n_local, n_local + 1, n_init + n_local, n_init + n_local + 1),
        untouched=lambda length: length <= n_init + n_local,
    )


# --- infllm ----------------------------------------------------------------------------------------------------------


def _infllm_bytes(shape: CacheShape, prompt: int, new: int) -> int:
    """Everything, a vector a block and query head, and 4 bytes a query head for each token after the blocks."""
    seen = prompt + new
    first = min(3, max(0, seen - 16))
    blocks = max(0, seen - first - 16) // 8
    vectors = shape.heads * shape.head_dim * shape.dtype.itemsize * blocks
    return shape.full_bytes(seen) + shape.layers * (vectors + 4 * shape.heads * (seen - first - 8 * blocks))


def _infllm(topk: int, remainder: str) -> Case:
    return Case(
        spec=f"infllm@n_init=3,n_local=16,topk={topk},block_size=8,repr_topk=2,exc_block_size=8,remainder={remainder}",
        noop=("infllm@n_local=124,exc_block_size=32",),
        nbytes=_infllm_bytes,
        reference=_reference(oracle.infllm),
        short=(1, 2, 8, 9, 10, 16, 17, 18, 20, 27, 28),
        keeps_all=True,
    )


# --- quest -----------------------------------------------------------------------------------------------------------


def _quest(budget: str, page: int, dense: int, granularity: str) -> Case:
    def nbytes(shape: CacheShape, prompt: int, new: int) -> int:
        bounds = 2 * shape.kv_heads * shape.head_dim * shape.dtype.itemsize * ((prompt + new) // page)
        return shape.full_bytes(prompt + new) + (shape.layers - dense) * bounds

    return Case(
        spec=f"quest@budget={budget},page_size={page},dense_layers={dense},granularity={granularity}",
        noop=("quest@budget=124,page_size=4", "quest@budget=16,dense_layers=4"),
        nbytes=nbytes,
        reference=_reference(oracle.quest),
        short=(1, page - 1, page, page + 1, 19, 20, 21),
        untouched=lambda length: length < page,
        keeps_all=True,
    )


# --- squeezed-attention: 6 observed tokens, so that a prompt of 60 has 48 clustered ones -----------------------------


def _squeezed(clusters: float, coarse: float, percentile: float) -> Case:
    def nbytes(shape: CacheShape, prompt: int, new: int) -> int:
        count = max(0, prompt - 12)
        if count == 0:
            return shape.full_bytes(prompt + new)
        sets, above = max(1, int(clusters * count)), max(1, int(coarse * count))
        vector = shape.head_dim * shape.dtype.itemsize + 4
        held = sets * vector + 4 * count + (above * vector + 4 * sets if coarse else 0)
        return shape.full_bytes(prompt + new) + shape.layers * shape.kv_heads * held

    def logits(pair: Models, method: Any, ids: Tensor, prompt: int, seen: list[tuple[Tensor, Tensor]]) -> Tensor:
        attention = oracle.squeezed(pair, method, ids, prompt, seen)
        return explicit_model.logits(pair.plain, ids, attention)[prompt:]

    name = "squeezed-attention"
    two = f",coarse={coarse},percentile_lower=0.4" if coarse else ""
    return Case(
        spec=f"{name}@clusters={clusters},percentile={percentile}{two},obs=6,question=each",
        noop=(
            f"{name}@percentile=0,obs=6,clusters=0.3,coarse=0.1,percentile_lower=0",
            f"{name}@percentile=0,obs=6",
        ),
        nbytes=nbytes,
        reference=logits,
        short=(1, 2, 11, 12, 13, 14),
        untouched=lambda length: length <= 12,
        keeps_all=True,
    )


# --- shadowkv --------------------------------------------------------------------------------------------------------


def _shadow_bytes(shape: CacheShape, prompt: int, new: int) -> int:
    """Rank 20, chunks of 4, 2 outliers, 1 local chunk, budget 12; applies from 24 tokens on."""
    if prompt < 24:
        return shape.full_bytes(prompt + new)
    e, wide = shape.dtype.itemsize, shape.kv_heads * shape.head_dim
    chunks = prompt // 4 - 1
    local = prompt - 4 * chunks
    low_rank = e * prompt * 20 + e * 20 * wide
    landmarks = (chunks - 2) * (e * wide + 4 * shape.kv_heads)
    exact = 2 * e * wide * (local + 8 + new)
    return shape.layers * (low_rank + landmarks + exact + e * wide * prompt)


_SHADOW = Case(
    spec="shadowkv@budget=12,rank=20,chunk_size=4,outliers=2,local_chunks=1,min_prompt=20",
    noop=(
        "shadowkv",
        "shadowkv@budget=56,rank=64,chunk_size=4,outliers=0,local_chunks=1,min_prompt=20",
    ),
    nbytes=_shadow_bytes,
    reference=_reference(oracle.shadowkv),
    short=(1, 2, 20, 21, 23, 24, 25),
    untouched=lambda length: length < 24,
)


# --- longcache -------------------------------------------------------------------------------------------------------


def _longcache(more: str) -> Case:
    base = "longcache@global_size=3,local_size=16,chunk_size=8,scope=24,align=8"
    return Case(
        spec=f"{base},{more}",
        noop=(f"{base},mid_size=99,span_size=16,recall_clip=999", "longcache"),
        nbytes=lambda shape, prompt, new: shape.full_bytes(prompt + new),
        reference=_reference(oracle.longcache),
        short=(1, 2, 3, 18, 19, 20, 23, 24, 25, 32, 33),
        untouched=lambda length: True,
        keeps_all=True,
        distinct=True,
    )


CASES: dict[str, list[Case]] = {
    "streamingllm-longctx": [_streaming(4, 20, "infllm"), _streaming(4, 20, "official")],
    "infllm": [_infllm(2, "masked"), _infllm(2, "whole")],
    "quest": [_quest("20", 4, 2, "kv"), _quest("0.3", 7, 0, "query")],
    "squeezed-attention": [_squeezed(0.3, 0.0, 0.7), _squeezed(0.4, 0.15, 0.6)],
    "shadowkv": [_SHADOW],
    "longcache": [
        _longcache("mid_size=2,span_size=4,recall_clip=3"),
        _longcache("mid_size=2,span_size=4,recall_clip=3,original=true"),
    ],
}
# What changes nothing, and most lengths, are the same for all cases of a method; the first one shows them.
for _cases in CASES.values():
    _cases[1:] = [replace(case, noop=(), short=case.short[-3:]) for case in _cases[1:]]
