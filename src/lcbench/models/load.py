"""Loading a model: from what the user asked for to a decoder whose attention runs through lcbench."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcbench.config.spec import ModelSpec
from lcbench.errors import ModelError
from lcbench.models import adapter, chat, flash, gguf, hub, identity, rope
from lcbench.models.converted import folder_for, is_converted
from lcbench.models.identity import Say
from lcbench.models.info import LoadedModel, ModelInfo, library_versions, model_facts, weight_bytes
from lcbench.models.official_chat import answer_rule
from lcbench.models.place import FLASH, Placement, attention_kernel, place
from lcbench.models.read import Reader, checked_weights
from lcbench.models.source import find

__all__ = ["LoadedModel", "ModelInfo", "describe", "load"]


@dataclass(frozen=True)
class _Prepared:
    """Everything known before the weights are read."""

    reader: Reader
    config: Any
    tokenizer: Any
    placement: Placement
    info: ModelInfo


def _silent(message: str) -> None:
    pass


def load(spec: ModelSpec, home: Path, say: Say = _silent, *, with_tokenizer: bool = True) -> LoadedModel:
    """Load a model, in eval mode and with its attention routed through `models.adapter`.

    Args:
        spec: which model and how. home: LCBENCH_HOME, for conversions and hashes.
        say: called with one sentence when something takes long.
        with_tokenizer: False for a caller that has token ids: none is read, and the model may come without one.

    Raises:
        ModelError: it cannot be found, read, placed or served; the message says what and the next step how to go on.
        BadValue: a device that is not one. CannotWrite: no room for the converted GGUF.
    """
    prepared = _prepare(spec, home, say, convert=True, with_tokenizer=with_tokenizer)
    model = prepared.reader.weights(prepared.config, prepared.placement)
    adapter.install(model)
    if prepared.info.attn == FLASH:
        flash.use_in(model)
    info = dataclasses.replace(prepared.info, weight_bytes=weight_bytes(model))
    return LoadedModel(model, prepared.tokenizer, info)


def describe(
    spec: ModelSpec, home: Path, say: Say = _silent, *, with_tokenizer: bool = True, turned_by: Sequence[str] = ()
) -> tuple[ModelInfo, Any]:
    """Facts and tokenizer (None without ``with_tokenizer``) of a model without reading its weights; the facts equal
    those of `load`.

    Only with ``load_in`` they differ: ``weight_bytes`` is then that of the unquantized weights.

    Args:
        turned_by: methods that need the model's rotary embedding as numbers (`Method.turns`).

    Raises:
        As `load`, and ModelError when ``turned_by`` names a method and the embedding is not understood.
    """
    prepared = _prepare(spec, home, say, convert=False, with_tokenizer=with_tokenizer, turned_by=turned_by)
    return prepared.info, prepared.tokenizer


def _prepare(
    spec: ModelSpec, home: Path, say: Say, *, convert: bool, with_tokenizer: bool, turned_by: Sequence[str] = ()
) -> _Prepared:
    placement = place(spec)
    found = find(spec.name)
    if spec.revision is not None and found.source != "hub":
        raise ModelError(
            f"revision={spec.revision} was given, but {spec.name} is not on the hub.", "Leave --revision out."
        )
    where, weights = spec.name, None
    commit: hub.Commit | None = None
    head: tuple[Any, Any] | None = None
    if found.path is None:
        commit = hub.commit_of(spec.name, spec.revision)
    elif found.source == "folder":
        where = str(found.path)
    else:
        weights = identity.file_sha256(found.path, home, say)
        if convert:
            where = str(gguf.convert(found.path, weights, home, say))
        elif is_converted(folder_for(weights, home), weights):
            where = str(folder_for(weights, home))
        else:
            head = gguf.read_head(found.path)
    reader = Reader(spec, where, commit)
    config = head[0] if head else reader.config()
    skeleton = reader.skeleton(config, placement.dtype, with_generation=head is None)
    tokenizer = None
    if with_tokenizer:
        tokenizer = head[1] if head else reader.tokenizer()
    template = (
        chat.own_template(tokenizer) if spec.chat == "auto" else chat.chat_template(tokenizer, spec.chat, spec.name)
    )
    if found.path is not None and found.source == "folder":
        weights = identity.weights_sha256(checked_weights(found.path), home, say)
    info = ModelInfo(
        name=spec.name,
        source=found.source,
        revision=commit.sha if commit else None,
        weights_sha256=weights,
        dtype=str(placement.dtype).removeprefix("torch."),
        device=str(placement.device),
        attn=attention_kernel(skeleton, spec, placement),
        load_in=placement.load_in,
        chat_template_sha256=chat.template_sha256(template),
        versions=library_versions(placement.libraries),
        answer_rule=answer_rule(spec.name) if spec.chat == "official" else None,
        **model_facts(skeleton, tokenizer),
    )
    if turned_by and info.state is None:
        rope.check_readable(skeleton, turned_by)
    return _Prepared(reader, config, tokenizer, placement, info)
