"""``lcbench merge``: the shards of a run joined into the run directory that one process would have written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcbench.config.shard import Shard
from lcbench.errors import CannotWrite, NotARun, SpecMismatch, StoreError, UsageError
from lcbench.store.files import make_folder, write_bytes, write_text
from lcbench.store.identity import as_lines, differences, identity_differences, other_differences
from lcbench.store.lock import is_locked
from lcbench.store.run_file import load_object
from lcbench.store.rundir import CONFIG_FILE, RunDirectory
from lcbench.store.shards import BATCHING_FILE, ShardPlan, read_plan

_SHOWN = 5


@dataclass(frozen=True)
class Merged:
    """Attributes:
    shards: how many. samples: records written, of which ``failed`` are errors.
    warnings: differences between shards, in sentences.
    """

    shards: int
    samples: int
    failed: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Part:
    path: Path
    plan: ShardPlan
    run: RunDirectory


def merge(out: Path, folders: Sequence[Path]) -> Merged:
    """Join all shards of one run in ``out``. Nothing is written before everything has been checked.

    Records stand in the order of the run's groups, so the predictions are byte for byte those of a run that was never
    divided. Of a sample that failed and was tried again only the latest record is taken. Merging twice, or into
    a folder that a killed merge has left, gives the same.

    Raises:
        UsageError: a shard is missing or given twice. NotARun: a folder is no shard. SpecMismatch: shards of
            different runs, or ``out`` is another run. StoreError: a shard is not finished, or ``out`` has records
            that the shards do not have. RunLocked, CorruptFile, CannotWrite.
    """
    if out.exists() and not out.is_dir():
        raise CannotWrite(f"{out} is a file, not a folder.", "Name the run's folder, or a new one.")
    parts = _opened([folder for folder in folders if folder.name != BATCHING_FILE])  # which RUN/shards/* holds, too
    _check_complete(parts)
    warnings = _check_same(parts)
    _check_finished(parts)
    first = parts[0].run
    files = [(method, task) for task in first.tasks for method in first.methods_of(task)]
    for method, task in files:
        there = out / first.predictions_path(method, task).relative_to(first.path)
        _check_target(there, _records(parts, method, task)[0])
    samples = failed = 0
    with RunDirectory.create_or_continue(out, first.spec, first.provenance) as run:
        for method, task in files:  # one file at a time is in memory
            lines, errors = _records(parts, method, task)
            if lines:
                path = run.predictions_path(method, task)
                make_folder(path.parent)
                write_bytes(path, b"".join(lines))
            samples, failed = samples + len(lines), failed + errors
        _copy_rest(run, parts, files)
    return Merged(len(parts), samples, failed, tuple(warnings))


# -- checks ----------------------------------------------------------------------------------------------------------


def _opened(folders: Sequence[Path]) -> list[_Part]:
    if not folders:
        raise UsageError("There are no shards to merge.", "Make them: lcbench run … --out RUN --shard 1/8")
    parts = [_Part(folder, read_plan(folder), RunDirectory.open(folder)) for folder in folders]
    return sorted(parts, key=lambda part: part.plan.shard.number)


def _check_complete(parts: Sequence[_Part]) -> None:
    of = parts[0].plan.shard.of
    seen: dict[int, Path] = {}
    for part in parts:
        shard = part.plan.shard
        if shard.of != of:
            raise UsageError(
                f"{parts[0].path} is one of {of} shards and {part.path} one of {shard.of}.",
                "Give the shards of one division.",
            )
        if shard.number in seen:
            raise UsageError(f"Shard {shard} is given twice: {seen[shard.number]} and {part.path}.", "Give it once.")
        seen[shard.number] = part.path
    missing = [str(Shard(k, of)) for k in range(1, of + 1) if k not in seen]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        noun = "Shard" if len(missing) == 1 else "Shards"
        verb = "is" if len(missing) == 1 else "are"
        raise UsageError(
            f"{noun} {', '.join(missing[:_SHOWN])}{more} {verb} missing.",
            f"Run the same command with --shard {missing[0]}, or name its folder too.",
        )


def _check_same(parts: Sequence[_Part]) -> list[str]:
    """Refuse shards of different runs; returns what else differs."""
    first, warnings = parts[0], []
    for part in parts[1:]:
        changed = differences(first.run.spec, part.run.spec) or identity_differences(
            first.run.provenance, part.run.provenance
        )
        if changed:
            lines = "".join(f"\n  {line}" for line in as_lines(changed))
            raise SpecMismatch(
                f"{part.path} is a shard of another run than {first.path}:{lines}", "Give the shards of one run."
            )
        if part.plan.plan_sha256 != first.plan.plan_sha256:
            raise SpecMismatch(
                f"{part.path} and {first.path} were divided differently: their {BATCHING_FILE} are not the same.",
                "Run shards with a common --out, or with the same --group-memory, so that their groups are the same.",
            )
        others = as_lines(other_differences(first.run.provenance, part.run.provenance))
        warnings += [f"Shard {part.plan.shard} differs from {first.plan.shard}: {line}" for line in others]
    return warnings


def _check_finished(parts: Sequence[_Part]) -> None:
    for part in parts:
        had = sum(len(part.run.records(m, t)) for t in part.run.tasks for m in part.run.methods_of(t))
        if had < part.plan.samples:
            state = "is still being answered" if is_locked(part.path) else "is not finished"
            raise StoreError(
                f"Shard {part.plan.shard} {state}: {had} of {part.plan.samples} samples are there ({part.path}).",
                f"Finish it: give its command again, with --shard {part.plan.shard}.",
            )


def _check_target(path: Path, lines: Sequence[bytes]) -> None:
    """What is there already must be the beginning of what will be there."""
    try:
        there = path.read_bytes()
    except FileNotFoundError:
        return
    if not b"".join(lines).startswith(there):
        raise StoreError(f"{path} holds records that are not those of the shards.", "Merge into another, new folder.")


# -- contents --------------------------------------------------------------------------------------------------------


def _records(parts: Sequence[_Part], method: str, task: str) -> tuple[list[bytes], int]:
    """Lines of one predictions file, each with its newline, and how many are errors."""
    found: list[tuple[int, bytes, bool]] = []
    for part in parts:
        groups = _groups(part.plan, method, task)
        for record in part.run.records(method, task):
            if record.id not in groups:
                raise StoreError(
                    f"{part.path} has a record of {method} on {task} that is not its share: {record.id}.",
                    "Delete this line from its predictions, or make the shard anew.",
                )
            found.append((groups[record.id], record.to_line().encode("utf-8") + b"\n", record.ok))
    found.sort(key=lambda item: item[0])  # stable: within a group as the shard wrote them
    return [line for _, line, _ in found], sum(not ok for _, _, ok in found)


def _groups(plan: ShardPlan, method: str, task: str) -> dict[str, int]:
    return {
        i: share.group for share in plan.shares if share.task == task and method in share.methods for i in share.ids
    }


def _copy_rest(run: RunDirectory, parts: Sequence[_Part], files: Sequence[tuple[str, str]]) -> None:
    """Timings in the order of the records, the events of all shards by time, options and limits of the first."""
    first = parts[0].run
    for method, task in files:
        rows = []
        for part in parts:
            groups = _groups(part.plan, method, task)
            found = part.run.timings(method, task).items()
            rows += [(groups[i], {"_id": i, **seconds}) for i, seconds in found if i in groups]
        if rows:
            path = run.timings_path(method, task)
            make_folder(path.parent)
            rows.sort(key=lambda row: row[0])
            write_text(path, "".join(json.dumps(row) + "\n" for _, row in rows))
    events = sorted(_events(parts), key=lambda event: str(event.get("time", "")))
    if events:
        write_text(run.path / "events.jsonl", "".join(json.dumps(event) + "\n" for event in events))
    try:
        write_bytes(run.path / CONFIG_FILE, (first.path / CONFIG_FILE).read_bytes())
        run.batching({name: int(value) for name, value in load_object(first.path / BATCHING_FILE).items()})
    except (OSError, ValueError, TypeError):
        raise NotARun(
            f"{first.path} has no {CONFIG_FILE} or no {BATCHING_FILE} that can be read.",
            "Give the shard's command again.",
        ) from None


def _events(parts: Sequence[_Part]) -> Iterator[dict[str, Any]]:
    for part in parts:
        for event in part.run.events():
            yield {**event, "shard": str(part.plan.shard)}
