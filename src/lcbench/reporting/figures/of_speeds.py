"""Decoding speed against its limit, of what `lcbench bench` measured beside a report's runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from lcbench.reporting.figures import efficiency
from lcbench.reporting.figures.drawn import Drawn
from lcbench.reporting.figures.naming import methods_told_apart
from lcbench.reporting.figures.part import ModelPart, parts_of
from lcbench.store.rundir import RunDirectory


def speeds_of(part: ModelPart, runs: Sequence[RunDirectory]) -> Iterator[Drawn]:
    """The speeds that were measured of this model; nothing where none was."""
    shared = sum(other.name == part.name for other in parts_of(part.report, part.samples, runs)) > 1
    points: dict[tuple[str, int, int], efficiency.SpeedPoint] = {}
    bandwidths = []
    for run in runs:
        if shared and str(run.path) not in part.runs:
            continue  # a speed of another model of that name, or drawn with the run that measured it
        weights = _number(_mapping(run.provenance.get("model")).get("weight_bytes"))
        for row in run.efficiency():
            if row.get("model") == part.name:
                point = _speed(row, weights)
                if point is not None:
                    points[point.method, point.prompt_tokens, point.batch] = point
                bandwidths.append(_bandwidth(row))
    if not points:
        return
    names = methods_told_apart(method for method, _, _ in points)
    points = {key: replace(point, method=names[point.method]) for key, point in points.items()}
    title = "Decoding speed against its physical limit"
    measured = max((b for b in bandwidths if b), default=None)
    figure = efficiency.draw(list(points.values()), title=title + part.title, bandwidth=measured)
    alt = "; ".join(
        f"{p.method} at {p.prompt_tokens} tokens {p.tokens_per_second:.1f} tokens/s" for p in points.values()
    )
    yield Drawn("efficiency", title, f"{title}. {alt}.", figure)


def _speed(row: Mapping[str, object], weights: float | None) -> efficiency.SpeedPoint | None:
    weights = _number(row.get("weight_bytes")) or weights
    kept, speed = _number(row.get("kv_bytes")), _number(row.get("decode_tokens_per_second"))
    tokens, batch = _number(row.get("prompt_tokens")), _number(row.get("batch")) or 1
    step = _number(row.get("step_bytes")) or (weights + kept if weights and kept else None)
    if not step or not speed or not tokens:
        return None
    read = _number(row.get("kv_read_bytes"))
    return efficiency.SpeedPoint(str(row.get("method")), int(tokens), int(batch), step, speed, read)


def _bandwidth(row: Mapping[str, object]) -> float | None:
    """Bytes a second of the limit that `lcbench bench` measured."""
    limit, moved = _number(row.get("limit_tokens_per_second")), _number(row.get("step_bytes"))
    return limit / (_number(row.get("batch")) or 1) * moved if limit and moved else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value else None


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}
