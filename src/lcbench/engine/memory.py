"""How much a group may hold, and what its caches will weigh: the byte model behind the size of groups.

The model errs on the side of too much: a method whose size the data decide counts as the full cache. What is wrong all
the same is mended when it shows (`engine.answer`: a group that runs out of memory is halved and tried again).
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from lcbench.config.budget import Budget
from lcbench.measure.memory import available_bytes
from lcbench.methods.base import Method
from lcbench.models.info import ModelInfo
from lcbench.models.linear import OUT_OF_MEMORY
from lcbench.models.shape import CacheShape

_ACTIVATIONS = (
    16  # hidden states' worth of memory a token needs while a layer runs: residual, q, k, v, three of the MLP
)
_SCORES = 2**27  # what observers and scorers take for a moment: two blocks of weights (kv.weights) and their sorting
_LEAST = 2**26
_GPU_RESERVE = 2**30  # CUDA context, cuBLAS workspaces, fragments


@dataclass(frozen=True)
class Limits:
    """What a group may be; stored once a run, so that whoever continues it makes the same groups.

    Attributes:
        rows: answers decoded together, at most.
        tokens: of all its prompts together, at most (a longer prompt is a group of its own). It bounds the work that
            a kill can lose: records are written when their group is done.
        nbytes: of caches and activations together, at most.
    """

    rows: int
    tokens: int
    nbytes: int

    def room_for(self, state: int) -> int:
        """Bytes of ``nbytes`` that the states after shared beginnings of prompts may take, the largest of which is
        ``state`` bytes: a quarter, and up to a half where a single one takes so much."""
        return max(self.nbytes // 4, state if state <= self.nbytes // 2 else 0)

    def to_dict(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Limits:
        """Raises KeyError, TypeError or ValueError for what `to_dict` did not write."""
        found = cls(**{name: int(data[name]) for name in ("rows", "tokens", "nbytes")})
        if min(found.rows, found.tokens, found.nbytes) < 1:
            raise ValueError("limits are positive")
        return found


def measure_limits(info: ModelInfo, *, workers: int = 1) -> Limits:
    """Limits for a model that is about to be loaded, from the memory that is free now.

    Args:
        workers: processes that share the memory of this machine. Each GPU has one of them to itself.
    """
    free = available_bytes(info.device)
    if info.device.startswith("cuda"):
        room = int(0.85 * (free - info.weight_bytes - _GPU_RESERVE))
        return Limits(rows=128, tokens=2**18, nbytes=max(_LEAST, room))
    room = int(0.5 * (free - workers * info.weight_bytes) / workers)
    return Limits(rows=96, tokens=2**14, nbytes=max(_LEAST, room))


def row_bytes(method: Method, shape: CacheShape, prompt_tokens: int, new_tokens: int) -> int:
    """Bytes of one answer's cache at its longest; an upper bound where the data decide."""
    kept = prompt_tokens
    budget = getattr(method, "budget", None)
    if isinstance(budget, Budget) and method.traits.family in ("evict", "merge"):
        # Retrieval methods keep everything and read a budget of it; these two keep a budget.
        kept = min(prompt_tokens, 2 * budget.resolve(prompt_tokens, at_least=128))
    if shape.state is not None:
        return shape.full_bytes(kept + new_tokens)
    copies = shape.groups if getattr(method, "granularity", "kv") == "query" else 1
    return copies * shape.full_bytes(kept + new_tokens)


def prompt_bytes(shape: CacheShape, prompt_tokens: int, chunk: int | None = None) -> int:
    """Bytes of a prompt that is being read: its full cache, activations, and what watches them."""
    at_once = prompt_tokens if chunk is None else min(chunk, prompt_tokens)
    if shape.state is not None:
        needs = _ACTIVATIONS * shape.state.hidden * shape.dtype.itemsize + shape.state.scan_bytes
        return shape.full_bytes(prompt_tokens) + needs * at_once
    width = shape.heads * shape.head_dim
    activations = _ACTIVATIONS * width * shape.dtype.itemsize * at_once
    scores = 2 * 4 * shape.layers * shape.heads * prompt_tokens  # two kinds of them, kept for several budgets
    return shape.full_bytes(prompt_tokens) + activations + scores + _SCORES


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or on the CPU (where torch raises a plain RuntimeError, and oneDNN one that
    does not say why it could make nothing)."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    told = "out of memory" in text or "can't allocate memory" in text
    return isinstance(error, RuntimeError) and (told or text in OUT_OF_MEMORY)


def release(device: torch.device) -> None:
    """Give what is free back to the device or the system, after something has failed."""
    gc.collect()  # the traceback of what failed may still hold its tensors in a circle
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc keeps freed memory for later
        if trim is not None:
            trim(0)
