"""JSON Schema of the ``--config`` file, for editors; made from the fields of `RunSpec` and `ModelSpec`."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import shlex
import types
import typing
from importlib import resources
from typing import Any

from lcbench.config import budget, sizes
from lcbench.config.spec import ALIASES, COUNTS, GPUS, SERVED, SERVED_ONLY, WORKERS, ModelSpec, RunSpec
from lcbench.config.study import MODELS, OUT

FILE_NAME = "lcbench.schema.json"
MODELINE = f"# yaml-language-server: $schema={FILE_NAME}"
"""First line of a YAML file: editors then check and complete its keys."""

_SAID = {"type": "string", "pattern": r"[^\s,]"}
_NAME = {"type": "string", "pattern": r"\S"}
_TEXTS = {"anyOf": [_SAID, {"type": "array", "items": {"type": "string"}, "contains": _SAID}]}
_ONE = rf"(?!0*\.?0*%?\s*(?:,|$)){budget.WRITTEN}\s*"
_BUDGET = {
    "anyOf": [
        {"type": "string", "pattern": rf"^\s*(?:{_ONE})?(?:,\s*(?:{_ONE})?)*$"},
        {"type": "integer", "minimum": 1},
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    ]
}
_SPECIAL: dict[str, dict[str, Any]] = {
    "methods": _TEXTS,
    "tasks": _TEXTS,
    "budgets": {"anyOf": [*_BUDGET["anyOf"], {"type": "array", "items": _BUDGET}]},
    "workers": {"anyOf": [{"type": "string", "pattern": f"^{WORKERS}$"}, {"type": "integer", "minimum": 1}]},
    "ray_gpus": {
        "anyOf": [
            {"type": "string", "pattern": rf"^\s*{GPUS}\s*$"},
            {"type": "number", "minimum": 0, "maximum": 1},
            {"type": "integer", "minimum": 0, "maximum": 999},
        ]
    },
    "group_memory": {
        "anyOf": [
            {"type": "string", "pattern": rf"^(?=[0-9.\s]*[1-9]){sizes.WRITTEN}$"},
            {"type": "number", "minimum": sizes.LEAST, "maximum": 1e15},
        ]
    },
    "settings": {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}},
}

_TWICE = [["model", MODELS], *([alias, name] for alias, name in ALIASES.items())]
"""Keys of which a file has one."""

_SERVED_NAME = {"type": "string", "pattern": f"^{SERVED}"}


def json_schema() -> dict[str, Any]:
    """The schema (draft 2020-12). Every key of a file, its type, its values and what it means."""
    model = _fields(ModelSpec)
    name = {**_NAME, "description": model.pop("name")["description"]}
    flat = {key: _or_nothing(value) for key, value in model.items()}
    run = {key: value for key, value in _fields(RunSpec).items() if key != "model"}
    properties: dict[str, Any] = {
        "model": {**name, "type": ["string", "number"], "description": f"The model: {name['description']}"},
        MODELS: {
            "type": "array",
            "minItems": 1,
            "uniqueItems": True,
            "description": "Several models, each a name or a mapping of model keys, instead of model; each has a run "
            "directory of its own below out.",
            "items": {
                "anyOf": [
                    _NAME,
                    {
                        "type": "object",
                        "properties": {"name": name, **flat},
                        "required": ["name"],
                        "additionalProperties": False,
                        "if": {"anyOf": [_given(key) for key in SERVED_ONLY]},
                        "then": {"properties": {"name": _SERVED_NAME}},
                    },
                ]
            },
        },
        **run,
        **{alias: run[name] for alias, name in ALIASES.items()},
        **flat,
        OUT: {**_NAME, "description": "Run directory, or the folder of those of several models."},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "lcbench study",
        "description": "What `lcbench run --config FILE` runs. The command line goes over the file.",
        "type": ["object", "null"],
        "properties": {key: _or_nothing(schema) for key, schema in properties.items()},
        "additionalProperties": False,
        "not": {"type": "object", "anyOf": [{"required": pair} for pair in _TWICE]},
        "allOf": [
            {"if": {"anyOf": [_given(key) for key in SERVED_ONLY]}, "then": _models(_SERVED_NAME)},
            {"if": _given("group_memory"), "then": {"not": _some_model(_SERVED_NAME)}},
        ],
    }


def _given(key: str) -> dict[str, Any]:
    """Whether a mapping has a value under a key."""
    return {"type": "object", "required": [key], "properties": {key: {"not": {"type": "null"}}}}


def _models(name: dict[str, Any]) -> dict[str, Any]:
    """Whether the file names its models, and all in such a way."""
    listed = {"type": "array", "items": _called(name)}
    return {
        "anyOf": [{"required": [key], "properties": {key: say}} for key, say in (("model", name), (MODELS, listed))]
    }


def _some_model(name: dict[str, Any]) -> dict[str, Any]:
    """Whether the file names a model in such a way."""
    listed = {"type": "array", "contains": _called(name)}
    return {
        "type": "object",
        "anyOf": [{"required": [key], "properties": {key: say}} for key, say in (("model", name), (MODELS, listed))],
    }


def _called(name: dict[str, Any]) -> dict[str, Any]:
    """An entry of ``models`` with such a name."""
    return {"anyOf": [name, {"type": "object", "required": ["name"], "properties": {"name": name}}]}


def _or_nothing(schema: dict[str, Any]) -> dict[str, Any]:
    """A key whose value is left empty is none."""
    if "enum" in schema:
        return schema if None in schema["enum"] else {**schema, "enum": [*schema["enum"], None]}
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    kinds = _kinds(schema)
    return schema if "null" in kinds else {**schema, "type": [*kinds, "null"]}


def render() -> str:
    """The schema as the text of a file."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def _fields(cls: type[Any]) -> dict[str, dict[str, Any]]:
    """A schema for every field of a dataclass; descriptions are those of its docstring."""
    meanings, hints = _meanings(cls), typing.get_type_hints(cls)
    result: dict[str, dict[str, Any]] = {}
    for field in dataclasses.fields(cls):
        schema = dict(_SPECIAL.get(field.name) or _type(hints[field.name]))
        if field.name in COUNTS:
            schema["minimum"] = 1
        if field.name in meanings:
            schema["description"] = meanings[field.name]
        if field.default is not dataclasses.MISSING and field.default is not None and field.name not in _SPECIAL:
            schema["default"] = field.default
        result[field.name] = schema
    return result


