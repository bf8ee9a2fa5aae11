"""What the efficiency figure is drawn of: one measured speed, and the bytes that one decoding step must read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SpeedPoint:
    """One measurement.

    Attributes:
        method: id. prompt_tokens: length of the prompt. batch: sequences decoded together.
        bytes_per_step: weights and KV bytes that one decoding step must read.
        tokens_per_second: new tokens a second, all sequences together.
        cache_bytes: what of ``bytes_per_step`` is read of the KV caches; None: unknown.
    """

    method: str
    prompt_tokens: int
    batch: int
    bytes_per_step: float
    tokens_per_second: float
    cache_bytes: float | None = None

    @property
    def steps_per_second(self) -> float:
        return self.tokens_per_second / self.batch

    @property
    def bandwidth(self) -> float:
        """Bytes a second that the measured speed amounts to."""
        return self.steps_per_second * self.bytes_per_step


def rate(bytes_per_second: float) -> str:
    """A bandwidth in words: "27.6 GB/s"."""
    for unit, size in (("TB/s", 1e12), ("GB/s", 1e9), ("MB/s", 1e6)):
        if bytes_per_second >= size:
            return f"{bytes_per_second / size:.3g} {unit}"
    return f"{bytes_per_second:.3g} B/s"
