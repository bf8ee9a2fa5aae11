"""Harness cases of em-llm, minference and lift."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import events_oracle
import explicit_model
import memory_oracle as oracle
from harness import HEADS, LAYERS, Case, Models
from torch import Tensor

from lcbench.kv.cache import CacheShape, KVCache
from lcbench.methods.base import Method
from lcbench.methods.calibration import Calibration, bound
from lcbench.methods.memory.em_llm import EventLayer

# --- minference ------------------------------------------------------------------------------------------------------

KINDS = {"a-shape": (3, 7), "vertical-slash": (5, 6), "block-sparse": (2, 0)}
PATTERNS = [  # of the tiny models: kinds and sizes that differ from head to head and layer to layer
    [
        (kind, KINDS[kind][0] + head % 2, KINDS[kind][1] + layer)
        for head in range(HEADS)
        for kind in [list(KINDS)[(layer + head) % 3]]
    ]
    for layer in range(LAYERS)
]
SMALL = "block_size=7,last_q=9,first=2,recent=3"


def with_patterns(method: Method, patterns: Any = PATTERNS) -> Method:
    """The method as `bind` would return it."""
    table = {"patterns": [[[*pattern, 0.5] for pattern in layer] for layer in patterns]}
    return bound(method, _patterns=Calibration(Path("patterns.json"), "0" * 64, table, {}, {}))


def _minference(more: str, patterns: Any) -> Case:
    def logits(pair: Models, method: Any, ids: Tensor, prompt: int, seen: list[tuple[Tensor, Tensor]]) -> Tensor:
        attention = oracle.minference(pair, method, prompt, patterns)
        return explicit_model.logits(pair.plain, ids, attention)[prompt:]

    return Case(
        spec=f"minference@{SMALL}{more}",
        noop=(
            "minference@pattern=a-shape,sinks=0,local=60",
            "minference@pattern=a-shape,sinks=60,local=1",
            "minference@pattern=vertical-slash,vertical=60,slash=1",
            "minference@pattern=vertical-slash,vertical=1,slash=60",
            "minference@pattern=block-sparse,blocks=9,block_size=7",
        ),
        nbytes=lambda shape, prompt, new: shape.full_bytes(prompt + new),
        reference=logits,
        short=(1, 2, 6, 7, 8, 9, 10),
        untouched=lambda length: True,
        bind=with_patterns,
        keeps_all=True,
    )


def _alike(kind: str) -> Case:
    first, second = KINDS[kind]
    names = {"a-shape": "sinks,local", "vertical-slash": "vertical,slash", "block-sparse": "blocks"}[kind].split(",")
    sizes = "".join(f",{name}={size}" for name, size in zip(names, (first, second), strict=False))
    return replace(
        _minference(f",pattern={kind}{sizes}", [[(kind, first, second)] * HEADS] * LAYERS), noop=(), short=(1, 8)
    )


# --- lift: a full cache; what it learns is tried in test_lift --------------------------------------------------------


def _dense(pair: Models, method: Any, ids: Tensor, prompt: int, seen: list[tuple[Tensor, Tensor]]) -> Tensor:
    return explicit_model.logits(pair.plain, ids, explicit_model.dense(pair))[prompt:]


_LIFT = Case(
    spec="lift",
    noop=("lift",),
    nbytes=lambda shape, prompt, new: shape.full_bytes(prompt + new),
    reference=_dense,
    untouched=lambda length: True,
    keeps_all=True,
)

# --- em-llm ----------------------------------------------------------------------------------------------------------

EVENTS = "em-llm@n_init=3,n_local=24,n_mem=0,exc_block_size=16,min_block=2,max_block=6,repr_topk=2"


def _event_bytes(shape: CacheShape, cache: KVCache) -> int:
    """A vector an event and query head, and 4 bytes a query head for each token after the events."""
    total = 0
    for layer in cache.layers:
        assert isinstance(layer, EventLayer)
        events = layer.segments.events
        rest = events[-1][1] if events else layer.first
        total += shape.heads * (shape.head_dim * shape.dtype.itemsize * len(events) + 4 * (layer.seen - rest))
    return total


def _em_llm(more: str) -> Case:
    def logits(pair: Models, method: Any, ids: Tensor, prompt: int, seen: list[tuple[Tensor, Tensor]]) -> Tensor:
        return events_oracle.em_llm(pair, method, ids, prompt)[prompt:]

    return Case(
        spec=f"{EVENTS}{more}",
        noop=("em-llm@n_local=124,exc_block_size=32", "em-llm@n_local=124,exc_block_size=16,refine=modularity"),
        nbytes=None,
        extra_bytes=_event_bytes,
        reference=logits,
        short=(1, 2, 17, 24, 25, 34),
        keeps_all=True,
    )


CASES: dict[str, list[Case]] = {
    "em-llm": [
        _em_llm(",gamma=0.5,contiguity=0.3"),
        replace(_em_llm(",gamma=0,refine=modularity"), noop=(), short=(34,)),
    ],
    "lift": [_LIFT],
    "minference": [_minference("", PATTERNS), *map(_alike, KINDS)],
}
