"""Logits of the demo model as transformers reads it from its GGUF file, noted while lcbench converts it.

Reading the file takes a quarter of a minute: the conversion does it anyway, and its test compares with that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

FILE = "logits-as-read.pt"
IDS = torch.arange(300, 390)[None]


def logits(model: Any) -> Tensor:
    """Of a fixed text, ``[1, 90, vocab]``, by torch's own attention, on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            model.set_attn_implementation("sdpa")
            made: Tensor = model(IDS).logits
            return made
    finally:
        torch.set_num_threads(before)


@contextmanager
def noted(home: Path) -> Iterator[None]:
    """While it lasts, a model that is read from a GGUF file leaves its logits in ``home``."""
    from transformers import AutoModelForCausalLM

    read = AutoModelForCausalLM.from_pretrained

    def reading(*args: Any, **kwargs: Any) -> Any:
        made = read(*args, **kwargs)
        if "gguf_file" in kwargs:
            torch.save(logits(made[0] if isinstance(made, tuple) else made), home / FILE)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoModelForCausalLM, "from_pretrained", reading)
        yield
