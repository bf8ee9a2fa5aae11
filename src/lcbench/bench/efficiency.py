"""Time to first token, decoding speed and bytes of one method at one prompt length, measured alone.

Scores come from runs that share prefills; speed never does. Every cell reads the prompt anew, once to warm up and then
``repeats`` times, and reports medians. Prompts are random token ids: speed does not depend on their meaning.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

import torch

from lcbench.engine.generate import decode, prefill
from lcbench.measure.clock import Stopwatch
from lcbench.measure.memory import PeakMemory
from lcbench.methods.base import Method
from lcbench.models.info import LoadedModel


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        method: id. prompt_tokens: length. new_tokens: decoded a repeat. repeats: after one warm-up.
        time_to_first_token: seconds from prompt ids to the first new token, median.
        decode_tokens_per_second: new tokens after the first a second, prefill not included, median.
        kv_bytes, kv_bytes_full: held after compression, and uncompressed.
        peak_bytes: most memory in use, allocator peak on a GPU, resident set of the process on a CPU.
    """

    method: str
    prompt_tokens: int
    new_tokens: int
    repeats: int
    time_to_first_token: float
    decode_tokens_per_second: float
    kv_bytes: int
    kv_bytes_full: int
    peak_bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    loaded: LoadedModel, method: Method, *, prompt_tokens: int, new_tokens: int = 32, repeats: int = 3, seed: int = 42
) -> Cell:
    """Measure one method at one prompt length; see the module docstring for how."""
    method.check(loaded.shape())
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, loaded.info.vocab, (prompt_tokens,), generator=generator).tolist()
    firsts, speeds, held = [], [], 0
    with PeakMemory(loaded.info.device) as peak, method.transform_model(loaded.model):
        for attempt in range(repeats + 1):
            with Stopwatch(loaded.info.device) as first:
                cache = method.prefill_cache(loaded.shape(), prompt_tokens)
                record = prefill(loaded, ids, observe=method.observes(), cache=cache)
                compressed = method.compress(record)
                int(torch.argmax(record.logits))
            held, logits = compressed.storage_nbytes, record.logits
            del cache, record
            with Stopwatch(loaded.info.device) as rest:
                made = decode(loaded, compressed, logits, max_new_tokens=new_tokens, min_new_tokens=new_tokens)
            if attempt:
                firsts.append(first.seconds)
                speeds.append((len(made.ids) - 1) / rest.seconds)
    return Cell(
        method=method.id,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        repeats=repeats,
        time_to_first_token=statistics.median(firsts),
        decode_tokens_per_second=statistics.median(speeds),
        kv_bytes=held,
        kv_bytes_full=loaded.shape().full_bytes(prompt_tokens),
        peak_bytes=peak.bytes,
    )
