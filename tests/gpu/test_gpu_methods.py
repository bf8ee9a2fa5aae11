"""Every method on a GPU: the same answers as on a CPU, alone and stacked, in fp32; whole runs in bf16.

Skipped without a CUDA device. What it finds are tensors left on the wrong device, and kernels that differ.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1] / "methods"))

import harness
from cases import CASES
from harness import Case

from lcbench.engine.generate import prefill
from lcbench.kv.cache import KVCache
from lcbench.methods.base import Method
from lcbench.methods.calibration import bound
from lcbench.models import adapter
from lcbench.models.info import LoadedModel
from tiny import loaded_tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
STEPS = 24


@pytest.fixture(autouse=True)
def _exact_products() -> Iterator[None]:
    """fp32 products in fp32: TF32 would differ from a CPU by 1e-3 of a logit."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@cache
def _loaded(device: str, dtype: torch.dtype = torch.float32) -> LoadedModel:
    sizes = {
        "layers": harness.LAYERS,
        "heads": harness.HEADS,
        "kv_heads": harness.KV_HEADS,
        "head_dim": harness.HEAD_DIM,
    }
    loaded = loaded_tiny("llama", dtype=dtype, **sizes)
    loaded.model.to(device)
    return replace(loaded, info=replace(loaded.info, device=device))


def _made(case: Case, device: torch.device) -> Method:
    """The case's method, what was calibrated for it on the device, as `Method.bind` puts it."""
    method = harness.made(case)
    stored = getattr(method, "_predictors", None)
    if stored is None:
        return method
    return bound(method, _predictors=replace(stored, tensors={k: t.to(device) for k, t in stored.tensors.items()}))


def _caches(loaded: LoadedModel, case: Case, ids: Tensor, copies: int) -> list[KVCache]:
    method = _made(case, loaded.shape().device)
    found = []
    for _ in range(copies):
        cache_ = method.prefill_cache(loaded.shape(), len(ids))
        record = prefill(loaded, ids.tolist(), observe=method.observes(), cache=cache_)
        torch.manual_seed(17)
        found.append(method.compress(record))
    return found


def _forced(loaded: LoadedModel, caches: Sequence[KVCache], ids: Tensor) -> Tensor:
    """Logits ``[steps, rows, vocab]`` of the forced tokens, every row fed the same."""
    device, rows = loaded.shape().device, []
    for token in ids.tolist():
        new = torch.full((len(caches), 1), token, device=device)
        at = torch.tensor([[c.seen] for c in caches], device=device)
        rows.append(adapter.forward(loaded.model, new, at, list(caches))[:, -1].float().cpu())
    return torch.stack(rows)


def _read_and_forced(
    loaded: LoadedModel, case: Case, prompt: Tensor, copies: int, forced: Tensor
) -> tuple[list[KVCache], Tensor]:
    """Caches of a prompt and the logits of the tokens forced after it, on the model as the method makes it."""
    with _made(case, loaded.shape().device).transform_model(loaded.model, len(prompt) + len(forced)):
        caches = _caches(loaded, case, prompt, copies)
        return caches, _forced(loaded, caches, forced)


ALL = [case for cases in CASES.values() for case in cases]


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.spec)
def test_gpu_answers_as_a_cpu_does(case: Case) -> None:
    ids = harness.text(case, case.prompt + STEPS, seed=3)
    prompt, forced = ids[: case.prompt], ids[case.prompt :]
    there, logits = _read_and_forced(_loaded("cuda:0"), case, prompt, 3, forced)
    for store in there[0].layers:
        kept = sum(t.numel() for t in store.tensors() if t.device.type == "cuda")
        assert kept > 0, "nothing of the cache is on the GPU"
    assert torch.isfinite(logits).all()
    assert harness.largest_difference(logits[:, 0], logits[:, 1]) < 2e-3, "rows of one batch differ"
    assert harness.largest_difference(logits[:, 0], logits[:, 2]) < 2e-3, "rows of one batch differ"
    if case.seeded:  # the generators of the two devices draw different numbers
        return
    _, here = _read_and_forced(_loaded("cpu"), case, prompt, 1, forced)
    if harness.made(case).traits.family == "quantize":  # a number on the border of two codes may get the other one
        assert float((logits[:, 0] - here[:, 0]).abs().mean()) < 2e-2
    else:
        assert harness.largest_difference(logits[:, 0], here[:, 0]) < 5e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", ALL, ids=lambda case: case.spec)
def test_gpu_in_sixteen_bits(case: Case, dtype: torch.dtype) -> None:
    loaded = _loaded("cuda:0", dtype)
    ids = harness.text(case, case.prompt + STEPS, seed=4)
    caches, logits = _read_and_forced(loaded, case, ids[: case.prompt], 2, ids[case.prompt :])
    assert torch.isfinite(logits).all()
    assert [c.seen for c in caches] == [case.prompt + STEPS] * 2
    assert all(c.storage_nbytes >= c.nbytes > 0 for c in caches)
