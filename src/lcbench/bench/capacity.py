"""The largest batch that fits a given memory: by a byte model fed with three measurements, and on a GPU by trying.

Memory of R sequences has three candidates for its peak, the parts of the work that `efficiency` measures:

    read       weights + (R-1) kv + the last prompt's forward pass
    compress   weights + (R-1) kv + its dense and its compressed cache, and what making it takes
    decode     weights + a + R b: caches at their longest and activations, a straight line

One sequence gives all but that line; two and three give the line (a single one is decoded in another way, not stacked).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from lcbench.bench.efficiency import Workload, check, release, run_pass
from lcbench.engine.generate import read_alone
from lcbench.kv.cache import KVCache
from lcbench.methods.base import Method
from lcbench.models.info import LoadedModel

_MOST = 1 << 40  # sequences: more than any memory holds


@dataclass(frozen=True)
class ByteModel:
    """Bytes of a workload as a function of the number of sequences R.

    Attributes:
        weights: of the model. read, compress: growth beyond them while one prompt is read and compressed.
        kv: one compressed cache at the end of its prompt.
        alone: growth while one sequence decodes. base, row: the same for two and more, ``base + R row``.
    """

    weights: int
    read: int
    compress: int
    kv: int
    alone: int
    base: int
    row: int

    def peak(self, batch: int) -> int:
        """Most bytes that R = ``batch`` >= 1 sequences take."""
        prompt = (batch - 1) * self.kv + max(self.read, self.compress)
        answer = self.alone if batch == 1 else self.base + batch * self.row
        return self.weights + max(prompt, answer)

    def largest(self, memory: int) -> int:
        """Most sequences whose peak is within ``memory`` bytes; 0 when not even one is."""
        low, high = 0, 1
        while high < _MOST and self.peak(high) <= memory:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.peak(middle) <= memory else (low, middle)
        return low


def probe(loaded: LoadedModel, method: Method, work: Workload) -> ByteModel:
    """The byte model of a method at one prompt length, from passes with one, two and three sequences.

    Raises:
        ModelError: the method does not serve the model. torch.OutOfMemoryError: not even three sequences fit.
    """
    check(loaded.info, method)
    release(loaded.info.device)
    with method.transform_model(loaded.model, work.prompt_tokens + work.new_tokens):
        run_pass(loaded, method, replace(work, batch=1, new_tokens=2))  # takes the memory that stays: workspaces
        one, two, three = (run_pass(loaded, method, replace(work, batch=n), metered=True) for n in (1, 2, 3))
    decode = [done.phases["decode"].growth for done in (one, two, three)]
    row = decode[2] - decode[1]
    return ByteModel(
        weights=loaded.info.weight_bytes,
        read=one.phases["read"].growth,
        compress=one.phases["compress"].growth,
        kv=one.kv_bytes,
        alone=decode[0],
        base=decode[1] - 2 * row,
        row=row,
    )


def try_largest(loaded: LoadedModel, method: Method, work: Workload, memory: int, guess: int) -> int:
    """Most sequences that really run in ``memory`` bytes of the GPU; 0 when not even one does.

    Each trial holds R - 1 caches (copies of one real cache, in memory of their own), reads one more prompt and decodes
    all R for ``work.new_tokens`` tokens. The search starts at ``guess`` and ends within 2 % of the true number.
    """
    device = torch.device(loaded.info.device)
    with _limited(device, memory), method.transform_model(loaded.model, work.prompt_tokens + work.new_tokens):

        def fits(batch: int) -> bool:
            return _runs(loaded, method, work, batch)

        return search(fits, guess)


def search(fits: object, guess: int) -> int:
    """The largest number for which ``fits(number)`` is true, within 2 %; ``fits`` is true up to some number."""
    assert callable(fits)
    low, high = 0, max(1, guess)
    while fits(high):
        low, high = high, high + max(1, high // 8)
    while high - low > max(1, low // 50):
        middle = (low + high) // 2 if low else high // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _runs(loaded: LoadedModel, method: Method, work: Workload, batch: int) -> bool:
    release(loaded.info.device)
    try:
        held = [_copied(loaded, method, work)] if batch > 1 else []
        while len(held) < batch - 1:
            held.append(copy.deepcopy(held[0]))
        run_pass(loaded, method, replace(work, batch=1), held=held)
    except torch.OutOfMemoryError:
        return False
    finally:
        held = []
        release(loaded.info.device)
    return True


def _copied(loaded: LoadedModel, method: Method, work: Workload) -> KVCache:
    """The compressed cache of the workload's first prompt."""
    ids = replace(work, batch=1).prompts(loaded.info.vocab)[0]
    return method.compress(read_alone(loaded, method, ids, chunk=work.prefill_chunk))


@contextmanager
def _limited(device: torch.device, memory: int) -> Iterator[None]:
    """Let torch take no more than ``memory`` bytes of the GPU."""
    if device.type != "cuda":
        yield
        return
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, memory / total), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
