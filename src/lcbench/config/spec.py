"""What a user asked of one run: its fields, their types and defaults, and how values are checked."""

from __future__ import annotations

import dataclasses
import os
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from lcbench.config.budget import Budget
from lcbench.config.options import split_items
from lcbench.config.sizes import parse_bytes
from lcbench.errors import BadValue, UnknownName, UsageError

Dtype = Literal["auto", "float32", "float16", "bfloat16"]
AttentionBackend = Literal["auto", "sdpa", "flash_attention_2"]
LoadIn = Literal["8bit", "4bit"]
OverLength = Literal["error", "truncate", "skip"]
Truncation = Literal["middle", "exact-ids"]
Context = Literal["full", "none"]
Question = Literal["visible", "hidden"]
Api = Literal["completions", "token-ids", "chat"]
Engine = Literal["local", "ray"]


COUNTS = ("limit", "max_input_tokens", "prefill_chunk", "window", "ray_cpus")
"""Fields whose least value is 1."""


WHO_ANSWERS = ("engine", "workers", "ray_gpus", "ray_cpus")
"""Fields that decide nothing of what is answered."""

WORKERS = r"(?:auto|0*[1-9][0-9]*)"
GPUS = r"(?:0?\.[0-9]+|[0-9]{1,3}(?:\.0*)?)"
"""``workers`` and ``ray_gpus`` as text, as regular expressions of Python and of JSON Schema."""

SERVED = "openai:"
"""How the name of a model behind an OpenAI-compatible address begins."""

SERVED_ONLY = ("base_url", "api", "tokenizer", "window")
"""Fields of such models alone."""


def default_model() -> str:
    """``LCBENCH_MODEL``, or the demo model."""
    return os.environ.get("LCBENCH_MODEL", "").strip() or "demo"


@dataclass(frozen=True)
class ModelSpec:
    """Which model, and how it is put in memory.

    Attributes:
        name: "demo", a hub id, a local folder, a GGUF file, or "openai:NAME" for a model behind an address.
        revision: hub revision (branch, tag or commit).
        dtype: of the weights; "auto" is float32 on a CPU and bfloat16 on a GPU.
        device: "auto", "cpu", "cuda:0", or "auto-map" to spread a large model over all GPUs.
        attn: attention of the prompt pass; "auto" is flash-attention where it is installed and there is a GPU.
        load_in: weights in "8bit" or "4bit" through bitsandbytes.
        trust_remote_code: run Python that the model's repository ships.
        chat: "auto" (the tokenizer's template), "official" (LongBench's hand-written format of the model's family),
            "none", or a Jinja file.
        base_url: of an "openai:" model: address of its server, /v1 included; OpenAI's own without it.
        api: of an "openai:" model: prompts go to "completions" as text or as "token-ids", or to "chat" completions,
            where the server applies its own chat template; without it chosen by task and by what the server has.
        tokenizer: of an "openai:" model: the tokenizer that its prompts are counted, cut and formatted with, a hub id,
            folder or GGUF file.
        window: of an "openai:" model: tokens of prompt and answer together, where its server does not tell.
    """

    name: str = field(default_factory=default_model)
    revision: str | None = None
    dtype: Dtype = "auto"
    device: str = "auto"
    attn: AttentionBackend = "auto"
    load_in: LoadIn | None = None
    trust_remote_code: bool = False
    chat: str = "auto"
    base_url: str | None = None
    api: Api | None = None
    tokenizer: str | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise BadValue("The model has no name.", "Write --model demo, or leave it out.")
        if self.window is not None and self.window < 1:
            raise BadValue(f"window={self.window} is below the least value 1.", "Use 1 or more.")
        for name in () if self.served else SERVED_ONLY:
            if getattr(self, name) is not None:
                raise UsageError(
                    f"{name} is for models behind an address, and {self.name} is none.",
                    f"Write --model {SERVED}NAME, or leave it out (in a study, write it inside the model it is for).",
                )

    @property
    def served(self) -> bool:
        """Whether it is a model behind an address."""
        return self.name.startswith(SERVED)


