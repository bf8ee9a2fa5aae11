"""AQUA-KV a second time, in numpy and fp64: explicit Hadamard matrix, brute-force rounding, its own rotation.

Where two grid points are equally near, rounding noise decides, and the layers above make much of it: the codes that the
run under test stored are therefore checked to be nearest within noise, and then taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import stored_reference
import torch
from harness import HEAD_DIM, KV_HEADS, LAYERS, Models
from stored_reference import Array, Seen
from torch import Tensor

from lcbench.kv.cache import KVCache
from lcbench.kv.higgs import Higgs, gaussian_grid
from lcbench.kv.record import PrefillRecord
from lcbench.methods.calibration import Calibration, bound
from lcbench.methods.quantize.aqua_kv import AquaKV

WIDTH = KV_HEADS * HEAD_DIM  # 64, a power of two: one norm a vector


def predictors(layers: int = LAYERS, width: int = WIDTH, scale: float = 0.1) -> dict[str, Tensor]:
    """Random predictors in the stored form."""
    generator = torch.Generator().manual_seed(5)
    found = {}
    for layer in range(1, layers):
        found[f"key.{layer}"] = (torch.randn(width + 1, width, generator=generator) * scale).half()
        found[f"value.{layer}"] = (torch.randn(2 * width + 1, width, generator=generator) * scale).half()
    return found


@dataclass(frozen=True)
class Recorder:
    """HIGGS that also writes down what it encoded: codes and norms of one call after the other."""

    higgs: Higgs
    calls: list[tuple[Array, Array]]

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        codes, norms = self.higgs.encode(x)
        self.calls.append((codes.cpu().numpy(), norms.cpu().numpy()))
        return codes, norms

    def decode(self, parts: Sequence[Tensor], width: int, dtype: torch.dtype) -> Tensor:
        return self.higgs.decode(parts, width, dtype)


@dataclass(frozen=True)
class Recorded(AquaKV):
    """The method, with what its layers encoded in its last run: ``taken[layer]``, keys and values in turn."""

    def compress(self, record: PrefillRecord) -> KVCache:
        object.__setattr__(self, "taken", [[] for _ in range(record.shape.layers)])
        return super().compress(record)

    def codec(self, layer: int) -> Recorder:
        higgs = super().codec(layer)
        assert isinstance(higgs, Higgs)
        return Recorder(higgs, self.taken[layer])  # type: ignore[attr-defined]


def with_predictors(method: Any, tensors: dict[str, Tensor] | None = None) -> Any:
    """The method as `bind` would return it, recording."""
    stored = Calibration(Path("aqua"), "0" * 64, {}, predictors() if tensors is None else tensors, {})
    return bound(Recorded(method.bits, method.sink, method.buffer), _predictors=stored)


def hadamard_matrix(size: int) -> Array:
    """Entry (i, j) is the parity of the bits that i and j share."""
    return np.array([[(-1.0) ** bin(i & j).count("1") for j in range(size)] for i in range(size)])


def indices(codes: Array, bits: int) -> Array:
    """Grid points ``[n, D / 2]`` in stored bytes."""
    if bits == 4:
        return codes.astype(int)
    assert bits == 2
    return np.stack([codes >> 4, codes & 15], axis=-1).reshape(len(codes), -1).astype(int)


def higgs(x: Array, bits: int, taken: list[tuple[Array, Array]]) -> Array:
    """Vectors ``[n, D]``, D a power of two up to 1024, rounded.

    Args:
        taken: codes and norms that the run under test stored for them. They must be the nearest grid points; where
            two are as near within rounding noise, the run has chosen.
    """
    size, grid, matrix = x.shape[1], gaussian_grid(4**bits).double().numpy(), hadamard_matrix(x.shape[1])
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    pairs = ((x @ matrix) / norms).reshape(len(x), size // 2, 2)
    distance = ((pairs[:, :, None] - grid[None, None]) ** 2).sum(axis=-1)
    chosen = indices(np.concatenate([codes for codes, _ in taken]), bits)
    assert (np.take_along_axis(distance, chosen[..., None], -1)[..., 0] - distance.min(axis=-1)).max() < 1e-4
    assert np.allclose(np.concatenate([n for _, n in taken]), norms, rtol=1e-4)
    return grid[chosen].reshape(len(x), size) @ matrix * norms / size


def rotate(x: Array, positions: Array, sign: int, theta: float = 10000.0) -> Array:
    """``[Hk, n, d]`` turned by position times frequency, channel i with channel i + d / 2."""
    d = x.shape[2]
    angle = sign * positions[:, None] * theta ** (-np.arange(0, d, 2) / d)
    a, b = x[..., : d // 2], x[..., d // 2 :]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], axis=-1)


def joined(x: Array) -> Array:
    """``[Hk, n, d]`` as ``[n, Hk d]``."""
    return x.transpose(1, 0, 2).reshape(x.shape[1], x.shape[0] * x.shape[2])


def heads(x: Array) -> Array:
    return x.reshape(len(x), KV_HEADS, HEAD_DIM).transpose(1, 0, 2)


@dataclass
class Rungs:
    """Restored keys (rotated) and values ``[Hk, n, d]`` of the tokens that are encoded, layer by layer.

    Attributes:
        flushed: encoded tokens, sinks not counted, after each flush, ascending, with the position whose step did it.
    """

    keys: list[Array] = field(default_factory=list)
    values: list[Array] = field(default_factory=list)
    flushed: list[tuple[int, int]] = field(default_factory=list)


def flushes(prompt: int, total: int, sink: int, chunk: int) -> list[tuple[int, int]]:
    """(position of the step, encoded tokens after it)."""
    found, waiting, encoded = [], max(0, prompt - sink), 0
    for p in range(prompt - 1, total):
        if p >= prompt and p >= sink:
            waiting += 1
        if waiting >= chunk:
            encoded, waiting = encoded + waiting, 0
            found.append((p, encoded))
    return found


def restore(method: Any, layers: list[tuple[Array, Array]], prompt: int) -> Rungs:
    """Everything that is ever encoded; a token's restored vectors depend on that token alone."""
    stored = method._stored.tensors
    total = layers[0][0].shape[1]
    rungs = Rungs(flushed=flushes(prompt, total, method.sink, method.buffer))
    count = rungs.flushed[-1][1] if rungs.flushed else 0
    assert [len(calls) for calls in method.taken] == [2 * len(rungs.flushed)] * len(layers)
    if not count:
        return rungs
    positions = np.arange(method.sink, method.sink + count)
    below: tuple[Array, Array] | None = None
    for i, (key, value) in enumerate(layers):
        k = joined(rotate(key[:, positions].astype(np.float64), positions, -1))
        v = joined(value[:, positions].astype(np.float64))
        took_keys, took_values = method.taken[i][0::2], method.taken[i][1::2]
        if below is None:
            k_hat, v_hat = higgs(k, 4, took_keys), higgs(v, 4, took_values)
        else:
            w_k, w_v = (stored[f"{what}.{i}"].double().numpy() for what in ("key", "value"))
            guess = below[0] @ w_k[:-1] + w_k[-1]
            k_hat = guess + higgs(k - guess, method.bits, took_keys)
            guess = np.concatenate([k_hat, below[1]], axis=1) @ w_v[:-1] + w_v[-1]
            v_hat = guess + higgs(v - guess, method.bits, took_values)
        below = (k_hat, v_hat)
        rungs.keys.append(rotate(heads(k_hat), positions, 1))
        rungs.values.append(heads(v_hat))
    return rungs


def logits(pair: Models, method: Any, ids: Tensor, prompt: int, seen: list[tuple[Tensor, Tensor]]) -> Tensor:
    rungs = restore(method, stored_reference.arrays(seen), prompt)

    def view(layer: int, p: int, key: Array, value: Array) -> list[Seen]:
        encoded = max([n for at, n in rungs.flushed if at < p], default=0)
        mine = slice(method.sink, method.sink + encoded)
        k, v = key[:, : p + 1].copy(), value[:, : p + 1].copy()
        if encoded:
            k[:, mine], v[:, mine] = rungs.keys[layer][:, :encoded], rungs.values[layer][:, :encoded]
        return [Seen(a, b, np.arange(p + 1)) for a, b in zip(k, v, strict=True)]

    return stored_reference.logits(pair, ids, prompt, view)[prompt:]
