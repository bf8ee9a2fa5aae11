"""What a plan will cost, before it runs: seconds from two measured rates, bytes from the cache's formula.

Seconds are rough (a factor of two either way): reading a prompt is taken as matrix products at the rate a matrix
product reaches here right now, a decoding step as reading weights and cache once at the rate memory is read here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lcbench.engine.plan import PromptSet
from lcbench.models.info import ModelInfo


@dataclass(frozen=True)
class MachineRates:
    """Measured on the run's own device and dtype.

    Attributes:
        flops: floating-point operations a second in a matrix product.
        bandwidth: bytes a second read by a large matrix-vector product, which is what decoding does.
    """

    flops: float
    bandwidth: float


@dataclass(frozen=True)
class Estimate:
    """Attributes:
    seconds: of prefill and decoding, all methods. prefills: prompts to be read. answers: samples to be made.
    weight_bytes: of the model. kv_bytes: full cache of the longest prompt and its answer.
    peak_bytes: weights, that cache twice (the record and one fork of it), and the activations of its prompt pass.
    """

    seconds: float
    prefills: int
    answers: int
    weight_bytes: int
    kv_bytes: int
    peak_bytes: int


def measure_rates(device: torch.device, dtype: torch.dtype, *, seconds: float = 0.15) -> MachineRates:
    """Time a matrix product and a matrix-vector product for about ``seconds`` each."""
    a = torch.randn(512, 1024, device=device).to(dtype)
    b = torch.randn(1024, 1024, device=device).to(dtype)
    flops = 2.0 * 512 * 1024 * 1024 * _repeats_a_second(lambda: a @ b, device, seconds)
    matrix = torch.randn(8192, 4096, device=device).to(dtype)
    vector = torch.randn(4096, 1, device=device).to(dtype)
    size = matrix.numel() * matrix.element_size()
    return MachineRates(flops, size * _repeats_a_second(lambda: matrix @ vector, device, seconds))


def _repeats_a_second(work: object, device: torch.device, seconds: float) -> float:
    assert callable(work)

    def run(times: int) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        for _ in range(times):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    run(2)
    times = 1
    while (took := run(times)) < seconds:
        times = max(times + 1, int(times * min(10.0, 1.2 * seconds / max(took, 1e-6))))
    return times / took


def estimate(info: ModelInfo, sets: Sequence[PromptSet], rates: MachineRates) -> Estimate:
    """Cost of all samples of a plan (those already answered included)."""
    shape = info.shape()
    width = shape.heads * shape.head_dim
    linear = 2.0 * max(info.parameters - info.vocab * width, 0)
    seconds, prefills, answers, longest = 0.0, 0, 0, 0
    for prompts in sets:
        for prompt in prompts.prompts:
            if prompt.error is not None:
                continue
            length, steps = prompt.tokens, prompts.max_new_tokens
            attention = 2.0 * shape.layers * width * length * length
            seconds += (linear * length + attention) / rates.flops
            step_bytes = info.weight_bytes + shape.full_bytes(length + steps // 2)
            seconds += len(prompts.methods) * steps * step_bytes / rates.bandwidth
            prefills += 1
            answers += len(prompts.methods)
            longest = max(longest, length + steps)
    kv = shape.full_bytes(longest)
    activations = longest * shape.dtype.itemsize * width * 8
    return Estimate(seconds, prefills, answers, info.weight_bytes, kv, info.weight_bytes + 2 * kv + activations)
