"""What a plan will cost, before it runs: seconds from two measured rates, bytes from the cache's formula.

Seconds are rough (a factor of two either way): reading a prompt is taken as matrix products at the rate a matrix
product reaches here right now, a decoding step of a batch as reading weights once and every cache at the rate memory is
read here. Answers are taken to use all the tokens they may.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lcbench.engine.groups import Group
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
    seconds: of prefill and decoding, all methods. prefills: prompts to be read. read_tokens: of them, in one process,
        without beginnings that were read for another prompt. answers: samples to be made.
    weight_bytes: of the model. kv_bytes: full cache of the longest prompt and its answer.
    peak_bytes: weights, and caches and activations of the largest group (`engine.memory`).
    """

    seconds: float
    prefills: int
    read_tokens: int
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


def estimate(
    info: ModelInfo, sets: Sequence[PromptSet], groups: Sequence[Group], rates: MachineRates, *, exact: bool = False
) -> Estimate:
    """Cost of all samples of a plan (those already answered included).

    Args:
        groups: of the plan. exact: answers are decoded one by one.
    """
    shape = info.shape()
    width = shape.heads * shape.head_dim
    linear = 2.0 * max(info.parameters - info.vocab * width, 0)
    attending = shape.layers if shape.state is None else shape.state.attention_layers
    exact = exact or (shape.state is not None and not shape.state.stacks)
    seconds, prefills, tokens, answers, longest = 0.0, 0, 0, 0, 0
    for group in groups:
        prompts = sets[group.set_index]
        lengths = [prompts.prompts[i].tokens for i in group.prompts if prompts.prompts[i].error is None]
        read = [n - taken for n, taken in zip(lengths, group.taken, strict=False)]
        for length, new in zip(lengths, read, strict=True):
            seconds += (linear * new + 2.0 * attending * width * length * new) / rates.flops
        steps, rows = prompts.max_new_tokens, len(prompts.methods)
        caches = rows * sum(shape.full_bytes(n + steps // 2) for n in lengths)
        passes = rows * len(lengths) if exact else (len(group.waves) if lengths else 0)  # each reads all weights
        seconds += steps * (passes * info.weight_bytes + caches) / rates.bandwidth
        if not exact:
            seconds += steps * rows * len(lengths) * linear / rates.flops
        prefills += len(lengths)
        tokens += sum(read)
        answers += rows * len(lengths)
        longest = max([longest, *(n + steps for n in lengths)])
    peak = info.weight_bytes + max((group.nbytes for group in groups), default=0)
    return Estimate(seconds, prefills, tokens, answers, info.weight_bytes, shape.full_bytes(longest), peak)
