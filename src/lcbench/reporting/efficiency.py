"""What `lcbench bench` measured, as plain data: efficiency.jsonl read, checked, and set against the physical limit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from lcbench.errors import CorruptFile
from lcbench.reporting.words import bytes_text
from lcbench.store.rundir import RunDirectory


@dataclass(frozen=True)
class EfficiencyRow:
    """One method at one prompt length and batch size, measured alone.

    Attributes:
        model, weights, dtype, device, attn, load_in: what computed and how; weights are "checkpoint" or "random".
        machine: in words. measured: when, UTC.
        method: id. prompt_tokens: of every prompt. batch: sequences decoded together. new_tokens: of each.
        prefill_chunk: tokens a forward pass while a prompt is read; None for all.
        setting: what sets it apart from other rows of this method, length and batch (`distinguished`), else "".
        time_to_first_token: seconds. decode_tokens_per_second: of all sequences, prefill not included.
        samples_per_second: prompt and answer. weight_bytes, activation_bytes, kv_peak_bytes: apart, at the moment when
            they were most; they add up to ``peak_bytes``.
        kv_bytes, kv_bytes_full: caches of the batch right after compression, and uncompressed.
        limit: tokens a second if a step did nothing but move ``step_bytes`` at the measured copy bandwidth.
        memory: "simulated" where ``kv_bytes`` only count as dropped.
        fits: sequences that fit ``fits_memory`` bytes; None where it was not asked. tried: found by running them, else
            by the byte model. fits_least: bytes that one sequence takes, by that model.
        error: why there is no measurement, else None. Then the numbers are None.
        run: folder it comes from.
    """

    method: str
    model: str = ""
    weights: str = "checkpoint"
    dtype: str = ""
    device: str = ""
    attn: str = ""
    load_in: str | None = None
    machine: str = ""
    measured: str = ""
    prompt_tokens: int = 0
    batch: int = 1
    new_tokens: int = 0
    prefill_chunk: int | None = None
    setting: str = ""
    time_to_first_token: float | None = None
    decode_tokens_per_second: float | None = None
    samples_per_second: float | None = None
    weight_bytes: int | None = None
    activation_bytes: int | None = None
    kv_peak_bytes: int | None = None
    kv_bytes: int | None = None
    kv_bytes_full: int | None = None
    peak_bytes: int | None = None
    limit: float | None = None
    memory: Literal["real", "simulated"] = "real"
    fits: int | None = None
    fits_memory: int | None = None
    fits_least: int | None = None
    tried: bool = False
    error: str | None = None
    run: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times the full caches are larger than the kept ones."""
        return self.kv_bytes_full / self.kv_bytes if self.kv_bytes and self.kv_bytes_full is not None else None

    @property
    def of_limit(self) -> float | None:
        """Decoding speed as a share of the physical limit, 0 to 1.

        Above 1 only where the processor's own caches hold what should be read from memory.
        """
        if self.decode_tokens_per_second is None or not self.limit:
            return None
        return self.decode_tokens_per_second / self.limit


def efficiency_of(run: RunDirectory) -> list[EfficiencyRow]:
    """The rows of a run's efficiency.jsonl. Raises CorruptFile: a broken line, or one that is no measurement."""
    lines = run.efficiency()
    for number, line in enumerate(lines, start=1):
        if not isinstance(line.get("method"), str) or not isinstance(line.get("prompt_tokens"), int):
            path = run.path / "efficiency.jsonl"
            raise CorruptFile(f"{path}, line {number} is not a measurement.", "Delete the line, and measure it again.")
    return rows_of(lines, str(run.path))


def rows_of(lines: Sequence[Mapping[str, Any]], run: str = "") -> list[EfficiencyRow]:
    """Lines of efficiency.jsonl as rows: the latest measurement of each cell, in order of first appearance.

    The largest batch that fits is joined to every row of its method and length, and stands alone where there is none.
    """
    latest = {line.get("key") or (line.get("kind"), number): line for number, line in enumerate(lines)}
    fits = {
        _group(line): line
        for line in latest.values()
        if line.get("kind") == "max_batch" and line.get("status") == "ok" and isinstance(line.get("max_batch"), int)
    }
    cells = [line for line in latest.values() if line.get("kind", "cell") == "cell"]
    measured = {_group(line) for line in cells}
    alone = [line for line in latest.values() if line.get("kind") == "max_batch" and _group(line) not in measured]
    return [_row(line, fits.get(_group(line)), run) for line in [*cells, *alone]]


