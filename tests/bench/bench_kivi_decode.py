"""What a decoding step costs in attention: the dense cache against KIVI, 30 layers of 9 / 3 heads of 64 (SmolLM2-135M).

    python tests/bench/bench_kivi_decode.py [tokens] [threads]

The stores take turns step by step, so that a busy machine disturbs all of them alike; printed are medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from lcbench.kv.layer import DenseLayer, LayerKV
from lcbench.methods.quantize.kivi import KiviLayer
from lcbench.models.rule import AttentionRule

LAYERS, HEADS, KV_HEADS, HEAD_DIM, STEPS = 30, 9, 3, 64, 40


def caches(tokens: int) -> dict[str, list[LayerKV]]:
    """A filled cache of each kind; every layer has memory of its own, as in a model."""

    def filled(make: Callable[[torch.Tensor, torch.Tensor], LayerKV]) -> list[LayerKV]:
        return [make(*torch.randn(2, KV_HEADS, tokens, HEAD_DIM).unbind()) for _ in range(LAYERS)]

    def kivi(bits: int) -> Callable[[torch.Tensor, torch.Tensor], LayerKV]:
        return lambda key, value: KiviLayer(key, value, bits=bits, group=32, residual=128)

    made = {"dense": filled(lambda key, value: DenseLayer(key.clone(), value.clone()))}
    return made | {f"kivi@bits={bits}": filled(kivi(bits)) for bits in (2, 4, 8)}


def step(layers: list[LayerKV]) -> float:
    """Seconds of one token through all layers."""
    query = torch.randn(HEADS, 1, HEAD_DIM)
    key, value = torch.randn(2, KV_HEADS, 1, HEAD_DIM).unbind()
    start = time.perf_counter()
    for layer in layers:
        layer.append(key, value)
        layer.attend(query, AttentionRule(HEAD_DIM**-0.5))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokens", type=int, nargs="?", default=4096)
    parser.add_argument("threads", type=int, nargs="?", default=torch.get_num_threads())
    options = parser.parse_args()
    tokens = options.tokens
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with torch.inference_mode():
        every = caches(tokens)
        seconds: dict[str, list[float]] = {name: [] for name in every}
        for _ in range(STEPS):
            for name, layers in every.items():
                seconds[name].append(step(layers))
    middle = {name: statistics.median(values[5:]) for name, values in seconds.items()}
    print(f"{tokens} tokens, {LAYERS} layers, {torch.get_num_threads()} threads, fp32, one step:")
    for name, value in middle.items():
        held = sum(layer.nbytes for layer in every[name]) / 2**20
        print(f"{name:12} {value * 1e3:7.1f} ms  {value / middle['dense']:5.2f} x dense  {held:7.1f} MiB")


if __name__ == "__main__":
    main()