@dataclass(frozen=True)
class RunSpec:
    """Everything that decides the predictions of a run.

    Attributes:
        model: see `ModelSpec`.
        methods: method ids, e.g. ("full", "kivi@bits=2").
        tasks: task ids, e.g. ("qasper", "passkey@digits=64").
        budgets: each method that has the parameter ``budget`` and does not set it is run with every one of these:
            a share of the prompt (0.25, 25%, 4x) or a number of tokens (512).
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
        group_memory: what prompts and answers that are worked on together may take, e.g. "8GiB"; without it that is
            measured from free memory when the run begins. It decides the groups, and so the order of the records.
        engine: who answers: "local" processes, or actors of a "ray" cluster.
        workers: processes or actors, each with the model; "auto" is every GPU of this machine.
        ray_gpus: GPUs of each actor: 0, a share of one (0.5) or whole ones; without it 1 where this machine has any.
        ray_cpus: cores of each actor.
    """

    model: ModelSpec = field(default_factory=ModelSpec)
    methods: tuple[str, ...] = ("full",)
    tasks: tuple[str, ...] = ("passkey@lengths=384,depths=5,repeats=1",)
    budgets: tuple[str, ...] = ()
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
    group_memory: str | None = None
    engine: Engine = "local"
    workers: str = "1"
    ray_gpus: str | None = None
    ray_cpus: int = 1

    def __post_init__(self) -> None:
        for name in COUNTS:
            value = getattr(self, name, None)
            if value is not None and value < 1:
                raise BadValue(f"{name}={value} is below the least value 1.", "Use 1 or more.")
        if not self.methods:
            raise UsageError("No method was given.", "Add --method full, or see `lcbench list methods`.")
        if not self.tasks:
            raise UsageError("No task was given.", "Add --task passkey, or see `lcbench list tasks`.")
        if not re.fullmatch(WORKERS, self.workers):
            raise BadValue(f"--workers {self.workers} is neither auto nor a whole number from 1.", "Write --workers 2.")
        if self.ray_gpus is not None:
            _ = self.gpus_each
        if self.group_memory is not None:
            parse_bytes(self.group_memory, "--group-memory")
            if self.model.served:
                raise UsageError(
                    "group_memory is for models of this machine.", "Leave it out: --concurrency N bounds the calls."
                )

    @property
    def gpus_each(self) -> float:
        """``ray_gpus`` as a number, 0 without it. Raises BadValue: a number that Ray does not take."""
        text = (self.ray_gpus or "0").strip()
        if not re.fullmatch(GPUS, text):
            raise BadValue(
                f"--ray-gpus {text} is neither a share of one GPU nor a number of them.",
                "Write --ray-gpus 0.5 or --ray-gpus 2.",
            )
        return float(text)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, keys in field order. Budgets stand in the methods of a resolved spec: empty, they are
        left out, as are group_memory and what only models behind an address have, where they are not set. Who answers
        is no part of it: a run may be continued by others."""
        data = dataclasses.asdict(self)
        for name in WHO_ANSWERS:
            del data[name]
        for name in SERVED_ONLY:
            if data["model"][name] is None:
                del data["model"][name]
        data["methods"], data["tasks"], data["settings"] = (
            list(self.methods),
            list(self.tasks),
            dict(self.settings),
        )
        data["budgets"] = list(self.budgets)
        if not self.budgets:
            del data["budgets"]
        if self.group_memory is None:
            del data["group_memory"]
        return data


def make_spec(*layers: tuple[Mapping[str, Any], str] | Mapping[str, Any]) -> RunSpec:
    """A RunSpec from mappings of flat keys, each over those before it.

    The keys are the fields of `RunSpec` and of `ModelSpec`, with ``model`` for its name, ``method``/``methods``,
    ``task``/``tasks`` and ``budget``/``budgets`` (text with commas, or a list), and ``set`` (a mapping).
    A value of None is none.

    Args:
        layers: each a mapping, or a mapping and where it was read, for messages: " in study.yaml".

    Raises:
        UnknownName: a key that does not exist (the nearest is offered). BadValue: a value of the wrong kind.
        UsageError: nothing to run.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        values, where = layer if isinstance(layer, tuple) else (layer, "")
        merged |= checked(values, where)
    model_keys = {f.name for f in dataclasses.fields(ModelSpec)}
    model = {("name" if k == "model" else k): v for k, v in merged.items() if k == "model" or k in model_keys}
    rest = {k: v for k, v in merged.items() if k != "model" and k not in model_keys}
    return RunSpec(model=ModelSpec(**model), **rest)


