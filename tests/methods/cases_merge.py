"""Harness cases of kvmerger, cam and ems-approx."""

from __future__ import annotations

from typing import Any

import merge_oracle
from harness import Case

from lcbench.kv.cache import CacheShape


def kept_bytes(keep: int) -> Any:
    """Every head keeps ``keep`` entries of a longer prompt, and new tokens are added."""

    def nbytes(shape: CacheShape, prompt: int, new: int) -> int:
        return shape.full_bytes(min(prompt, keep) + new)

    return nbytes


KVMERGER = [
    Case(
        spec="kvmerger@budget=24,recent=6",
        noop=("kvmerger@budget=60", "kvmerger@budget=1.0", "kvmerger@epsilon=1.5"),
        nbytes=kept_bytes(24),
        reference=merge_oracle.fixed(merge_oracle.kvmerger, lambda method, prompt: prompt <= 24),
        short=(1, 2, 6, 7, 8, 23, 24, 25),
        untouched=lambda length: length <= 24,
    ),
    Case(
        spec="kvmerger@epsilon=0.1,heavy=4,recent=5,sigma=spread,value_scale=times_size",
        noop=("kvmerger@epsilon=1.5",),
        nbytes=None,
        reference=merge_oracle.fixed(merge_oracle.kvmerger, lambda method, prompt: False),
        short=(1, 2, 5, 6, 9, 20),
    ),
]


def cam_bytes(total: int, *, accumulated: bool) -> Any:
    def nbytes(shape: CacheShape, prompt: int, new: int) -> int:
        held = min(prompt + new, total)
        return shape.full_bytes(held) + (4 * shape.layers * shape.kv_heads * held if accumulated else 0)

    return nbytes


_CAM_NOOP = ("cam@budget=1.0", "cam@start=4,recent=200", "cam@start=0.5,recent=0.5,merge_prompt=true")
CAM = [
    Case(
        spec="cam@start=6,recent=14,targets=5",
        noop=_CAM_NOOP,
        nbytes=cam_bytes(20, accumulated=False),
        reference=merge_oracle.cam_logits,
        short=(1, 2, 5, 6, 7, 13, 14, 15, 19, 20, 21),
        untouched=lambda length: length <= 20,
        seeded=True,
    ),
    Case(
        spec="cam@budget=21,targets=3,attention=accumulated,merge_prompt=true",
        noop=_CAM_NOOP,
        nbytes=cam_bytes(21, accumulated=True),
        reference=merge_oracle.cam_logits,
        short=(1, 2, 10, 11, 12, 20, 21, 22),
        seeded=True,
    ),
]

EMS = Case(
    spec="ems-approx@budget=24,window=6,tau=0.2",
    noop=("ems-approx@budget=60", "ems-approx@budget=1.0,window=4"),
    nbytes=kept_bytes(24),
    reference=merge_oracle.fixed(merge_oracle.ems, lambda method, prompt: prompt <= 24),
    short=(1, 2, 5, 6, 7, 23, 24, 25, 30),
    untouched=lambda length: length <= 24,
)

CASES: dict[str, list[Case]] = {"kvmerger": KVMERGER, "cam": CAM, "ems-approx": [EMS]}
