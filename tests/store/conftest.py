"""Small runs to write into."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lcbench.store.schema import PredictionRecord

MakeRecord = Callable[..., PredictionRecord]


@pytest.fixture
def spec() -> dict[str, Any]:
    return {
        "model": {"name": "demo", "dtype": "auto"},
        "methods": ["full", "kivi@bits=2"],
        "tasks": ["qasper", "passkey@digits=64"],
        "limit": 4,
        "max_input_tokens": None,
        "seed": 42,
    }


@pytest.fixture
def provenance() -> dict[str, Any]:
    return {
        "lcbench": {"version": "0.1.0", "commit": "aaaa"},
        "packages": {"torch": "2.13.0"},
        "model": {
            "identity": "sha256:m1",
            "dtype": "float32",
            "device": "cpu",
            "chat_template_sha256": "c1",
            "eos_ids": [2],
        },
        "tasks": {
            "qasper": {"data_sha256": "d1", "prompts_sha256": "p1", "task_version": 1},
            "passkey@digits=64": {"data_sha256": "", "prompts_sha256": "p2", "task_version": 1},
        },
    }


@pytest.fixture
def record() -> MakeRecord:
    def make(sample: object = 0, **changes: Any) -> PredictionRecord:
        values: dict[str, Any] = {
            "pred": f"answer {sample} – 答案\nsecond line",
            "answers": ["a", "b"],
            "all_classes": None,
            "length": 12,
            "id": str(sample),
            "prompt_tokens": 100,
            "kv_bytes": 10,
            "kv_bytes_full": 40,
        }
        return PredictionRecord(**{**values, **changes})

    return make
