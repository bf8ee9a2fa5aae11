"""Harness cases of the context extensions that replace rotary frequencies.

The references are plain transformers models whose frequencies are written down here once more.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import harness
import torch
from harness import HEAD_DIM, Case, Models, Reference
from torch import Tensor

from lcbench.kv.cache import CacheShape

THETA = 10000.0  # of the tiny models
TOTAL = 124  # tokens of a harness text


def whole(shape: CacheShape, prompt: int, new: int) -> int:
    return shape.full_bytes(prompt + new)


def with_frequencies(pair: Models, frequencies: list[float], scaling: float = 1.0) -> Models:
    """The plain model, rotating by these."""
    plain = copy.deepcopy(pair.plain)
    plain.model.rotary_emb.inv_freq = torch.tensor(frequencies, dtype=torch.float64).float()
    plain.model.rotary_emb.attention_scaling = scaling
    return Models(pair.family, pair.ours, plain, pair.window)


def rope_reference(frequencies: Callable[[Any], list[float]], scaling: float = 1.0) -> Reference:
    """All tokens seen, at other angles."""

    def logits(pair: Models, method: Any, ids: Tensor, prompt: int, seen: list[tuple[Tensor, Tensor]]) -> Tensor:
        other = with_frequencies(pair, frequencies(method), scaling)
        everything = torch.ones(1, len(ids), len(ids), dtype=torch.bool)
        return harness.masked_logits(other, ids, [everything] * harness.LAYERS)[prompt:]

    return logits


def own(theta: float = THETA) -> list[float]:
    return [theta ** (-2 * i / HEAD_DIM) for i in range(HEAD_DIM // 2)]


def yarn_frequencies(factor: float, window: int, fast: float = 32, slow: float = 1) -> list[float]:
    def turns_at(pair: float) -> float:  # turns of a pair within the window, and its inverse below
        return HEAD_DIM * math.log(window / (pair * 2 * math.pi)) / (2 * math.log(THETA))

    low, high = max(math.floor(turns_at(fast)), 0), min(math.ceil(turns_at(slow)), HEAD_DIM - 1)
    found = []
    for i, frequency in enumerate(own()):
        share = min(max((i - low) / (high - low), 0.0), 1.0)
        found.append((1 - share) * frequency + share * frequency / factor)
    return found


def dprope_choices(theta: float, dims: int, window: int, factor: float) -> list[bool]:
    """Which pairs are divided, by loops over angles and bins."""
    divided = []
    for i in range(dims // 2):
        frequency = theta ** (-2 * i / dims)
        shares = []
        for step, positions in ((frequency, window), (frequency, int(window * factor)), (frequency / factor, -1)):
            count = int(window * factor) if positions < 0 else positions
            bins = [6.1035e-5] * 360
            for position in range(count):
                bins[min(359, int(math.fmod(position * step, 2 * math.pi) * (360 / (2 * math.pi))))] += 1
            shares.append([held / count for held in bins])
        trained, kept, stretched = shares
        far = [
            sum(o * (math.log(o) - math.log(x)) for o, x in zip(trained, other, strict=True)) / 360
            for other in (kept, stretched)
        ]
        divided.append(far[1] < far[0])
    return divided


def extension(spec: str, noop: tuple[str, ...], reference: Reference) -> Case:
    """A case of a method that keeps every token of the prompt."""
    return Case(spec=spec, noop=noop, nbytes=whole, reference=reference, untouched=lambda length: True, keeps_all=True)


_EXPONENT = HEAD_DIM / (HEAD_DIM - 2)
_DPROPE = dprope_choices(THETA, HEAD_DIM, 64, 4)

CASES: dict[str, list[Case]] = {
    "pi": [extension("pi@factor=3", ("pi@factor=1",), rope_reference(lambda m: [f / 3 for f in own()]))],
    "ntk": [extension("ntk@factor=3", ("ntk@factor=1",), rope_reference(lambda m: own(THETA * 3**_EXPONENT)))],
    "dynamic-ntk": [
        extension(
            "dynamic-ntk@factor=2,original=40",
            ("dynamic-ntk@factor=2", "dynamic-ntk@factor=2,original=124"),
            rope_reference(lambda m: own(THETA * (2 * TOTAL / 40 - 1) ** _EXPONENT)),
        )
    ],
    "rope-theta": [
        extension("rope-theta@ratio=32", ("rope-theta@ratio=1",), rope_reference(lambda m: own(32 * THETA)))
    ],
    "yarn": [
        extension(
            "yarn@factor=4,original=64",
            ("yarn@factor=1",),
            rope_reference(lambda m: yarn_frequencies(4, 64), 0.1 * math.log(4) + 1),
        )
    ],
    "dprope": [
        extension(
            "dprope@factor=4,original=64",
            ("dprope@factor=1",),
            rope_reference(lambda m: [f / 4 if d else f for f, d in zip(own(), _DPROPE, strict=True)]),
        )
    ],
}


def _clex(method: Any) -> Any:
    from clex_checkpoints import tensors as clex_tensors

    from lcbench.methods.calibration import bound
    from lcbench.models.clex_checkpoint import DOWN, START, UP, ClexLayer

    held = clex_tensors(learned=False)
    return bound(method, _clex_layer=ClexLayer(held[UP], held[DOWN], held[START], 8.0, 0.05, "tanh", False))


# The tiny models are trained for 4096 tokens, so t is 1 here; `test_clex` has longer texts.
CASES["clex"] = [
    replace(
        extension("clex", ("clex",), rope_reference(lambda m: own())),
        bind=_clex,
    )
]
