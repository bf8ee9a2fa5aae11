"""The ``longscore`` part of scores.json: made from scored samples, written as JSON, read back by the reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lcbench.errors import UnknownName
from lcbench.scoring.bootstrap import Bootstrap
from lcbench.scoring.longscore.curve import OVERALL, Curve, Drawn, Interval, Rung, curve, draw, mean_of_ladders
from lcbench.scoring.longscore.decompose import Amount, LengthSplit, Pair, Split, mean_pair, pair, split
from lcbench.scoring.longscore.ladder import Counts, Ladder, Scored, find_ladders, is_hundred
from lcbench.tasks.facts import HUNDRED

MODES = ("reference", "paper")


@dataclass(frozen=True)
class LongScoreOptions:
    """How LongScore is made.

    Attributes:
        wanted: make it for every task that exists at several lengths; False: for 100-LongBench alone.
        mode: "reference" (base: the base set as a whole) or "paper" (base: mean over the short lengths in it).
        base_lengths: labels of the lengths whose mean is the base of other tasks; empty: the shortest length.
        against: method that the others are compared with: an id, or a name that only one method has.

    Raises:
        UnknownName: no such mode.
    """

    wanted: bool = False
    mode: str = "reference"
    base_lengths: tuple[str, ...] = ()
    against: str = "full"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UnknownName("mode", self.mode, MODES)

    def record(self) -> dict[str, Any]:
        """What scores.json keeps of them."""
        return {**asdict(self), "base_lengths": list(self.base_lengths)}

    @classmethod
    def from_record(cls, data: Mapping[str, Any]) -> LongScoreOptions:
        """What `record` gave. Raises TypeError, KeyError, UnknownName for anything else."""
        return cls(**{**data, "base_lengths": tuple(data["base_lengths"])})


@dataclass(frozen=True)
class LongScores:
    """LongScores of a run.

    Attributes:
        mode, base_lengths, against: as in `LongScoreOptions`. curves: method id to curves: 100-LongBench's mean first,
        then its tasks, then others. splits: methods against ``against``, in the same order. notes: sentences for the
        reader.
    """

    mode: str
    base_lengths: tuple[str, ...]
    against: str
    curves: Mapping[str, tuple[Curve, ...]]
    splits: tuple[Split, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "mode": self.mode,
            "base_lengths": list(self.base_lengths),
            "against": self.against,
            "methods": {method: {c.name: _curve_dict(c) for c in curves} for method, curves in self.curves.items()},
            "splits": [asdict(one) for one in self.splits],
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LongScores:
        """What `to_dict` wrote, also after JSON. Raises KeyError, TypeError for anything else."""
        return cls(
            data["mode"],
            tuple(data["base_lengths"]),
            data["against"],
            {
                method: tuple(_curve_from(name, one) for name, one in curves.items())
                for method, curves in data["methods"].items()
            },
            tuple(_split_from(one) for one in data["splits"]),
            tuple(data["notes"]),
        )


def long_scores(
    methods: Mapping[str, Sequence[Scored]], options: LongScoreOptions, bootstrap: Bootstrap
) -> LongScores | None:
    """LongScores of every method with a ladder of lengths; None when no method has one.

    Args:
        methods: method id to its scored tasks.

    Raises:
        UnknownName: base lengths that no task has, or only some of; a method to compare with that is not there, or is
            there more than once. BadValue: no length is left above the base.
    """
    ladders: dict[str, list[Ladder]] = {}
    for method, tasks in methods.items():
        eligible = [one for one in tasks if options.wanted or is_hundred(one.task.task)]
        found = find_ladders(eligible, options.mode, options.base_lengths)
        if found:
            ladders[method] = found
    if not ladders:
        return None
    _check_base_lengths([ladder for found in ladders.values() for ladder in found], options.base_lengths)
    curves = {method: _curves(found, bootstrap) for method, found in ladders.items()}
    against = _reference_method(list(ladders), options.against)
    notes = []
    if against is None and options.against != LongScoreOptions.against:
        raise UnknownName("method", options.against, ladders, where=" to compare with (--against)")
    if against is None and len(ladders) > 1:
        notes.append(
            f"No method {options.against} in this run: losses are not split into base and long-context ability."
        )
    splits = () if against is None else tuple(_splits(ladders, against, bootstrap))
    return LongScores(
        options.mode, tuple(options.base_lengths), against or options.against, curves, splits, tuple(notes)
    )


def _check_base_lengths(ladders: Sequence[Ladder], wanted: Sequence[str]) -> None:
    """Raise UnknownName when no ladder has the base lengths that were asked for."""
    labels = [
        {point.label for point in (*ladder.base, *ladder.points)} for ladder in ladders if ladder.suite != HUNDRED
    ]
    if wanted and not any(set(wanted) <= found for found in labels):
        raise UnknownName("base length", ",".join(wanted), {label for found in labels for label in found})


def _reference_method(methods: Sequence[str], wanted: str) -> str | None:
    if wanted in methods:
        return wanted
    named = [method for method in methods if method.partition("@")[0] == wanted]
    return named[0] if len(named) == 1 else None


def _builds(ladders: Sequence[Ladder]) -> dict[str, list[Ladder]]:
    """The 100-LongBench tasks by what else their ids say (the build): tasks of two builds have no common mean."""
    builds: dict[str, list[Ladder]] = {}
    for ladder in ladders:
        if ladder.suite == HUNDRED:
            builds.setdefault(ladder.name.partition("@")[2], []).append(ladder)
    return {build: found for build, found in builds.items() if len(found) > 1}


def _curves(ladders: Sequence[Ladder], bootstrap: Bootstrap) -> tuple[Curve, ...]:
    drawn = {ladder.name: draw(ladder, bootstrap) for ladder in ladders}
    curves = []
    for build, members in _builds(ladders).items():
        mean = mean_of_ladders([drawn[ladder.name] for ladder in members])
        if mean is not None:
            names = tuple(sorted(ladder.name for ladder in members))
            curves.append(curve(_named(mean, build), bootstrap, names))
    return (*curves, *(curve(one, bootstrap) for one in drawn.values()))


def _named(mean: Drawn, build: str) -> Drawn:
    name = f"{OVERALL}@{build}" if build else OVERALL
    return replace(mean, ladder=replace(mean.ladder, name=name))


def _splits(ladders: Mapping[str, Sequence[Ladder]], against: str, bootstrap: Bootstrap) -> list[Split]:
    others = {ladder.name: ladder for ladder in ladders[against]}
    found = []
    for method, own in ladders.items():
        if method == against:
            continue
        pairs: dict[str, Pair] = {}
        for ladder in own:
            one = pair(ladder, others[ladder.name], bootstrap) if ladder.name in others else None
            if one is not None:
                pairs[ladder.name] = one
        for build, members in _builds(own).items():
            mean = mean_pair([pairs[ladder.name] for ladder in members if ladder.name in pairs])
            if mean is not None:
                mean = Pair(_named(mean.mine, build), _named(mean.other, build), mean.shared, mean.left_out)
                found.append(split(mean, method, against, bootstrap))
        found += [split(one, method, against, bootstrap) for one in pairs.values()]
    return found


# -- JSON ------------------------------------------------------------------------------------------------------------


def _curve_dict(one: Curve) -> dict[str, Any]:
    data = asdict(one)
    del data["name"]
    data["lengths"] = data.pop("rungs")
    for rung, entry in zip((one.base, *one.rungs), (data["base"], *data["lengths"]), strict=True):
        entry["below_base"] = rung.below_base
    return data


def _curve_from(name: str, data: Mapping[str, Any]) -> Curve:
    values = {key: value for key, value in data.items() if key not in ("base", "lengths")}
    for key in ("average_interval", "long_score_interval"):
        values[key] = _interval(values[key])
    for key in ("warnings", "members"):
        values[key] = tuple(values[key])
    return Curve(
        name=name,
        base=_rung_from(data["base"]),
        rungs=tuple(_rung_from(one) for one in data["lengths"]),
        **values,
    )


def _rung_from(data: Mapping[str, Any]) -> Rung:
    values = {key: value for key, value in data.items() if key != "below_base"}
    for key in ("interval", "value_interval", "change_interval"):
        values[key] = _interval(values[key])
    return Rung(**{**values, "counts": Counts(**values["counts"])})


def _split_from(data: Mapping[str, Any]) -> Split:
    values = dict(data)
    for key in ("change", "base_ability", "long_context", "base_change", "long_score_change"):
        values[key] = Amount(data[key]["value"], _interval(data[key]["interval"]))
    values["by_length"] = tuple(LengthSplit(**one) for one in data["by_length"])
    return Split(**values)


def _interval(value: Any) -> Interval | None:
    return None if value is None else (value[0], value[1])
