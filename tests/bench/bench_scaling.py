"""How the time of a sweep grows with the number of methods, and with the length of the prompt.

    python tests/bench/bench_scaling.py [--write | --quick]     # needs the demo model; about 20 minutes on two cores

A sweep is one prompt through the whole engine: one prefill with everything the methods observe, a cache a method, all
answers decoded together. "One by one" is the sum of the same methods, each in a sweep of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sweeps import DOCS, METHODS, NEW_TOKENS, arguments, model, page, run_all, seconds, sweep, table

from lcbench.models.info import LoadedModel

COUNTS, LENGTHS, AT_LENGTH, AT_COUNT = (1, 4, 12, 24), (1000, 2000, 4000, 8000), 2000, 12


def timed(loaded: LoadedModel, methods: tuple[str, ...], length: int, repeats: int) -> float:
    answerer, groups = sweep(loaded, methods, length)
    return seconds(lambda: run_all(answerer, groups), repeats)


def main() -> None:
    options = arguments(__doc__)
    loaded = model(options.quick)
    lengths, at = ((100, 200, 400, 800), 200) if options.quick else (LENGTHS, AT_LENGTH)
    repeats = 1 if options.quick else 3
    alone = {}
    for name in METHODS:
        alone[name] = timed(loaded, (name,), at, 1)
        print(f"{name} alone: {alone[name]:.2f} s", flush=True)
    counts = []
    for count in COUNTS:
        together = timed(loaded, METHODS[:count], at, repeats)
        counts.append((count, together, sum(alone[name] for name in METHODS[:count])))
        print(f"{count} methods: {together:.2f} s", flush=True)
    full = counts[0][1]
    by_length = []
    for length in lengths:
        one, many = (timed(loaded, METHODS[:n], length, repeats) for n in (1, AT_COUNT))
        by_length.append((length, one, many))
        print(f"{length} tokens: {one:.2f} s, {many:.2f} s", flush=True)
    first = [["methods", "one sweep (s)", "over `full` alone", "one by one (s)", "saved"]]
    first += [
        [n, f"{t:.2f}", f"{t / full:.2f}", f"{separate:.2f}", f"{separate / t:.1f}x"] for n, t, separate in counts
    ]
    second = [["prompt tokens", "`full` alone (s)", f"{AT_COUNT} methods (s)", "over `full`", "seconds a 1,000 tokens"]]
    second += [
        [f"{n:,}", f"{one:.2f}", f"{many:.2f}", f"{many / one:.2f}", f"{1000 * many / n:.2f}"]
        for n, one, many in by_length
    ]
    print(table(first), table(second), sep="\n\n")
    if not options.write:
        return
    plot([(n, t, s) for n, t, s in counts], by_length)
    page(
        "scaling",
        "Time against number of methods and prompt length",
        "python tests/bench/bench_scaling.py --write",
        f"A prompt of {AT_LENGTH:,} random tokens, answers of {NEW_TOKENS} tokens; medians of {repeats} after a "
        f"warm-up (one by one: single runs after a warm-up).\n\n{table(first)}\n\n"
        f"![Time against number of methods](scaling-methods.svg)\n\n"
        f"The first {AT_COUNT} methods against `full` alone:\n\n{table(second)}\n\n"
        f"![Time against prompt length](scaling-lengths.svg)\n\nThe methods, in this order: {', '.join(METHODS)}.",
    )


def plot(counts: list[tuple[int, float, float]], lengths: list[tuple[int, float, float]]) -> None:
    """Two SVG files beside the page."""
    number = [n for n, _, _ in counts]
    _lines(
        DOCS / "scaling-methods.svg",
        "methods",
        number,
        {"one by one": [s for _, _, s in counts], "one sweep": [t for _, t, _ in counts]},
    )
    tokens = [n for n, _, _ in lengths]
    curves = {f"{AT_COUNT} methods": [m for _, _, m in lengths], "full alone": [o for _, o, _ in lengths]}
    _lines(DOCS / "scaling-lengths.svg", "prompt tokens", tokens, curves)


def _lines(file: Path, across: str, xs: list[int], curves: dict[str, list[float]]) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "lcbench"  # the same figures give the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for name, ys in curves.items():
        axes.plot(xs, ys, marker="o", label=name)
        axes.annotate(f"{ys[-1]:.1f} s", (xs[-1], ys[-1]), textcoords="offset points", xytext=(-6, 6), ha="right")
    axes.set(xlabel=across, ylabel="seconds", ylim=(0, None), xticks=xs)
    axes.grid(alpha=0.3)
    axes.legend()
    metadata: dict[str, Any] = {"Date": None, "Creator": "lcbench"}
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata=metadata)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
