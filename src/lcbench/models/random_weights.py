"""Models of a named architecture with random weights: speed and memory can be measured where no checkpoint is at hand.

``architectures/*.json`` holds the published facts of some models (what their config.json says, without the names that
do not matter to speed). The weights are drawn by transformers' own initialisation, on the device and in the dtype asked
for; no copy in another dtype or place is made on the way. There is no tokenizer: prompts are token ids.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from lcbench.config.spec import ModelSpec
from lcbench.errors import ModelError, UnknownName
from lcbench.models import adapter, flash, own, support
from lcbench.models.architectures import architecture_file, architectures
from lcbench.models.hub import plain
from lcbench.models.info import LoadedModel, ModelInfo, library_versions, model_facts
from lcbench.models.place import FLASH, Placement, attention_kernel, place
from lcbench.models.quiet import quiet

_AT_LEAST_ONE = ("num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size")


def describe_random(spec: ModelSpec, *, seed: int = 0) -> ModelInfo:
    """Facts of an architecture without making its weights.

    Args:
        spec: ``name`` is one of `architectures`, or a config.json (or a folder with one) of any supported model.

    Raises:
        UnknownName: no such architecture. ModelError: no such file, a config that cannot be served, a device or dtype
            that is not there, or ``load_in`` or ``revision``, which are of weights that were trained. BadValue: a
            device that is none.
    """
    placement = _placement(spec)
    return _info(spec, _skeleton(spec, placement, torch.device("meta")), placement, seed)


def load_random(spec: ModelSpec, *, seed: int = 0) -> LoadedModel:
    """The model with random weights, made on its device in its dtype; ``tokenizer`` is None.

    Raises:
        As `describe_random`, and ModelError when it does not fit into memory.
    """
    placement = _placement(spec)
    torch.manual_seed(seed)
    try:
        model = _skeleton(spec, placement, placement.device).eval().requires_grad_(False)
    except (torch.OutOfMemoryError, MemoryError):
        raise ModelError(
            f"{spec.name} does not fit into memory on {placement.device}.", "Use --dtype bfloat16 or a smaller one."
        ) from None
    info = _info(spec, model, placement, seed)
    adapter.install(model)
    if info.attn == FLASH:
        flash.use_in(model)
    return LoadedModel(model, None, info)


def _placement(spec: ModelSpec) -> Placement:
    if spec.revision is not None:
        raise ModelError("Random weights have no revision.", "Leave --revision out, or name a model with --model.")
    if spec.load_in is not None:
        raise ModelError("Random weights cannot be loaded in 8 or 4 bits.", "Leave --load-in out, or name a model.")
    return place(spec)


def _config(name: str) -> Any:
    from transformers import AutoConfig

    own.register()
    file = architecture_file(name)
    if name not in architectures():
        file = Path(name).expanduser()
        file = file / "config.json" if file.is_dir() else file
        if not file.is_file() and (file.suffix == ".json" or len(file.parts) > 1):
            raise ModelError(
                f"There is no file {file}.", f"Give the path of a config.json, or a name: {', '.join(architectures())}."
            )
        if not file.is_file():
            raise UnknownName("architecture", name, architectures())
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        with quiet():
            return AutoConfig.for_model(**{"eos_token_id": None, "bos_token_id": None, **facts})
    except Exception as error:  # KeyError, TypeError, ValueError and others, by what is wrong with the file
        raise ModelError(f"{file} is not the config of a model: {plain(error)}.", "Give a config.json.") from None


def _skeleton(spec: ModelSpec, placement: Placement, device: torch.device) -> Any:
    """The model on ``device``; on the meta device it takes no memory."""
    from transformers import AutoModelForCausalLM

    config = _config(spec.name)
    _check_sizes(spec.name, config)
    try:
        with quiet(), device:
            model = AutoModelForCausalLM.from_config(config, dtype=placement.dtype, attn_implementation="eager")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, ZeroDivisionError) as error:
        raise ModelError(f"No model can be made from {spec.name}: {plain(error)}.", "Give another config.") from None
    support.check(model)
    return model


def _check_sizes(name: str, config: Any) -> None:
    text = config.get_text_config(decoder=True)
    for key in _AT_LEAST_ONE:
        size = getattr(text, key, None)
        if isinstance(size, int) and size < 1:
            raise ModelError(f"No model can be made from {name}: {key} is {size}.", "Give another config.")


def _digest(model: Any, seed: int) -> str:
    """Hex digest of what the weights are drawn from."""
    facts = model.config.to_json_string(use_diff=False)
    return hashlib.sha256(f"{seed}\n{facts}".encode()).hexdigest()


def _info(spec: ModelSpec, model: Any, placement: Placement, seed: int) -> ModelInfo:
    return ModelInfo(
        name=spec.name,
        source="random",
        revision=None,
        weights_sha256=_digest(model, seed),
        dtype=str(placement.dtype).removeprefix("torch."),
        device=str(placement.device),
        attn=attention_kernel(model, spec, placement),
        load_in=None,
        chat_template_sha256=None,
        versions=library_versions(placement.libraries),
        **model_facts(model, None),
    )
