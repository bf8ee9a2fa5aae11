"""All figures that a report has data for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lcbench.errors import CannotWrite
from lcbench.reporting.figures import style
from lcbench.reporting.figures.drawn import Drawn
from lcbench.reporting.figures.of_lengths import lengths_of
from lcbench.reporting.figures.of_scores import against_full_of, pareto_of, passkeys_of, radars_of
from lcbench.reporting.figures.of_speeds import speeds_of
from lcbench.reporting.figures.part import REASONS, ModelPart, measured_of, parts_of
from lcbench.reporting.samples import Samples
from lcbench.reporting.table import Report
from lcbench.store.rundir import RunDirectory

_KINDS: dict[str, Callable[[ModelPart, Sequence[RunDirectory]], Iterator[Drawn]]] = {
    "Pareto": pareto_of,
    "radar": radars_of,
    "passkey": passkeys_of,
    "length": lengths_of,
    "against full": against_full_of,
    "efficiency": speeds_of,
}


def figures_of(report: Report, samples: Samples, runs: Sequence[RunDirectory]) -> tuple[list[Drawn], list[str]]:
    """The figures, and a sentence for every kind that the report has no data for.

    Raises:
        UsageError: matplotlib is not installed.
    """
    style.require_matplotlib()
    drawn: list[Drawn] = []
    missing: list[str] = []
    answered = parts_of(report, samples, runs)
    for name, make in _KINDS.items():
        without = []
        parts = [*answered, *measured_of(report, samples, answered)] if make is speeds_of else answered
        for part in parts:
            own = list(make(part, runs))
            without += [] if own else [part]
            for one in own:
                file = f"{one.name}-{part.file}" if part.file else one.name
                drawn.append(Drawn(file, one.title + part.title, one.alt, one.figure))
        missing += _why_missing(name, without, all_=len(without) == len(parts))
    return drawn, missing


def _why_missing(kind: str, parts: Sequence[ModelPart], *, all_: bool) -> list[str]:
    """Why a kind of figure is not there, and of what, where it is there of others."""
    reasons: dict[str, list[str]] = {}
    for part in parts:
        reasons.setdefault(REASONS[kind](part), []).append(part.title.removeprefix(" – "))
    if all_:
        return [f"no {kind} figure: {'; '.join(reasons) or 'no predictions'}"]
    return [f"no {kind} figure of {' and '.join(whose)}: {why}" for why, whose in reasons.items()]


def write_figures(figures: Sequence[Drawn], folder: Path) -> list[Path]:
    """Write every figure as svg, pdf and png; the files. Raises CannotWrite."""
    from lcbench.store.files import make_folder

    try:
        make_folder(folder)
    except CannotWrite as error:
        raise CannotWrite(error.message, "Choose another folder with --figures.") from None
    paths = []
    for one in figures:
        for suffix in style.FORMATS:
            path = folder / f"{one.name}.{suffix}"
            style.save(one.figure, path)
            paths.append(path)
    return paths
