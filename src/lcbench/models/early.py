"""A forward pass that ends early: what the first layers of a model make of a text, without the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lcbench.errors import ModelError
from lcbench.models import adapter
from lcbench.models.stores import CacheStore, Observer


class _Enough(Exception):
    """Ends a forward pass; never leaves this file."""


def decoder_layers(model: Any) -> Sequence[torch.nn.Module]:
    """The layers of a decoder, from the lowest. Raises ModelError for a model without such a list."""
    count = int(model.config.get_text_config(decoder=True).num_hidden_layers)
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return list(module)
    raise ModelError(f"{type(model).__name__} has no list of {count} layers.", "Choose a plain decoder model.")


def hidden_states(
    model: Any,
    ids: Tensor,
    layers: int,
    cache: CacheStore,
    observers: Sequence[Observer] = (),
) -> Tensor:
    """Hidden states behind the first ``layers`` layers, no norm applied; the layers above them are not run.

    Args:
        model: routed through `models.adapter`. ids: ``[L]`` int64 on its device. layers: 1 to N.
        cache: an empty one. observers: watch the layers that are run.

    Returns:
        ``[L, hidden]`` in the model's dtype.
    """
    return hidden_states_at(model, ids, [layers], cache, observers)[0]


def hidden_states_at(
    model: Any,
    ids: Tensor,
    layers: Sequence[int],
    cache: CacheStore,
    observers: Sequence[Observer] = (),
) -> list[Tensor]:
    """As `hidden_states`, behind each of several numbers of layers, ascending, in one pass."""
    stack, found = decoder_layers(model), []

    def keep(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        found.append((output[0] if isinstance(output, tuple) else output).reshape(len(ids), -1))
        if len(found) == len(layers):
            raise _Enough

    hooks = [stack[count - 1].register_forward_hook(keep) for count in layers]
    positions = torch.arange(len(ids), device=ids.device)[None]
    try:
        adapter.forward(model, ids[None], positions, [cache], [list(observers)] if observers else ())
    except _Enough:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return found
