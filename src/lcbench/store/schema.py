"""The records of a run directory, schema_version 1. Plain data; imports nothing of lcbench."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
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
        prompt_tokens: tokens fed to the model, after truncation, chat template included; None where a server's model
            read it and nobody counted.
        kept_tokens: prompt tokens still held after compression, mean over layers and KV heads.
        new_tokens: tokens generated, the closing eos not counted; None where a server does not tell.
        kv_bytes: bytes of every tensor the method holds right after compression; when ``memory`` is "simulated", the
            bytes it would hold if what it hides were gone.
        kv_bytes_full: bytes of the uncompressed cache of the same prompt.
        resident_bytes: bytes that the first decoding step reads; less than kv_bytes for methods that keep every token
            and look parts up. 0 in records older than this field.
        memory: "real" when the dropped bytes are freed, "simulated" when they only count as dropped.
        shared_prefill: whether the method may run on a prefill shared with others.
        tokens_before: tokens of the prompt before a method shortened it (its text, or which of its tokens are read),
            chat template included, uncut; None for methods that read the prompt as it is. ``kv_bytes_full`` is then
            that of so many tokens.
        truncated_from: tokens before truncation when the prompt was cut, else None.
        task_version: version of the task definition that made the prompt.
        question: "visible" when the question was in the prompt as the method compressed it, "hidden" when it was read
            afterwards, through the compressed cache.
        decode: "stacked" when the answer was decoded in a batch with others, "exact" when alone, "served" when a server
            behind an address made it in its own way, "imported" when it was read from another tool's file.
        reused_from: "full" when the method kept the whole prompt as it was (it fits the budget): the row is that of
            the full cache, and was not decoded again where that was at hand. Else None.
        near_ties: tokens of the answer for which the two best candidates lay closer together than rounding moves them
            (`engine.stacked.TIE`): another batch, device or library version may decide them otherwise.
        served: of a model behind an address, which ``api`` was asked, the ``finish_reason`` and the ``usage`` that the
            server told; None, and not written, for models of this machine. What nobody knows of such a model
            (kept_tokens, kv_bytes, kv_bytes_full, resident_bytes, near_ties) is None.
        meta: what the task wants kept for scoring or drawing (passkey: length, depth, repeat, …).
    """

    pred: str
    answers: list[str]
    all_classes: list[str] | None
    length: int | None
    id: str
    status: str = STATUS_OK
    error: str | None = None
    prompt_tokens: int | None = 0
    kept_tokens: float | None = 0
    new_tokens: int | None = 0
    kv_bytes: int | None = 0
    kv_bytes_full: int | None = 0
    resident_bytes: int | None = 0
    memory: str = "real"
    shared_prefill: bool = True
    truncated_from: int | None = None
    task_version: int = 1
    question: str = "visible"
    decode: str = "exact"
    reused_from: str | None = None
    tokens_before: int | None = None
    near_ties: int | None = 0
    meta: dict[str, Any] = field(default_factory=dict)
    served: dict[str, Any] | None = None

    @property
    def ok(self) -> bool:
        return self.status == STATUS_OK

    def to_line(self) -> str:
        """One JSON line without its newline; keys in field order, ``id`` written as ``_id``."""
        data = {("_id" if f.name == "id" else f.name): getattr(self, f.name) for f in fields(self)}
        if self.served is None:
            del data["served"]
        line = json.dumps(data, ensure_ascii=False)
        try:
            line.encode("utf-8")
        except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write and UTF-8 cannot
            line = json.dumps(data, ensure_ascii=True)
        return line

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PredictionRecord:
        """Read a parsed line. Official LongBench lines (no ``_id``, no status) are accepted with defaults.

        Raises:
            KeyError: a required official field is missing. TypeError: a field of the wrong type (named in it).
        """
        pred, answers, row_id = data["pred"], data["answers"], data.get("_id", "")
        if not isinstance(pred, str):
            raise TypeError("pred is not text")
        if not _is_texts(answers):
            raise TypeError("answers is not a list of texts")
        if not isinstance(row_id, str):
            raise TypeError("_id is not text")
        for name, (accepts, noun) in _CHECKS.items():
            if name in data and not accepts(data[name]):
                raise TypeError(f"{name} is not {noun}")
        known = {f.name for f in fields(cls)} - {"pred", "answers", "all_classes", "length", "id"}
        return cls(
            pred=pred,
            answers=list(answers),
            all_classes=data.get("all_classes"),
            length=data.get("length"),
            id=row_id,
            **{k: v for k, v in data.items() if k in known},
        )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_amount(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


_COUNT = (_is_count, "a whole number")
_COUNT_OR_NULL = (lambda value: value is None or _is_count(value), "a whole number or null")
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "all_classes": (lambda value: value is None or _is_texts(value), "a list of texts or null"),
    "length": _COUNT_OR_NULL,
    "status": (lambda value: value in (STATUS_OK, STATUS_ERROR), "ok or error"),
    "error": (lambda value: value is None or isinstance(value, str), "text or null"),
    "prompt_tokens": _COUNT_OR_NULL,
    "kept_tokens": (lambda value: value is None or _is_amount(value), "a number or null"),
    "new_tokens": _COUNT_OR_NULL,
    "kv_bytes": _COUNT_OR_NULL,
    "kv_bytes_full": _COUNT_OR_NULL,
    "resident_bytes": _COUNT_OR_NULL,
    "memory": (lambda value: value in ("real", "simulated"), "real or simulated"),
    "shared_prefill": (lambda value: isinstance(value, bool), "true or false"),
    "truncated_from": _COUNT_OR_NULL,
    "task_version": _COUNT,
    "question": (lambda value: value in ("visible", "hidden"), "visible or hidden"),
    "tokens_before": _COUNT_OR_NULL,
    "decode": (lambda value: value in ("stacked", "exact", "served", "imported"), "stacked, exact, served or imported"),
    "served": (lambda value: value is None or isinstance(value, dict), "an object or null"),
    "reused_from": (lambda value: value is None or isinstance(value, str), "text or null"),
    "near_ties": _COUNT_OR_NULL,
    "meta": (lambda value: isinstance(value, dict), "an object"),
}
