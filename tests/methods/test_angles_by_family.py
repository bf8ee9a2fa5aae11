"""Methods that put queries and keys at other angles, on families with angles of their own.

Models of one layer: what its attention is given does not depend on the method, so that a reference is its output,
written key by key in fp64, put in the place of the plain model's own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import harness
import pytest
import torch
from harness import SHAPE
from plain_layers import FAMILIES, GROUP, Layer, plain_layers, turned
from torch import Tensor

from lcbench.methods.registry import resolve
from lcbench.models import adapter
from tiny import VOCAB, tiny_model

PROMPT, TOTAL = 70, 90
N_INIT, N_LOCAL = 4, 20
# What a query at `i` sees key `j` from: (angle of the query, angle of the key), None where it does not see it.
Angles = Callable[[int, int], tuple[int, int] | None]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with harness.one_thread():
        yield


def streaming(i: int, j: int) -> tuple[int, int] | None:
    if i - j < N_LOCAL:
        return i, j
    return (N_LOCAL + N_INIT - 1, j) if j < N_INIT else None


def everything_far_at_one_distance(i: int, j: int) -> tuple[int, int] | None:
    return (i, j) if i - j < N_LOCAL else (N_LOCAL - 1, 0)


METHODS: dict[str, Angles] = {
    f"streamingllm-longctx@n_init={N_INIT},n_local={N_LOCAL}": streaming,
    f"infllm@n_init={N_INIT},n_local={N_LOCAL},topk=99,block_size=8,exc_block_size=10": everything_far_at_one_distance,
}
# One layer of each kind that a family has.
KINDS: list[tuple[str, dict[str, Any]]] = []
for _family, _config in FAMILIES.items():
    if "layer_types" in _config:
        KINDS += [(_family, {**_config, "layer_types": [kind]}) for kind in ("sliding_attention", "full_attention")]
    elif "no_rope_layers" in _config:
        KINDS += [(_family, {"no_rope_layers": [used]}) for used in (0, 1)]
    else:
        KINDS.append((_family, _config))


def attended(layer: Layer, angles: Angles) -> Tensor:
    """Output ``[H, T, d]`` of attention in which every pair of a query and a key has angles of its own."""
    bare_key = turned(layer.key, -torch.arange(TOTAL)[:, None] * layer.frequencies, 1 / layer.scale)
    rows = []
    for i in range(TOTAL):
        seen = [(j, at) for j in range(max(0, i - layer.window + 1), i + 1) if (at := angles(i, j)) is not None]
        positions = torch.tensor([j for j, _ in seen])
        at_query, at_key = (torch.tensor([at[side] for _, at in seen])[:, None] * layer.frequencies for side in (0, 1))
        query = turned(layer.bare[:, i : i + 1].expand(-1, len(seen), -1), at_query, layer.scale)
        key = turned(bare_key[:, positions], at_key, layer.scale).repeat_interleave(GROUP, dim=0)
        logits = (query * key).sum(dim=-1) * layer.scaling
        if layer.sinks is not None:
            logits = torch.cat([logits, layer.sinks[:, None]], dim=1)
        weights = torch.softmax(logits, dim=1)[:, : len(seen)]
        rows.append(torch.einsum("hn,hnd->hd", weights, layer.value[:, positions].repeat_interleave(GROUP, dim=0)))
    return torch.stack(rows, dim=1)


def plain_logits(plain: Any, ids: Tensor, out: Tensor) -> Tensor:
    """Logits ``[T, vocab]`` of the plain model with the output of its attention replaced."""
    flat = out.transpose(0, 1).reshape(1, TOTAL, -1).float()
    handle = plain.model.layers[0].self_attn.o_proj.register_forward_pre_hook(lambda module, arguments: (flat,))
    try:
        with torch.inference_mode():
            logits: Tensor = plain(input_ids=ids[None], use_cache=False).logits[0]
            return logits
    finally:
        handle.remove()


@pytest.mark.parametrize(("family", "config"), KINDS, ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v)))
@pytest.mark.parametrize("spec", METHODS, ids=lambda spec: spec.split("@")[0])
def test_far_tokens_are_seen_at_the_methods_angles(spec: str, family: str, config: dict[str, Any]) -> None:
    plain = tiny_model(family, layers=1, **config)
    ours = copy.deepcopy(plain)
    adapter.install(ours)
    plain.set_attn_implementation("eager")
    ids = torch.randint(0, VOCAB, (TOTAL,), generator=torch.Generator().manual_seed(9))
    (layer,) = plain_layers(plain, ids)
    dense = plain_logits(plain, ids, attended(layer, lambda i, j: (i, j)))
    with torch.inference_mode():
        torch.testing.assert_close(dense, plain(input_ids=ids[None]).logits[0], atol=3e-4, rtol=1e-4)
    expected = plain_logits(plain, ids, attended(layer, METHODS[spec]))
    method, shape = resolve(spec), replace(SHAPE, layers=1)
    cache = method.prefill_cache(shape, PROMPT)
    logits = adapter.forward(ours, ids[None, :PROMPT], torch.arange(PROMPT)[None], [cache], all_logits=True)[0]
    rows = [
        adapter.forward(ours, ids[None, i : i + 1], torch.tensor([[i]]), [cache])[0, -1] for i in range(PROMPT, TOTAL)
    ]
    torch.testing.assert_close(torch.cat([logits, torch.stack(rows)]), expected, atol=5e-4, rtol=1e-3)
    turns = bool(layer.frequencies.any())
    assert math.isclose(float((expected - dense).abs().max()), 0, abs_tol=1e-4) == (not turns and "infllm" in spec)