def distinguished(rows: Sequence[EfficiencyRow]) -> list[EfficiencyRow]:
    """The same rows; those that a table would name alike say in ``setting`` what differs between them."""
    alike: dict[tuple[Any, ...], list[EfficiencyRow]] = {}
    for row in rows:
        alike.setdefault((row.model, row.method, row.prompt_tokens, row.batch), []).append(row)
    differing = {
        name
        for some in alike.values()
        for name in _settings(rows[0])
        if len({_settings(row)[name] for row in some}) > 1
    }
    told = [replace(row, setting=", ".join(_settings(row)[name] for name in sorted(differing))) for row in rows]
    labels = [(row.model, row.method, row.prompt_tokens, row.batch, row.setting) for row in told]
    return [
        replace(row, setting=", ".join(filter(None, (row.setting, row.measured)))) if labels.count(label) > 1 else row
        for row, label in zip(told, labels, strict=True)
    ]


def _settings(row: EfficiencyRow) -> dict[str, str]:
    return {
        "dtype": row.dtype,
        "weights": f"{row.weights} weights" + (f" in {row.load_in}" if row.load_in else ""),
        "device": row.device,
        "attn": row.attn,
        "new_tokens": f"{row.new_tokens} new",
        "prefill_chunk": "read whole" if row.prefill_chunk is None else f"chunks of {row.prefill_chunk:,}",
        "machine": row.machine,
        "fits_memory": "" if row.fits_memory is None else f"fits {bytes_text(row.fits_memory)}",
    }


def efficiency_notes(rows: Iterable[EfficiencyRow]) -> list[str]:
    """What a reader of the table must be told."""
    rows = list(rows)
    good = [row for row in rows if row.machine and not row.error]
    notes = list(dict.fromkeys(_setting(row) for row in good or rows if row.machine))
    if any(row.limit for row in rows):
        notes.append(
            "of limit: decoding speed over that of moving weights and caches once a step at the measured copy bandwidth"
        )
    if any(row.memory == "simulated" for row in rows):
        notes.append("*: simulated; the bytes are those that the method would hold if what it hides were gone")
    if any(row.fits is not None for row in rows):
        sizes = dict.fromkeys((row.fits_memory, row.tried) for row in rows if row.fits is not None)
        for size, tried in sizes:
            how = "by running it" if tried else "by the byte model, not run"
            notes.append(f"fits: largest batch within {bytes_text(size)}, {how}")
    notes += no_room(rows)
    failed: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.error:
            failed.setdefault((row.method, row.error), []).append(f"{row.prompt_tokens} x {row.batch}")
    return [*notes, *(f"{method} at {', '.join(cells)}: {error}" for (method, error), cells in failed.items())]


def no_room(rows: Iterable[EfficiencyRow]) -> list[str]:
    """A sentence for each method and length of which not even one sequence fits the memory that was asked for."""
    return list(
        dict.fromkeys(
            f"{row.method} at {row.prompt_tokens}: not one sequence fits {bytes_text(row.fits_memory)}"
            + ("" if row.fits_least is None else f"; with the weights it takes {bytes_text(row.fits_least)}")
            for row in rows
            if row.fits == 0
        )
    )


def _setting(row: EfficiencyRow) -> str:
    weights = " with random weights" if row.weights == "random" else ""
    size = "" if row.weight_bytes is None else f" ({bytes_text(row.weight_bytes)} of weights)"
    return f"speed and memory of {row.model}{weights} in {row.dtype}{size}, each method alone: {row.machine}"


def _group(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a largest batch and the cells it belongs to have in common."""
    keys = ("model", "weights", "identity", "dtype", "device", "attn", "load_in", "method", "prompt_tokens")
    machine = row.get("machine")
    words = machine.get("words") if isinstance(machine, Mapping) else None
    return (*(row.get(key) for key in (*keys, "new_tokens", "prefill_chunk")), words)


def _row(row: Mapping[str, Any], fits: Mapping[str, Any] | None, run: str) -> EfficiencyRow:
    names = (
        "method", "model", "weights", "dtype", "device", "attn", "load_in", "prompt_tokens", "batch", "new_tokens",
        "prefill_chunk", "memory", "measured",
    )  # fmt: skip
    numbers = (
        "time_to_first_token", "decode_tokens_per_second", "samples_per_second", "weight_bytes", "activation_bytes",
        "kv_peak_bytes", "kv_bytes", "kv_bytes_full", "peak_bytes",
    )  # fmt: skip
    machine = row.get("machine")
    return EfficiencyRow(
        **{name: row[name] for name in names if row.get(name) is not None},
        **{name: _number(row.get(name)) for name in numbers},
        limit=_number(row.get("limit_tokens_per_second")),
        machine=str(machine.get("words", "")) if isinstance(machine, Mapping) else "",
        fits=fits["max_batch"] if fits else None,
        fits_memory=_number(fits.get("memory_bytes")) if fits else None,
        fits_least=_number(fits.get("least_bytes")) if fits else None,
        tried=bool(fits and fits.get("tried")),
        error=str(row.get("error") or "failed") if row.get("status", "ok") != "ok" else None,
        run=run,
    )


def _number(value: Any) -> Any:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if good else None
