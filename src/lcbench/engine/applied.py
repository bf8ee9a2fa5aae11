"""A method under transformers' own ``model.generate``: inside a context manager, and nowhere else.

``generate`` calls ``model.forward`` with a prompt and then with token after token. In the context its first call of a
text becomes a prefill and the method's compression, row by row, and the others decode through what is left; sampling,
stopping and everything else of ``generate`` stay what they are.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from lcbench.engine.generate import read_alone
from lcbench.errors import ModelError, UsageError
from lcbench.kv.cache import KVCache
from lcbench.methods.base import Method
from lcbench.models import adapter
from lcbench.models.info import LoadedModel
from lcbench.models.memory import of_memory

_MARK = "_lcbench_applied"
_ONLY_GENERATE = "Call model.generate with token ids."


@contextmanager
def applied(model: Any, method: Method, home: Path, *, seed: int = 42) -> Iterator[Any]:
    """The model, whose ``generate`` reads and answers with a method.

    Rows of a batch may be padded on the left; each has a cache of its own. On exit the model is as it was.

    Args:
        model: a transformers decoder, or a `LoadedModel`. home: LCBENCH_HOME, for calibrations.
        seed: for methods that draw.

    Raises:
        ModelError: this method cannot work here, or not with this model. Inside the context, `UsageError` or
            `ModelError` for what ``generate`` is asked and cannot be done: beams, assistants, training, no cache.
    """
    if not isinstance(model, LoadedModel) and not (hasattr(model, "generate") and hasattr(model, "config")):
        raise UsageError(
            f"{method.id} cannot be applied to something of type {type(model).__name__}.",
            "Give a model of transformers, or what lcbench.load_model gives.",
        )
    loaded = model if isinstance(model, LoadedModel) else of_memory(model)
    _refuse(method, loaded)
    bound = method.bind(loaded.info, home)
    bound.check(loaded.shape())
    plain = loaded.model
    own = vars(plain).get("forward")  # accelerate puts a forward of its own on the instance
    if getattr(own, _MARK, False):
        raise UsageError("A method is applied to this model already.", "Leave its context first, or compose: a+b.")
    run = _Run(loaded, bound, plain.forward, seed)
    with adapter.routed(plain), bound.transform_model(plain, loaded.info.window):
        plain.forward = run.wrapped()
        try:
            yield plain
        finally:
            if own is None:
                del plain.forward
            else:
                plain.forward = own


def _refuse(method: Method, loaded: LoadedModel) -> None:
    name = method.id
    if loaded.info.state is not None:
        raise ModelError(
            f"{loaded.info.name} brings its own cache, which generate keeps to itself.", "Use lcbench.generate."
        )
    if method.rewriter is not None:
        raise ModelError(f"{name} rewrites text, and generate is given token ids.", "Use lcbench.generate.")
    if method.learns:
        raise ModelError(f"{name} learns from each prompt before it is read.", "Use lcbench.generate.")
    changes = type(method).transform_model is not Method.transform_model
    if changes and not method.traits.stackable:
        raise ModelError(
            f"{name} changes the model by the length of each text, which generate does not tell.",
            "Use lcbench.generate.",
        )


class _Run:
    """What stands in for ``forward``."""

    def __init__(self, loaded: LoadedModel, method: Method, forward: Any, seed: int) -> None:
        self._loaded, self._method, self._forward, self._seed = loaded, method, forward, seed
        self._inside = False

    def wrapped(self) -> Any:
        """A function with the signature of the model's own forward, which ``generate`` looks at."""

        @functools.wraps(self._forward)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return self._forward(*args, **kwargs)
            self._inside = True
            try:
                return self._step(*args, **kwargs)
            finally:
                self._inside = False

        setattr(forward, _MARK, True)
        return forward

    def _step(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        if input_ids is not None and not input_ids.numel():
            raise UsageError("There are no tokens to read.", _ONLY_GENERATE)
        if input_ids is None or kwargs.get("inputs_embeds") is not None:
            raise UsageError(f"{self._method.id} is applied, and it reads token ids.", _ONLY_GENERATE)
        if kwargs.get("use_cache") is False:
            raise UsageError(f"{self._method.id} is applied, and works on the cache.", "Leave use_cache=False out.")
        if kwargs.get("labels") is not None:
            raise UsageError(f"{self._method.id} is applied, which is for answers with a cache alone.", _ONLY_GENERATE)
        if kwargs.get("output_attentions") or kwargs.get("output_hidden_states"):
            raise UsageError(
                "Attention weights and hidden states are not kept while a method is applied.",
                "Leave output_attentions and output_hidden_states out, or ask for them outside lcbench.applied.",
            )
        keep = kwargs.get("logits_to_keep")
        if isinstance(keep, int) and keep > 1:
            raise UsageError(
                "An assistant's guesses are a new prompt to a cache that is compressed.", "Generate without it."
            )
        if isinstance(past_key_values, adapter.HeldCache):
            rows: Any = past_key_values.rows
            logits = self._decoded(input_ids, past_key_values)
            seen = past_key_values.get_seq_length() + 1
        else:
            if past_key_values is not None and type(past_key_values) is not DynamicCache:
                raise UsageError(
                    f"{self._method.id} is applied, and a {type(past_key_values).__name__} was asked for beside it.",
                    "Generate without cache_implementation and past_key_values.",
                )
            if past_key_values is not None and past_key_values.get_seq_length() > 0:
                raise UsageError("A cache that was filled without the method cannot be gone on with.", _ONLY_GENERATE)
            rows, logits = self._prompts(input_ids, attention_mask)
            seen = input_ids.shape[1]
        return CausalLMOutputWithPast(logits=logits, past_key_values=adapter.HeldCache(rows, seen))

    def _prompts(self, input_ids: Tensor, mask: Tensor | None) -> tuple[list[KVCache], Tensor]:
        """Every row read and compressed: its cache, and logits ``[B, 1, vocab]`` at its last token."""
        caches, logits = [], []
        for row, ids in enumerate(input_ids):
            kept = ids if mask is None or mask.dim() != 2 else _without_padding(ids, mask[row])
            cache, last = self._prompt(kept)
            caches.append(cache)
            logits.append(last)
        return caches, torch.stack(logits)[:, None]

    @torch.inference_mode()
    def _prompt(self, ids: Tensor) -> tuple[KVCache, Tensor]:
        loaded, method = self._loaded, self._method
        record = read_alone(loaded, method, ids)
        with torch.random.fork_rng():  # generate may be sampling with the caller's seed
            torch.manual_seed(self._seed)
            return method.compress(record), record.logits

    def _decoded(self, input_ids: Tensor, held: adapter.HeldCache) -> Tensor:
        if input_ids.shape[1] != 1:
            raise UsageError(
                f"{self._method.id} has compressed the prompt; {input_ids.shape[1]} more tokens at once are a new "
                "prompt.",
                "Generate from the whole text, without past_key_values, prefill_chunk_size or an assistant.",
            )
        positions = torch.tensor([[cache.seen] for cache in held.rows], device=input_ids.device)
        return adapter.forward(self._loaded.model, input_ids, positions, held.rows)


def _without_padding(ids: Tensor, mask: Tensor) -> Tensor:
    """A row without its padding, which must lie on its left."""
    kept = ids[mask.bool()]
    if not len(kept) or not bool(mask[len(ids) - len(kept) :].all()):
        raise UsageError("A row is padded on its right, or has no tokens.", 'Tokenize with padding_side="left".')
    return kept
