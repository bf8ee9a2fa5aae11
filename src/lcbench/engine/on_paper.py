"""What a matrix would cost, from a sample of its rows: for plans too large to tokenize, and GPUs that are elsewhere.

From each task a few rows, evenly spread over all of them, become prompts as a run would make them; means over these
stand for all rows. Nothing is made up where data are absent. Time is the arithmetic of `engine.estimate` with the rates
of a named GPU, or those measured here; docs/scaling.md works it by hand.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from lcbench.engine.estimate import Estimate, MachineRates, estimate, measure_rates
from lcbench.engine.groups import make_groups
from lcbench.engine.memory import Limits
from lcbench.engine.prepare import prepare
from lcbench.errors import UnknownName
from lcbench.methods.registry import resolve as resolve_method
from lcbench.models.info import ModelInfo
from lcbench.models.remembered import TokenMemory

if TYPE_CHECKING:
    from lcbench.engine.session import Session

ROWS_EACH = 3
_RECORD_BYTES = 900  # of a record and its timings beside the answers; those of a passkey take 660, ids can be long
_TOKEN_BYTES = 4  # of an answer


@dataclass(frozen=True)
class Gpu:
    """Attributes: name: in words. flops: dense 16-bit, a second. bandwidth: bytes a second. memory: bytes."""

    name: str
    flops: float
    bandwidth: float
    memory: int


GPUS = {
    "a100": Gpu("NVIDIA A100 SXM 80 GB", 312e12, 2.039e12, 80 * 10**9),
    "h100": Gpu("NVIDIA H100 SXM 80 GB", 989e12, 3.35e12, 80 * 10**9),
    "h200": Gpu("NVIDIA H200 SXM 141 GB", 989e12, 4.8e12, 141 * 10**9),
}
"""Peaks from the makers' data sheets."""

_COMPUTES, _READS = 0.4, 0.6  # of the peaks: what eager PyTorch is taken to reach


@dataclass
class OnPaper:
    """A run's cost.

    Attributes:
        device: in words. weight_bytes: of the model there. shortening: methods that shorten prompts with a model.
        sampled, rows: rows that became prompts, and all. tokens: of all rows' prompts. longest: of the sample.
        seconds: on one device. disk: bytes of the run directory. cache: of the longest sampled prompt, full, in bytes.
        ends: task id to the first and last characters of one of its prompts.
    """

    model: str
    methods: int
    tasks: int
    device: str
    weight_bytes: int
    shortening: int = 0
    sampled: int = 0
    rows: int = 0
    tokens: float = 0.0
    longest: int = 0
    prefills: float = 0.0
    answers: float = 0.0
    seconds: float = 0.0
    disk: float = 0.0
    cache: int = 0
    ends: dict[str, tuple[str, str]] = field(default_factory=dict)

    def add(self, cost: Estimate, times: float) -> None:
        """Count what a sample costs, so many times."""
        self.seconds += times * cost.seconds
        self.prefills += times * cost.prefills
        self.answers += times * cost.answers
        self.cache = max(self.cache, cost.kv_bytes)


def rates_of(gpu: str) -> MachineRates:
    """Rates of a named GPU. Raises UnknownName."""
    if gpu not in GPUS:
        raise UnknownName("GPU", gpu, GPUS)
    found = GPUS[gpu]
    return MachineRates(_COMPUTES * found.flops, _READS * found.bandwidth)


def on_paper(
    session: Session, gpu: str | None, rows_each: int = ROWS_EACH, memory: TokenMemory | None = None
) -> OnPaper:
    """The cost of a session's run.

    Args:
        gpu: of `GPUS`; None for this machine. rows_each: rows of a task that become prompts, at most.
        memory: where token ids are kept for the other models of a study.

    Raises:
        UnknownName: no such GPU. LcbenchError: as making the prompts raises.
    """
    info, limits, rates, device = _placed(session, gpu)
    tokenizer = (memory or TokenMemory()).of(session.tokenizer)
    plain = [method for method in session.methods if method.rewriter is None]
    shortening = len(session.methods) - len(plain)  # by models of their own: counted as full, with whole prompts
    found = OnPaper(info.name, len(session.methods), len(session.tasks), device, info.weight_bytes, shortening)
    for task, loaded in session.tasks:
        part = loaded.sampled(rows_each)
        some, times = part.rows, part.count / max(1, len(part.rows))
        for methods, copies in ((plain, 1), ([resolve_method("full")], shortening)):
            if not methods or not copies:
                continue
            sets = prepare(session.spec, info, tokenizer, methods, [(task, part)], session.home, say=session.say)
            groups = make_groups(sets, info.shape(), limits, chunk=session.spec.prefill_chunk, reuse=False)
            cost = estimate(info, sets, groups, rates, exact=session.spec.exact)
            found.add(cost, copies * times)
            for prompts in sets:
                found.ends.setdefault(task.id, prompts.sample)
                texts = sum(len(str(row.answers)) + len(str(row.all_classes or "")) for row in some)
                each = _RECORD_BYTES + _TOKEN_BYTES * prompts.max_new_tokens + texts / max(1, len(some))
                found.disk += copies * len(prompts.methods) * part.count * each
            found.longest = max(found.longest, *(p.tokens for s in sets for p in s.prompts), 0)
            if methods is plain or not plain:
                found.tokens += times * sum(p.tokens for p in sets[0].prompts)
        found.sampled, found.rows = found.sampled + len(some), found.rows + part.count
    return found


def _placed(session: Session, gpu: str | None) -> tuple[ModelInfo, Limits, MachineRates, str]:
    """The model where it is to run."""
    info = session.info
    if gpu is None:
        rates = measure_rates(torch.device(info.device), getattr(torch, info.dtype))
        return info, session.limits(), rates, info.device
    rates, chip = rates_of(gpu), GPUS[gpu]
    info = replace(info, weight_bytes=2 * info.parameters, dtype="bfloat16")
    room = int(0.85 * (chip.memory - info.weight_bytes - 2**30))
    return info, Limits(rows=128, tokens=2**18, nbytes=max(2**26, room)), rates, chip.name
