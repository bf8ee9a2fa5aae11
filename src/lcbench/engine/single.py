"""One prompt through one method: what a server and the Python API answer with.

The same steps as `engine.answer` takes for a group, without sharing, batches and records.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from lcbench.engine.generate import read_alone
from lcbench.engine.stacked import Generated, Rules, decode_rows
from lcbench.methods.base import Method
from lcbench.models.info import LoadedModel
from lcbench.tasks.truncation import LEAST_LENGTH, exact_ids


@dataclass(frozen=True)
class Answered:
    """An answer, and what the cache behind it took.

    Attributes:
        generated: the new tokens.
        kept_tokens: prompt tokens held after compression, mean over layers and KV heads.
        kv_bytes, kv_bytes_full: of every tensor held right after compression, and of the uncompressed cache.
    """

    generated: Generated
    kept_tokens: float
    kv_bytes: int
    kv_bytes_full: int


def read_of(ids: Sequence[int], method: Method, window: int | None, answer_tokens: int) -> Sequence[int]:
    """What is read of a prompt: all of it, and for a method that learns the prompt first what fits the window with the
    answer, its middle left out. ``window``: None for none."""
    if not method.learns or window is None or window - answer_tokens < LEAST_LENGTH:
        return ids
    return exact_ids(ids, window - answer_tokens).ids


def answer_one(
    loaded: LoadedModel,
    method: Method,
    ids: Sequence[int],
    rules: Rules,
    *,
    seed: int,
    chunk: int | None = None,
    lesson: Sequence[int] | None = None,
) -> Answered:
    """Read a prompt, compress its cache as the method does, and decode greedily.

    Args:
        method: bound to the model and checked (`Method.bind`, `Method.check`).
        ids: of the prompt, at least one.
        seed: for methods that draw. chunk: tokens a forward pass of the prompt reads at once; None for all.
        lesson: what a method that learns is to learn; None for the prompt.
    """
    shape = loaded.shape()
    learning = method.adapt(loaded.model, ids if lesson is None else lesson, seed) if method.learns else nullcontext()
    with method.transform_model(loaded.model, len(ids) + rules.max_new_tokens), learning, torch.inference_mode():
        record = read_alone(loaded, method, ids, chunk=chunk)
        torch.manual_seed(seed)
        cache = method.compress(record)
        held = cache.storage_nbytes
        if method.traits.memory == "simulated":
            held = method.logical_nbytes(shape, record.length)
        kept = cache.entries
        generated = decode_rows(loaded, [cache], record.logits[None], rules)[0]
        cache.let_go()
    return Answered(generated, kept, held, shape.full_bytes(len(ids)))