def checked(values: Mapping[str, Any], where: str, known: frozenset[str] | None = None) -> dict[str, Any]:
    """The entries that have a value, under their full names and in the types of their fields.

    Args:
        where: appended to names in messages. known: the keys that may occur; None for all of a run.
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = ALIASES.get(key, key)
        if name not in (known or KEYS):
            raise UnknownName("key", key, known or KEYS, where=where)  # full names only: short ones are near both
        if value is not None:
            found[name] = _typed(name, value, where)
    return found


ALIASES = {"method": "methods", "task": "tasks", "budget": "budgets", "set": "settings"}
KEYS: dict[str, Any] = {
    **{k: v for k, v in typing.get_type_hints(ModelSpec).items() if k != "name"},
    **typing.get_type_hints(RunSpec),
    "model": str,
}
"""Flat key to the type of its field."""


def _typed(name: str, value: Any, where: str) -> Any:
    """Check one value against the type of its field; lists and comma text become tuples."""
    if name in ("methods", "tasks"):
        pieces = value if isinstance(value, list | tuple) else [value]
        if not all(isinstance(p, str) for p in pieces):
            raise BadValue(f"{name}{where} must be text or a list of texts.", f"Write {name}: [a, b].")
        return tuple(item for piece in pieces for item in split_items(piece))
    if name == "budgets":
        return _budgets(value, where)
    if name == "settings":
        if not isinstance(value, Mapping):
            raise BadValue(f"set{where} must be a mapping.", "Write set: {key: value}.")
        for key, one in value.items():
            if not isinstance(one, str | int | float):
                raise BadValue(f"set: {key}={one}{where} is neither text nor a number.", "Write set: {key: value}.")
        return {str(k): str(v) for k, v in value.items()}
    hint = KEYS[name]
    arms = [a for a in (get_args(hint) if type(None) in get_args(hint) else (hint,)) if a is not type(None)]
    arm = arms[0]
    if typing.get_origin(arm) is Literal:
        if value not in get_args(arm):
            allowed = ", ".join(str(a) for a in get_args(arm))
            raise BadValue(f"{name}={value}{where} is not one of {allowed}.", f"Choose {allowed}.")
        return value
    if isinstance(value, float) and value.is_integer() and (arm is int or name == "workers"):
        value = int(value)  # 3.0 is a whole number to JSON Schema
    if arm is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if arm is bool and isinstance(value, bool):
        return value
    if arm is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    noun = {int: "a whole number", bool: "true or false", str: "text"}.get(arm, "of another kind")
    raise BadValue(f"{name}={value}{where} is not {noun}.", f"Give {noun}.")


def _budgets(value: Any, where: str) -> tuple[str, ...]:
    pieces = value if isinstance(value, list | tuple) else [value]
    # 512.0 is the number 512 to JSON Schema, but 1.0 a share.
    pieces = [int(p) if isinstance(p, float) and p.is_integer() and p > 1 else p for p in pieces]
    texts = [text.strip() for piece in pieces for text in str(piece).split(",") if text.strip()]
    for text in texts:
        try:
            Budget.parse(text)
        except ValueError:
            step = "Write shares and numbers of tokens: budgets: [0.25, 512]."
            raise BadValue(f"budgets={text}{where} is not a budget.", step) from None
    return tuple(dict.fromkeys(texts))
