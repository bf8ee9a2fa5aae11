"""Where and how weights lie in memory: device, dtype, attention kernel, 8- and 4-bit loading."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from typing import Any

import torch

from lcbench.config.spec import ModelSpec
from lcbench.errors import BadValue, ModelError
from lcbench.models import native

FLASH = "flash_attention_2"
AUTO_MAP = "auto-map"


@dataclass(frozen=True)
class Placement:
    """What "auto" came to.

    Attributes:
        device: where the weights are; of a spread model, where its first layers are.
        attn: "sdpa" or "flash_attention_2".
        spread: the layers are distributed over all GPUs (accelerate's ``device_map="auto"``).
    """

    device: torch.device
    dtype: torch.dtype
    attn: str
    load_in: str | None
    spread: bool = False

    @property
    def libraries(self) -> tuple[str, ...]:
        """Libraries that compute beside torch, by package name."""
        return (("flash-attn",) if self.attn == FLASH else ()) + (("bitsandbytes",) if self.load_in else ())


def place(spec: ModelSpec) -> Placement:
    """Resolve and check the options of placement, before anything is read.

    Raises:
        BadValue: a device that is not auto, cpu, cuda:N or auto-map.
        ModelError: a GPU, a package or a dtype that the options need is not there.
    """
    device = _device(spec.device)
    gpu = device.type == "cuda"
    if spec.dtype == "auto":
        dtype = torch.bfloat16 if gpu else torch.float32
    else:
        dtype = getattr(torch, spec.dtype)
    if spec.load_in is not None:
        _check_load_in(spec.load_in, gpu)
    return Placement(device, dtype, _attn(spec.attn, gpu, dtype), spec.load_in, spec.device == AUTO_MAP)


def _device(text: str) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text == "auto":
        return torch.device("cuda:0" if count else "cpu")
    if text == "cpu":
        return torch.device("cpu")
    if text == AUTO_MAP:
        return _first_of_all(count)
    match = re.fullmatch(r"cuda(?::(\d+))?", text)
    if not match:
        raise BadValue(
            f"device={text} is not auto, cpu, cuda:N or {AUTO_MAP}.", "Write --device cpu or --device cuda:0."
        )
    index = int(match[1] or 0)
    if not count:
        raise ModelError(f"device={text} was asked for, but torch sees no GPU here.", "Use --device cpu or auto.")
    if index >= count:
        raise ModelError(
            f"device={text} was asked for, but there are {count} GPUs here.", f"Use --device cuda:{count - 1} or less."
        )
    return torch.device("cuda", index)


def _first_of_all(count: int) -> torch.device:
    if not count:
        raise ModelError(
            f"device={AUTO_MAP} spreads a model over the GPUs, and torch sees none here.", "Use --device cpu or auto."
        )
    if importlib.util.find_spec("accelerate") is None:
        raise ModelError(
            f"device={AUTO_MAP} needs the package accelerate, which is not installed.", "Run: pip install accelerate"
        )
    return torch.device("cuda", 0)


def _attn(wanted: str, gpu: bool, dtype: torch.dtype) -> str:
    installed = importlib.util.find_spec("flash_attn") is not None
    half = dtype in (torch.float16, torch.bfloat16)
    if wanted == "auto":
        return FLASH if installed and gpu and half else "sdpa"
    if wanted == FLASH:
        if not gpu:
            raise ModelError(
                "flash_attention_2 runs on NVIDIA GPUs only, and the device is the CPU.", "Use --attn sdpa."
            )
        if not installed:
            raise ModelError(
                "flash_attention_2 needs the package flash-attn, which is not installed.",
                "Run: pip install 'lcbench[gpu]', or use --attn sdpa.",
            )
        if not half:
            raise ModelError(
                f"flash_attention_2 computes in float16 or bfloat16, not {str(dtype).removeprefix('torch.')}.",
                "Add --dtype bfloat16, or use --attn sdpa.",
            )
    return wanted


def attention_kernel(model: Any, spec: ModelSpec, placement: Placement) -> str:
    """What computes attention in a model (on the meta device, too): that of the placement, or the model's own.

    Raises:
        ModelError: flash-attention was asked for, and the model runs on its own cache.
    """
    if native.family_of(model) is None:
        return placement.attn
    if spec.attn == FLASH:
        raise ModelError(
            f"{type(model).__name__} runs on the cache it brings along, and lcbench does not run that with {FLASH}.",
            "Leave --attn out.",
        )
    return native.attention_of(model)


def _check_load_in(load_in: str, gpu: bool) -> None:
    if not gpu:
        raise ModelError(f"load_in={load_in} works on NVIDIA GPUs; the device is the CPU.", "Leave it out.")
    missing = [name for name in ("bitsandbytes", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"load_in={load_in} needs the package {' and '.join(missing)}, which is not installed.",
            "Run: pip install 'lcbench[gpu]', or leave --load-in out.",
        )


def quantization(placement: Placement) -> Any | None:
    """The transformers quantization config of ``load_in``, or None."""
    if placement.load_in is None:
        return None
    from transformers import BitsAndBytesConfig

    if placement.load_in == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=placement.dtype)
