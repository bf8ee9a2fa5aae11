"""Placement: what "auto" comes to with and without GPU and packages, and the flash-attention hook."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lcbench.config.spec import ModelSpec
from lcbench.errors import LcbenchError, ModelError
from lcbench.kv.cache import KVCache
from lcbench.models import adapter, flash
from lcbench.models.place import place
from tiny import loaded_tiny

torch.set_num_threads(1)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend to be a machine with some GPUs and packages; `place` only asks, it allocates nothing."""

    def pretend(gpus: int, *packages: str) -> None:
        real = importlib.util.find_spec
        known = {"flash_attn", "bitsandbytes", "accelerate"}
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, *a: (SimpleNamespace() if name in packages else None) if name in known else real(name, *a),
        )

    return pretend


def test_auto_on_a_cpu(machine: Any) -> None:
    machine(0, "flash_attn")
    placed = place(ModelSpec("demo"))
    assert (placed.device.type, placed.dtype, placed.attn, placed.libraries) == ("cpu", torch.float32, "sdpa", ())


def test_auto_on_a_gpu(machine: Any) -> None:
    machine(2)
    placed = place(ModelSpec("demo"))
    assert (str(placed.device), placed.dtype, placed.attn) == ("cuda:0", torch.bfloat16, "sdpa")
    machine(2, "flash_attn")
    placed = place(ModelSpec("demo", device="cuda:1"))
    assert (str(placed.device), placed.attn, placed.libraries) == ("cuda:1", "flash_attention_2", ("flash-attn",))
    assert place(ModelSpec("demo", dtype="float32")).attn == "sdpa"  # flash-attention has no fp32
    assert place(ModelSpec("demo", attn="sdpa")).attn == "sdpa"
    assert place(ModelSpec("demo", device="cpu")).attn == "sdpa"
    assert str(place(ModelSpec("demo", device="cuda")).device) == "cuda:0"


@pytest.mark.parametrize(
    ("gpus", "packages", "options", "words", "step"),
    [
        (0, ["flash_attn"], {"attn": "flash_attention_2"}, "the device is the CPU", "--attn sdpa"),
        (1, [], {"attn": "flash_attention_2"}, "flash-attn, which is not installed", "lcbench[gpu]"),
        (1, ["flash_attn"], {"attn": "flash_attention_2", "dtype": "float32"}, "not float32", "--dtype bfloat16"),
        (0, ["bitsandbytes", "accelerate"], {"load_in": "8bit"}, "the device is the CPU", "Leave it out"),
        (1, ["accelerate"], {"load_in": "4bit"}, "bitsandbytes, which is not installed", "lcbench[gpu]"),
        (1, [], {"load_in": "4bit"}, "bitsandbytes and accelerate", "lcbench[gpu]"),
        (0, [], {"device": "cuda:0"}, "torch sees no GPU", "--device cpu"),
        (2, [], {"device": "cuda:2"}, "there are 2 GPUs", "cuda:1"),
        (1, [], {"device": "mps"}, "device=mps", "--device cpu"),
        (1, [], {"device": "cuda:x"}, "device=cuda:x", "--device cuda:0"),
    ],
)
def test_refusals(gpus: int, packages: list[str], options: dict[str, Any], words: str, step: str, machine: Any) -> None:
    machine(gpus, *packages)
    with pytest.raises(LcbenchError) as caught:
        place(ModelSpec("demo", **options))
    assert words in caught.value.message
    assert step in caught.value.next_step


def test_flash_attention_computes_the_prompt_and_only_that(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def flash_attn_func(
        q: Any, k: Any, v: Any, dropout_p: float = 0.0, softmax_scale: Any = None, causal: bool = False
    ) -> Any:
        """The documented contract of the package: [batch, length, heads, width], grouped heads, own scale."""
        assert q.shape[0] == 1
        assert q.shape[2] == 4 * k.shape[2]
        calls.append(q.shape[1])
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=softmax_scale, enable_gqa=True)
        return out.transpose(1, 2)

    package = ModuleType("flash_attn")
    package.flash_attn_func = flash_attn_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    ids = torch.randint(0, 256, (1, 21), generator=torch.Generator().manual_seed(5))

    def answer(loaded: Any) -> torch.Tensor:
        cache = [KVCache.dense(4, 20)]
        first = adapter.forward(loaded.model, ids[:, :20], torch.arange(20)[None], cache, all_logits=True)
        second = adapter.forward(loaded.model, ids[:, 20:], torch.tensor([[20]]), cache)
        return torch.cat([first, second], dim=1)

    plain, with_flash = loaded_tiny(), loaded_tiny()
    flash.use_in(with_flash.model)
    expected = answer(plain)
    assert calls == []
    torch.testing.assert_close(answer(with_flash), expected, atol=1e-4, rtol=1e-4)
    assert calls == [20] * 4
    answer(plain)  # the wish belongs to the model, not to the process
    assert calls == [20] * 4


def test_a_pass_that_fails_does_not_leave_flash_attention_on() -> None:
    loaded = loaded_tiny()
    flash.use_in(loaded.model)
    with pytest.raises(ModelError):
        loaded.model(torch.tensor([[1, 2]]))  # outside adapter.forward
    assert not flash.wanted()


def test_auto_map_spreads_over_the_gpus(machine: Any) -> None:
    machine(2, "accelerate")
    placed = place(ModelSpec("demo", device="auto-map"))
    assert (str(placed.device), placed.dtype, placed.spread) == ("cuda:0", torch.bfloat16, True)
    assert not place(ModelSpec("demo", device="auto")).spread
    machine(2)
    with pytest.raises(ModelError, match="accelerate"):
        place(ModelSpec("demo", device="auto-map"))
    machine(0, "accelerate")
    with pytest.raises(ModelError, match="sees none"):
        place(ModelSpec("demo", device="auto-map"))
