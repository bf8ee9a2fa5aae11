"""What decides how the samples of a run are answered, beside their prompts and methods."""

from __future__ import annotations

from dataclasses import dataclass

from lcbench.config.spec import Question, RunSpec


@dataclass(frozen=True)
class Options:
    """Attributes:
    seed: for everything random.
    prefill_chunk: tokens a forward pass while reading a prompt; None reads it (or each shared piece of it) at once.
    exact: decode every answer in a batch of its own.
    question: "visible": a method compresses after the whole prompt was read. "hidden": after the context alone; the
        question is then read through the compressed cache.
    """

    seed: int = 42
    prefill_chunk: int | None = None
    exact: bool = False
    question: Question = "visible"

    @classmethod
    def of(cls, spec: RunSpec) -> Options:
        """The options of a run."""
        return cls(spec.seed, spec.prefill_chunk, spec.exact, spec.question)
