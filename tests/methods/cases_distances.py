"""Harness cases of selfextend and lm-infinite."""

from __future__ import annotations

from typing import Any

import distances_oracle as oracle
from harness import Case, Models, Reference
from torch import Tensor


def _reference(distance: oracle.Distance) -> Reference:
    def logits(pair: Models, method: Any, ids: Tensor, prompt: int, seen: list[tuple[Tensor, Tensor]]) -> Tensor:
        return oracle.logits(pair, ids, distance)[prompt:]

    return logits


def _infinite(n_local: int, n_global: int, bounded: bool) -> Case:
    limit = n_local + n_global
    return Case(
        spec=f"lm-infinite@n_local={n_local},n_global={n_global},bounded={str(bounded).lower()}",
        noop=("lm-infinite@n_local=124", "lm-infinite") if bounded else ("lm-infinite@n_local=124,bounded=false",),
        nbytes=lambda shape, prompt, new: shape.full_bytes(min(prompt + new, limit) if bounded else prompt + new),
        reference=_reference(oracle.lm_infinite(n_local, n_global)),
        short=(1, 2, n_global + 1, n_local - 1, n_local, n_local + 1, limit, limit + 1) if bounded else (1, limit + 1),
        untouched=lambda length: not bounded or length <= limit,
        keeps_all=not bounded,
    )


CASES: dict[str, list[Case]] = {
    "selfextend": [
        Case(
            spec="selfextend@group=4,neighbours=16",
            noop=("selfextend@group=1,neighbours=16", "selfextend@group=4,neighbours=124"),
            nbytes=lambda shape, prompt, new: shape.full_bytes(prompt + new),
            reference=_reference(oracle.selfextend(4, 16)),
            short=(1, 2, 15, 16, 17, 20),
            untouched=lambda length: True,
            keeps_all=True,
        )
    ],
    "lm-infinite": [_infinite(20, 4, True), _infinite(20, 4, False)],
}
