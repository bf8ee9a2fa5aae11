"""Harness cases of adakv, headkv, headkv-r2, dynamickv, chunkkv, corm, expected-attention and lighttransfer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import evict_b_oracle as oracle
from evict_a_replay import Array, attention_matrix, replayed
from harness import HEAD_DIM, HEADS, KV_HEADS, LAYERS, Case
from torch import Tensor

from lcbench.kv.cache import CacheShape
from lcbench.kv.record import PrefillRecord
from lcbench.methods.base import Method
from lcbench.methods.calibration import Calibration, bound

GROUP = HEADS // KV_HEADS


def cut_bytes(keep: int, copies: int = 1) -> Any:
    """Bytes where every head keeps ``keep`` tokens of the prompt on average, and new tokens are added."""

    def nbytes(shape: CacheShape, prompt: int, new: int) -> int:
        return shape.full_bytes(keep + new) * copies if prompt > keep else shape.full_bytes(prompt + new)

    return nbytes


# --- adakv: B = 24, w = 8 ---------------------------------------------------------------------------------------------

_ADAKV_NOOP = ("adakv@budget=60", "adakv@budget=1.0,alpha=0.0", "adakv@budget=0.25,window=60,granularity=query")


def _adakv(options: str, **more: Any) -> Case:
    return Case(
        spec=f"adakv@budget=24,window=8,{options}",
        noop=_ADAKV_NOOP,
        reference=oracle.reference(oracle.adakv),
        short=(1, 2, 7, 8, 9, 23, 24, 25),
        untouched=lambda length: length <= 24,
        **more,
    )


ADAKV = [
    _adakv("skip=1", nbytes=None),
    _adakv("alpha=0.5,allocation=exact,normalize=true,reduce=max", nbytes=cut_bytes(24)),
    _adakv("alpha=0.0,granularity=query,kernel=3,pooling=avg", nbytes=cut_bytes(24, GROUP)),
]

# --- headkv: B = 20, w = 4, b = 16 ------------------------------------------------------------------------------------

TABLE = [[float(1 + (7 * layer + 3 * head * head) % 11) for head in range(HEADS)] for layer in range(LAYERS)]


def with_table(method: Method, table: list[list[float]] | None = None) -> Method:
    """The method as `bind` would return it, with scores that rise and fall over the heads."""
    scores = {"scores": TABLE if table is None else table}
    return bound(method, _head_scores=Calibration(Path("table.json"), "0" * 64, scores, {}, {}))


def _headkv_kept(method: Any, record: PrefillRecord) -> oracle.Kept:
    return oracle.headkv(method, record, TABLE)


def _headkv(spec: str, **more: Any) -> Case:
    name = spec.split("@")[0]
    return Case(
        spec=spec,
        noop=(f"{name}@budget=60", f"{name}@budget=1.0"),
        nbytes=None,
        reference=oracle.reference(_headkv_kept),
        short=(1, 2, 3, 4, 5, 19, 20, 21, 30),
        untouched=lambda length: length <= 20,
        bind=with_table,
        **more,
    )


# --- dynamickv, chunkkv, lighttransfer, expected-attention ------------------------------------------------------------


def _dynamickv(options: str, copies: int) -> Case:
    return Case(
        spec=f"dynamickv@budget=20,window=4,{options}",
        noop=("dynamickv@budget=60", "dynamickv@budget=1.0"),
        nbytes=cut_bytes(20, copies),
        reference=oracle.reference(oracle.dynamickv),
        short=(1, 2, 3, 4, 5, 19, 20, 21),
        untouched=lambda length: length <= 20,
    )


def _chunkkv(options: str) -> Case:
    return Case(
        spec=f"chunkkv@budget=27,window=6,{options}",
        noop=("chunkkv@budget=60", "chunkkv@budget=1.0"),
        nbytes=None,
        reference=oracle.reference(oracle.chunkkv),
        short=(1, 2, 5, 6, 7, 26, 27, 28, 31),
        untouched=lambda length: length <= 27,
    )


def _lazy_bytes(lazy: int, roll: bool) -> Any:
    def nbytes(shape: CacheShape, prompt: int, new: int) -> int:
        if prompt <= 20:
            return shape.full_bytes(prompt + new)
        held = 20 if roll else 20 + new
        return (shape.full_bytes(held) * lazy + shape.full_bytes(prompt + new) * (LAYERS - lazy)) // LAYERS

    return nbytes


def _lighttransfer(options: str, lazy: int | None, roll: bool = True) -> Case:
    return Case(
        spec=f"lighttransfer@n_sink=3,n_recent=17,{options}",
        noop=("lighttransfer", "lighttransfer@n_recent=20,theta=1.0", "lighttransfer@n_recent=20,lazy_layers=0"),
        nbytes=None if lazy is None else _lazy_bytes(lazy, roll),
        reference=oracle.lighttransfer_reference,
        short=(1, 2, 3, 4, 19, 20, 21, 22),
        untouched=lambda length: length <= 20,
    )


def expected_reference(pair: Any, method: Any, ids: Tensor, prompt: int, seen: list[tuple[Tensor, Tensor]]) -> Tensor:
    def kept(_: Any, record: PrefillRecord) -> oracle.Kept:
        return expected_positions(pair, method, ids[:prompt], record)

    return oracle.reference(kept)(pair, method, ids, prompt, seen)


def expected_positions(pair: Any, method: Any, ids: Tensor, record: PrefillRecord) -> oracle.Kept:
    keep = oracle.budget(method, record.length, method.n_sink + 1)
    if keep >= record.length:
        return oracle.everything(record)
    queries = oracle.PlainQueries(pair, ids).layers
    scores = [oracle.expected_attention(method, layer, queries[layer.index]) for layer in oracle.layers(record)]
    return [[oracle.best(row, keep) for row in heads] for heads in scores]


def _expected(options: str) -> Case:
    return Case(
        spec=f"expected-attention@budget=20,n_sink=3,{options}",
        noop=("expected-attention@budget=60", "expected-attention@budget=1.0"),
        nbytes=cut_bytes(20),
        reference=expected_reference,
        short=(1, 2, 3, 4, 19, 20, 21),
        untouched=lambda length: length <= 20,
    )


# --- corm -------------------------------------------------------------------------------------------------------------


def corm_rule(method: Any, query: Array, key: Array, value: Array, prompt: int, window: int | None) -> Any:
    rows = attention_matrix(query[:, :prompt], key[:, :prompt], window)[:, -method.window :]
    return oracle.Messages(method, rows, prompt)


def _corm(options: str) -> Case:
    return Case(
        spec=f"corm@{options}",
        noop=("corm", "corm@window=4,recent=124", "corm@window=124,recent=4"),
        nbytes=None,
        reference=replayed(corm_rule),
        short=(1, 2, 5, 6, 7, 8, 9, 10),
        entry_bytes=2 * HEAD_DIM * 4 + 4,
    )


CASES: dict[str, list[Case]] = {
    "adakv": ADAKV,
    "headkv": [_headkv("headkv@budget=20,window=4,beta=1.1"), _headkv("headkv@budget=20,window=4,granularity=query")],
    "headkv-r2": [_headkv("headkv-r2@budget=20,window=4,kernel=3,pooling=avg,temp=2.0,beta=1.005")],
    "dynamickv": [_dynamickv("kernel=3", 1), _dynamickv("r_max=1.5,granularity=query,pooling=max", GROUP)],
    "chunkkv": [_chunkkv("length=4"), _chunkkv("length=5,aggregate=mean,reuse=3")],
    "lighttransfer": [
        _lighttransfer("queries=8", 2),
        _lighttransfer("lazy_layers=3,roll=false,queries=1", 3, roll=False),
        _lighttransfer("theta=0.45,keep_last=1", None),
        _lighttransfer("fixed=0/3", 2),
    ],
    "expected-attention": [_expected("future=16"), _expected("covariance=false,value_norm=false,future=1")],
    "corm": [_corm("window=6,recent=8"), _corm("window=9,recent=3")],
}
