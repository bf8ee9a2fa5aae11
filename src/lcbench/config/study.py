"""A study: one run, or one for each of several models, from a YAML file and the command line over it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcbench.config.spec import ModelSpec, RunSpec, checked, make_spec
from lcbench.config.yaml_file import read_yaml
from lcbench.errors import BadValue, UnknownName, UsageError

MODELS, OUT = "models", "out"
STUDY_KEYS = (MODELS, OUT)
"""Keys of a file that are about the study and not about one run."""


@dataclass(frozen=True)
class Study:
    """What was asked.

    Attributes:
        runs: one for each model, in their order.
        out: where they go, as the file says; the command line is not in it.
        folders: whether the runs lie in a folder each below ``out``: the file lists several models, and these are of
            the list.
    """

    runs: tuple[RunSpec, ...]
    out: Path | None = None
    folders: bool = False


def make_study(command_line: Mapping[str, Any], config: Path | None = None) -> Study:
    """A study from the options that were given (None = not given) over those of a YAML file.

    The file has the flat keys of `make_spec`, and may have ``models`` instead of ``model``: a list of names and of
    mappings with the keys of `ModelSpec`. Keys of a mapping go over those of the file, the command line over both.
    A model named on the command line that is in the list is taken from there, with its keys; any other one replaces
    the list.

    Raises:
        UnknownName, BadValue: as `make_spec`. UsageError: the file cannot be read, or contradicts itself.
    """
    flat = read_yaml(config) if config else {}
    where = f" in {config}"
    both = "model" in flat and MODELS in flat
    out, listed = _out(flat.pop(OUT, None), where), flat.pop(MODELS, None)
    _refuse_unknown(flat, where)
    if both:
        raise UsageError(f"Both model and models are given{where}.", "Give one of them.")
    if listed is None:
        return Study((make_spec((flat, where), command_line),), out)
    if not isinstance(listed, list) or not listed:
        raise BadValue(f"models{where} is not a list of models.", "Write models: [demo, some/model].")
    models = [_model(one, f"{where}, models[{i}]") for i, one in enumerate(listed)]
    asked = command_line.get("model")
    if asked is not None and not any(one["model"] == asked for one in models):
        return Study((make_spec((flat, where), command_line),), out)
    runs = tuple(make_spec((flat, where), one, command_line) for one in models if asked in (None, one["model"]))
    for i, run in enumerate(runs):
        if run in runs[:i]:
            raise UsageError(f"The model {run.model.name} is listed twice with the same keys{where}.", "List it once.")
    return Study(runs, out, folders=len(models) > 1)


def _out(value: Any, where: str) -> Path | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise BadValue(f"out={value}{where} is not the name of a folder.", "Write out: runs/study.")
    return Path(value).expanduser()


def _refuse_unknown(flat: Mapping[str, Any], where: str) -> None:
    try:
        checked(flat, where)
    except UnknownName as error:
        raise UnknownName("key", error.name, {*error.choices, *STUDY_KEYS}, where=where) from None


def _model(value: Any, where: str) -> dict[str, Any]:
    """One entry of ``models`` in flat keys."""
    if isinstance(value, str) and value.strip():
        return {"model": value}
    if not isinstance(value, Mapping):
        raise BadValue(f"{value}{where} is neither a name nor a mapping.", "Write - name: some/model.")
    known = frozenset(f.name for f in dataclasses.fields(ModelSpec) if f.name != "name")
    keys = dict(value)
    name = keys.pop("name", None)
    for key in keys:
        if key not in known:
            raise UnknownName("key", str(key), {*known, "name"}, where=where)
    if not isinstance(name, str) or not name.strip():
        raise UsageError(f"A model without a name stands{where}.", "Begin it with - name: some/model.")
    return {"model": name, **checked(keys, where, known)}
