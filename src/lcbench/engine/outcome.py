"""What comes out of answering: events on the way, a result a sample, and what went wrong in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from lcbench.engine.memory import is_out_of_memory
from lcbench.engine.plan import PreparedPrompt, PromptSet
from lcbench.engine.stacked import Interrupted
from lcbench.errors import LcbenchError, SampleError
from lcbench.store.schema import PredictionRecord

_DECODE_WEIGHT = 8.0  # prompt tokens that one generated token costs: decoding reads all weights for one token


@dataclass(frozen=True)
class Event:
    """Something that happened, for progress displays.

    Attributes:
        kind: "prefill" or "decode" is about to start; "sample" has been written; a "group" has been finished; "oom": a
            batch ran out of memory; "died": a worker did, in the middle of a group.
        task, method: ids; method is "" for a shared prefill or a stacked batch, both for a group.
        index, total: which prompt of the task, from 1; for a group, how many are finished, of those that were to do.
        cost: share of the work this event finished, in prompt tokens (see `cost_of`).
        error: why the sample failed, how the worker ended and what was done about its samples, or what about the
            batch; else None.
        record: of a sample, as it was written.
    """

    kind: Literal["prefill", "decode", "sample", "group", "oom", "died"]
    task: str
    method: str
    index: int
    total: int
    cost: float = 0.0
    error: str | None = None
    record: PredictionRecord | None = None


Listener = Callable[[Event], None]


@dataclass(frozen=True)
class Result:
    """One sample answered.

    Attributes:
        method, task: ids: the file it belongs to.
        timing: seconds by name, None for a sample that failed.
        index, total: which prompt of the task, from 1. cost: as in `Event`.
    """

    method: str
    task: str
    record: PredictionRecord
    timing: dict[str, float] | None
    index: int
    total: int
    cost: float


def cost_of(prompts: PromptSet, prompt: PreparedPrompt, methods: int) -> float:
    """Work of one prompt in units of prompt tokens: one shared prefill, then ``methods`` answers."""
    if prompt.error is not None:
        return 0.0
    return prompt.tokens + methods * _DECODE_WEIGHT * prompts.max_new_tokens


def sentence(error: BaseException) -> str:
    """What went wrong with a sample, in words."""
    if isinstance(error, SampleError):
        return error.message
    if is_out_of_memory(error):
        return "out of memory"
    text = str(error).partition("\nException raised from ")[0]  # torch's own frames below its sentence
    return f"{type(error).__name__}: {' '.join(text.split())}"[:500]


def bare(error: Exception) -> Exception:
    """The error without its traceback and those of its causes: their frames hold what was made before it."""
    link: BaseException | None = error
    while link is not None and link.__traceback__ is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


def ends_the_run(error: Exception) -> bool:
    """Errors about the run, not about one sample: they are not recorded, they stop it."""
    return isinstance(error, Interrupted) or (isinstance(error, LcbenchError) and not isinstance(error, SampleError))
