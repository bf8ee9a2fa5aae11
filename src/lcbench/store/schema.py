"""The records of a run directory, schema_version 1. Plain data; imports nothing of lcbench."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

SCHEMA_VERSION = 1

STATUS_OK = "ok"
STATUS_ERROR = "error"


@dataclass(frozen=True)
class PredictionRecord:
    """One line of ``predictions/<method-id>/<task>.jsonl``: one sample answered by one method.

    The first four fields carry LongBench's official names, so its scorer reads these files unchanged. Nothing in a
    record depends on the clock: seconds live in ``timings/``, so that a continued run equals an unbroken one.

    Attributes:
        pred: generated text, special tokens removed; "" on error.
        answers: accepted answers.
        all_classes: class labels for classification tasks, else None.
        length: the row's published length (words, or characters for Chinese).
        id: the row's id, ``_id`` in the file; unique within a task.
        status: "ok" or "error".
        error: one sentence when status is "error", else None.
        prompt_tokens: tokens fed to the model, after truncation, chat template included.
        kept_tokens: prompt tokens still held after compression, mean over layers and KV heads.
        new_tokens: tokens generated, the closing eos not counted.
        kv_bytes: bytes of every tensor the method holds right after compression.
        kv_bytes_full: bytes of the uncompressed cache of the same prompt.
        memory: "real" when the dropped bytes are freed, "simulated" when they only count as dropped.
        shared_prefill: whether the method may run on a prefill shared with others.
        truncated_from: tokens before truncation when the prompt was cut, else None.
        task_version: version of the task definition that made the prompt.
        meta: what the task wants kept for scoring or drawing (passkey: length, depth, repeat, …).
    """

    pred: str
    answers: list[str]
    all_classes: list[str] | None
    length: int | None
    id: str
    status: str = STATUS_OK
    error: str | None = None
    prompt_tokens: int = 0
    kept_tokens: float = 0
    new_tokens: int = 0
    kv_bytes: int = 0
    kv_bytes_full: int = 0
    memory: str = "real"
    shared_prefill: bool = True
    truncated_from: int | None = None
    task_version: int = 1
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.status == STATUS_OK

    def to_line(self) -> str:
        """One JSON line without its newline; keys in field order, ``id`` written as ``_id``."""
        data = {("_id" if f.name == "id" else f.name): getattr(self, f.name) for f in fields(self)}
        return json.dumps(data, ensure_ascii=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PredictionRecord:
        """Read a parsed line. Official LongBench lines (no ``_id``, no status) are accepted with defaults.

        Raises:
            KeyError, TypeError: a required official field is missing or of the wrong type.
        """
        pred, answers = data["pred"], data["answers"]
        if not isinstance(pred, str) or not isinstance(answers, list):
            raise TypeError("pred must be text and answers a list")
        known = {f.name for f in fields(cls)} - {"pred", "answers", "all_classes", "length", "id"}
        return cls(
            pred=pred,
            answers=[str(a) for a in answers],
            all_classes=data.get("all_classes"),
            length=data.get("length"),
            id=str(data.get("_id", "")),
            **{k: v for k, v in data.items() if k in known},
        )
