"""The run a user asked for: defaults, then a YAML file, then the command line."""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from lcbench.config.options import split_items
from lcbench.errors import BadValue, UnknownName, UsageError

Dtype = Literal["auto", "float32", "float16", "bfloat16"]
AttentionBackend = Literal["auto", "sdpa", "flash_attention_2"]
LoadIn = Literal["8bit", "4bit"]
OverLength = Literal["error", "truncate", "skip"]
Truncation = Literal["middle", "exact-ids"]
Context = Literal["full", "none"]
Question = Literal["visible", "hidden"]


def default_model() -> str:
    """``LCBENCH_MODEL``, or the demo model."""
    return os.environ.get("LCBENCH_MODEL", "").strip() or "demo"


@dataclass(frozen=True)
class ModelSpec:
    """Which model, and how it is put in memory.

    Attributes:
        name: "demo", a hub id, a local folder, or a GGUF file.
        revision: hub revision (branch, tag or commit).
        dtype: of the weights; "auto" is float32 on a CPU and bfloat16 on a GPU.
        device: "auto", "cpu", "cuda:0", or "auto-map" to spread a large model over all GPUs.
        attn: attention of the prompt pass; "auto" is flash-attention where it is installed and there is a GPU.
        load_in: weights in "8bit" or "4bit" through bitsandbytes.
        trust_remote_code: run Python that the model's repository ships.
        chat: "auto" (the tokenizer's template), "official" (LongBench's hand-written format of the model's family),
            "none", or a Jinja file.
    """

    name: str = field(default_factory=default_model)
    revision: str | None = None
    dtype: Dtype = "auto"
    device: str = "auto"
    attn: AttentionBackend = "auto"
    load_in: LoadIn | None = None
    trust_remote_code: bool = False
    chat: str = "auto"


@dataclass(frozen=True)
class RunSpec:
    """Everything that decides the predictions of a run.

    Attributes:
        model: see `ModelSpec`.
        methods: method ids, e.g. ("full", "kivi@bits=2").
        tasks: task ids, e.g. ("qasper", "passkey@digits=64").
        settings: ``--set`` options, applied to every method that has them.
        limit: at most this many rows a task.
        max_input_tokens: a window smaller than the model's.
        prefill_chunk: tokens a forward pass while reading the prompt; None reads it at once.
        over_length: a prompt longer than the window that its task does not cut: "error" row, "truncate" it in the
            middle nevertheless, or "skip" it.
        truncation: how a long prompt loses its middle: "middle" decodes and joins both ends as LongBench's script
            does, "exact-ids" drops ids and never tokenizes twice.
        context: "full", or "none" to ask without the context (what the model knew before; contamination).
        question: "visible": a method compresses the whole prompt, question included. "hidden": it compresses the
            context alone and then reads the question through its compressed cache.
        exact: decode every answer in a batch of its own instead of many together.
        seed: for everything random.
    """

    model: ModelSpec = field(default_factory=ModelSpec)
    methods: tuple[str, ...] = ("full",)
    tasks: tuple[str, ...] = ("passkey@lengths=384,depths=5,repeats=1",)
    settings: Mapping[str, str] = field(default_factory=dict)
    limit: int | None = None
    max_input_tokens: int | None = None
    prefill_chunk: int | None = None
    over_length: OverLength = "error"
    truncation: Truncation = "middle"
    context: Context = "full"
    question: Question = "visible"
    exact: bool = False
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("limit", "max_input_tokens", "prefill_chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadValue(f"{name}={value} is below the least value 1.", "Use 1 or more.")
        if not self.methods:
            raise UsageError("No method was given.", "Add --method full, or see `lcbench list methods`.")
        if not self.tasks:
            raise UsageError("No task was given.", "Add --task passkey, or see `lcbench list tasks`.")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, keys in field order."""
        data = dataclasses.asdict(self)
        data["methods"], data["tasks"], data["settings"] = (
            list(self.methods),
            list(self.tasks),
            dict(self.settings),
        )
        return data


def make_spec(command_line: Mapping[str, Any], config: Path | None = None) -> RunSpec:
    """A RunSpec from the options that were given (None = not given) over those of a YAML file.

    Both use the same flat keys: the fields of `RunSpec` and of `ModelSpec`, with ``model`` for its name,
    ``method``/``methods`` and ``task``/``tasks`` (text with commas, or a list), ``set`` (a mapping).

    Raises:
        UnknownName: a YAML key that does not exist (the nearest is offered). BadValue: a value of the wrong kind.
        UsageError: the file cannot be read.
    """
    merged: dict[str, Any] = {}
    for source, where in ((_read_yaml(config) if config else {}, f" in {config}"), (command_line, "")):
        for key, value in source.items():
            name = _ALIASES.get(key, key)
            if name not in _KEYS:
                raise UnknownName("key", key, set(_KEYS) | set(_ALIASES), where=where)
            if value is not None:
                merged[name] = _typed(name, value, where)
    model_keys = {f.name for f in dataclasses.fields(ModelSpec)}
    model = {("name" if k == "model" else k): v for k, v in merged.items() if k == "model" or k in model_keys}
    rest = {k: v for k, v in merged.items() if k != "model" and k not in model_keys}
    return RunSpec(model=ModelSpec(**model), **rest)


_ALIASES = {"method": "methods", "task": "tasks", "set": "settings"}
_KEYS: dict[str, Any] = {
    **{k: v for k, v in typing.get_type_hints(ModelSpec).items() if k != "name"},
    **typing.get_type_hints(RunSpec),
    "model": str,
}


class _OnceLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice; YAML itself would silently take the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [_ALIASES.get(str(key.value), str(key.value)) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise UsageError(
                    f"The key '{key}' is given twice (line {node.start_mark.line + 1} and below).", "Give it once."
                )
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_OnceLoader)
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.", "Give --config an existing YAML file.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise UsageError(f"{path}{line} is not valid YAML.", "Mend the file.") from None
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(k, str) for k in data):
        raise UsageError(f"{path} is not a mapping of keys to values.", "Write lines like `model: demo`.")
    return data


def _typed(name: str, value: Any, where: str) -> Any:
    """Check one value against the type of its field; lists and comma text become tuples."""
    if name in ("methods", "tasks"):
        pieces = value if isinstance(value, list | tuple) else [value]
        if not all(isinstance(p, str) for p in pieces):
            raise BadValue(f"{name}{where} must be text or a list of texts.", f"Write {name}: [a, b].")
        return tuple(item for piece in pieces for item in split_items(piece))
    if name == "settings":
        if not isinstance(value, Mapping):
            raise BadValue(f"set{where} must be a mapping.", "Write set: {key: value}.")
        return {str(k): str(v) for k, v in value.items()}
    hint = _KEYS[name]
    arms = [a for a in (get_args(hint) if type(None) in get_args(hint) else (hint,)) if a is not type(None)]
    arm = arms[0]
    if typing.get_origin(arm) is Literal:
        if value not in get_args(arm):
            allowed = ", ".join(str(a) for a in get_args(arm))
            raise BadValue(f"{name}={value}{where} is not one of {allowed}.", f"Choose {allowed}.")
        return value
    if arm is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if arm is bool and isinstance(value, bool):
        return value
    if arm is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    noun = {int: "a whole number", bool: "true or false", str: "text"}.get(arm, "of another kind")
    raise BadValue(f"{name}={value}{where} is not {noun}.", f"Give {noun}.")
