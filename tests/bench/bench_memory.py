"""Memory of a sweep, and of a batch of one method, against what the byte models say beforehand.

    python tests/bench/bench_memory.py [--write | --quick]     # needs the demo model; about ten minutes on two cores

The sweep: weights and the prediction that its group was cut to (`engine.groups`), an upper bound by intent, because a
group that outgrows it runs out of memory. The batch: the byte model of `lcbench bench --max-batch` (`bench.capacity`),
fed with one, two and three sequences, against larger batches. Measured is what torch's allocator held at most.
"""

from __future__ import annotations

from sweeps import METHODS, arguments, model, page, run_all, sweep, table

from lcbench.bench.capacity import probe
from lcbench.bench.efficiency import Workload, measure, release
from lcbench.measure.allocator import AllocatorPeak
from lcbench.methods.registry import resolve
from lcbench.models.info import LoadedModel

MIB = 2**20
SWEEPS = ((1, 1000, 1), (1, 4000, 1), (4, 1000, 4), (12, 1000, 1), (12, 1000, 4), (12, 2000, 1), (24, 2000, 1))
BATCHES, LENGTH, BATCHED = (1, 4, 8), 1000, ("full", "kivi@bits=2", "snapkv", "h2o", "streamingllm")


def measured_sweep(loaded: LoadedModel, methods: int, length: int, prompts: int) -> tuple[int, int]:
    """Predicted and measured bytes of a sweep, weights included."""
    answerer, groups = sweep(loaded, METHODS[:methods], length, prompts)
    run_all(answerer, groups)
    answerer.reader.beginnings.clear()
    release(loaded.info.device)
    weights = loaded.info.weight_bytes
    with AllocatorPeak(loaded.info.device, held=weights) as peak, peak.part("sweep"):
        run_all(answerer, groups)
    return weights + max(group.nbytes for group in groups), peak.parts["sweep"]


def main() -> None:
    options = arguments(__doc__)
    loaded = model(options.quick)
    scale = 10 if options.quick else 1
    first = [["methods", "prompt tokens", "prompts", "predicted (MiB)", "measured (MiB)", "measured / predicted"]]
    for methods, length, prompts in SWEEPS:
        predicted, found = measured_sweep(loaded, methods, length // scale, prompts)
        row = [f"{methods}", f"{length // scale:,}", f"{prompts}", f"{predicted / MIB:,.1f}", f"{found / MIB:,.1f}"]
        first.append([*row, f"{found / predicted:.2f}"])
        print(row, flush=True)
    second = [["method", "batch", "predicted (MiB)", "measured (MiB)", "measured / predicted"]]
    for name in BATCHED:
        method = resolve(name)
        bytes_of = probe(loaded, method, Workload(LENGTH // scale, new_tokens=8, repeats=1))
        for batch in BATCHES:
            found = measure(loaded, method, Workload(LENGTH // scale, batch, new_tokens=8, repeats=1)).peak_bytes
            predicted = bytes_of.peak(batch)
            row = [name, f"{batch}", f"{predicted / MIB:,.1f}", f"{found / MIB:,.1f}", f"{found / predicted:.3f}"]
            second.append(row)
            print(row, flush=True)
    print(table(first), table(second), sep="\n\n")
    if options.write:
        page(
            "memory",
            "Memory against prediction",
            "python tests/bench/bench_memory.py --write",
            f"Weights are {loaded.info.weight_bytes / MIB:,.1f} MiB of each figure.\n\n"
            "**A sweep** (all methods on one prefill a prompt, all answers decoded together) against the prediction "
            "that its group was cut to. The prediction is meant as an upper bound: below 1 is right, far below 1 makes "
            f"groups smaller than they could be.\n\n{table(first)}\n\n"
            f"**A batch of one method** ({LENGTH:,} tokens, 8 new) against the byte model behind "
            f"`lcbench bench --max-batch`.\n\n{table(second)}",
        )


if __name__ == "__main__":
    main()