def _type(hint: Any) -> dict[str, Any]:
    arms = typing.get_args(hint)
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        schema = _type(next(arm for arm in arms if arm is not type(None)))
        if "enum" in schema:
            return {"enum": [*schema["enum"], None]}
        return {**schema, "type": [*_kinds(schema), "null"]}
    if typing.get_origin(hint) is typing.Literal:
        return {"enum": list(arms)}
    if hint is str:
        return {"type": ["string", "number"]}  # a revision may be written 1.0
    return {"type": {int: "integer", bool: "boolean"}.get(hint, "object")}


def _kinds(schema: dict[str, Any]) -> list[str]:
    return schema["type"] if isinstance(schema["type"], list) else [schema["type"]]


def _meanings(cls: type[Any]) -> dict[str, str]:
    """Field name to its text in the section "Attributes" of the class's docstring, on one line, without markup."""
    _, _, section = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        start = re.match(r"    (\w+): (.*)", line)
        if start:
            name, text = start.groups()
            found[name] = text
        elif name and line.strip():
            found[name] += " " + line.strip()
    return {key: text.replace("``", "").replace("`", "") for key, text in found.items()}


def example(name: str) -> str:
    """A commented study that runs as it is on the demo model, to be written as a file called ``name``."""
    text = (resources.files("lcbench.config") / "example.yaml").read_text(encoding="utf-8")
    return f"{MODELINE}\n{text.replace('FILE', shlex.quote(name))}"
