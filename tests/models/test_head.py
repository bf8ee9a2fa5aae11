"""Logits of 16-bit models: the candidates that can win are told apart in fp32."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lcbench.kv.cache import KVCache
from lcbench.models import adapter
from tiny import loaded_tiny


def forward(model: Any, layers: int, ids: torch.Tensor) -> torch.Tensor:
    """Logits ``[n, vocab]`` after each of the tokens ``[n]``."""
    cache = KVCache.dense(layers, expected=len(ids))
    return adapter.forward(model, ids[None], torch.arange(len(ids))[None], [cache], all_logits=True)[0]


@pytest.mark.parametrize("kind", ["llama", "falcon", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_best_are_the_best_of_unrounded_products(kind: str, dtype: torch.dtype) -> None:
    model = loaded_tiny(kind, dtype=dtype).model
    head, hidden = model.get_output_embeddings(), []
    with torch.no_grad():
        head.weight[128:256] = head.weight[:128]
        head.weight[128:256, :8] *= 1 + torch.finfo(dtype).eps  # twins, but for a few last bits
    head.register_forward_hook(lambda module, arguments, out: hidden.append(arguments[0][0]))
    ids = torch.randint(0, 256, (400,), generator=torch.Generator().manual_seed(3))
    logits = forward(model, model.config.num_hidden_layers, ids)
    states, weight = hidden[0].clone(), head.weight.detach()
    exact = states.double() @ weight.double().T
    rounded = torch.nn.functional.linear(states, weight).float()
    assert logits.dtype == torch.float32
    assert torch.equal(logits.argmax(dim=1), exact.argmax(dim=1))
    assert not torch.equal(rounded.argmax(dim=1), exact.argmax(dim=1))
    if kind != "gemma2":  # its soft cap comes after the product
        best, places = logits.topk(8, dim=1)
        assert (best - exact.gather(1, places)).abs().max() < 1e-4
    else:
        cap = model.config.final_logit_softcapping
        best = exact.amax(dim=1)
        assert (logits.amax(dim=1) - cap * torch.tanh(best / cap)).abs().max() < 1e-4


def test_fp32_is_left_alone() -> None:
    model = loaded_tiny().model
    assert not model.get_output_embeddings()._forward_hooks


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_lone_token_is_computed_as_among_others(dtype: torch.dtype) -> None:
    """On a CPU torch has a kernel of its own for one vector; in 16 bits it rounds otherwise here and there."""
    model = loaded_tiny(dtype=dtype).model
    ids = torch.randint(0, 256, (40, 1), generator=torch.Generator().manual_seed(5))
    zero = torch.zeros(40, 1, dtype=torch.int64)
    layers = model.config.num_hidden_layers
    many = adapter.forward(model, ids, zero, [KVCache.dense(layers, expected=1) for _ in ids])
    for row in range(40):
        cache = KVCache.dense(layers, expected=1)
        alone = adapter.forward(model, ids[row : row + 1], zero[:1], [cache])
        assert alone.shape == (1, *many.shape[1:])
        assert cache.seen == 1
        assert cache.layers[0].parts()[0][0].shape[1] == 1
        torch.testing.assert_close(alone[0], many[row], rtol=0, atol=2e-2)
