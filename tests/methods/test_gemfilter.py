"""GemFilter: the chosen tokens against loops in fp64 on the plain eager model; answers against it on those tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lcbench.engine.generate import chosen_tokens, prefill
from lcbench.errors import ModelError
from lcbench.kv.cache import KVCache
from lcbench.kv.observe import LastQueries
from lcbench.methods.prompt.gemfilter import GemFilter, token_scores
from lcbench.methods.registry import resolve
from lcbench.models.early import hidden_states, hidden_states_at
from tiny import loaded_tiny, tiny_model


@pytest.fixture(scope="module", params=["llama", "qwen2", "falcon"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def ids_of(count: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 250, (count,), generator=torch.Generator().manual_seed(seed))


def by_loops(query: Tensor, key: Tensor, keep: int) -> list[int]:
    """Positions by the formula of the specification, in fp64 with Python loops."""
    heads, groups = query.shape[0], query.shape[0] // key.shape[0]
    length = key.shape[1]
    raw = [sum(float(query[h].double() @ key[h // groups, j].double()) for h in range(heads)) for j in range(length)]
    pooled = [sum(raw[i] for i in range(j - 2, j + 3) if 0 <= i < length) / 5 for j in range(length)]
    return sorted(sorted(range(length), key=lambda j: (-pooled[j], j))[:keep])


def test_chosen_tokens_equal_loops_on_a_full_pass(family: str) -> None:
    loaded = loaded_tiny(family)
    ids = ids_of(80)
    method = GemFilter(budget=resolve("gemfilter@budget=20").budget, layer=1)  # type: ignore[attr-defined]
    with torch.inference_mode():
        chosen, kept = chosen_tokens(loaded, method, ids)
        wish = LastQueries(1)
        record = prefill(loaded, ids, observe=[wish])  # all four layers
    layer = record.layer(1)
    query = layer.observed[wish]
    query = query[:, -1] if isinstance(query, Tensor) else query.queries[:, -1]
    assert kept is not None
    assert kept.tolist() == by_loops(query, layer.key, 20)
    assert torch.equal(chosen[0], ids[kept])
    assert torch.equal(kept, kept.unique())


def test_the_second_pass_is_the_plain_model_on_the_chosen_tokens() -> None:
    loaded, plain = loaded_tiny(), tiny_model()
    ids = ids_of(70, 3)
    with torch.inference_mode():
        chosen, kept = chosen_tokens(loaded, resolve("gemfilter@budget=0.25,layer=2"), ids)
        record = prefill(loaded, chosen, cache=KVCache.dense(4))
        wanted = plain(ids[kept][None]).logits[0, -1]
    assert chosen.shape == (1, 17)
    assert record.length == 17
    assert torch.allclose(record.logits, wanted, atol=1e-4)


def test_what_fits_is_left_alone_and_ends_can_be_protected() -> None:
    loaded, ids = loaded_tiny(), ids_of(50)
    with torch.inference_mode():
        for spec in ("gemfilter", "gemfilter@budget=50", "gemfilter@budget=1.0"):
            assert chosen_tokens(loaded, resolve(spec), ids)[1] is None
        _, kept = chosen_tokens(loaded, resolve("gemfilter@budget=10,protect_first=2,protect_last=3"), ids)
    assert kept is not None
    assert len(kept) == 10
    assert {0, 1, 47, 48, 49} <= set(kept.tolist())


def test_states_of_the_early_stop_are_those_of_the_whole_model(family: str) -> None:
    loaded, plain, ids = loaded_tiny(family), tiny_model(family), ids_of(30)
    with torch.inference_mode():
        wanted = plain(ids[None], output_hidden_states=True).hidden_states
        made = hidden_states(loaded.model, ids, 2, KVCache.dense(4))
        several = hidden_states_at(loaded.model, ids, [1, 3], KVCache.dense(4))
    assert torch.allclose(made, wanted[2][0], atol=1e-4)
    assert torch.allclose(several[0], wanted[1][0], atol=1e-4)
    assert torch.allclose(several[1], wanted[3][0], atol=1e-4)
    assert not [m for m in loaded.model.modules() if m._forward_hooks]


def test_the_layer_that_chooses(family: str) -> None:
    assert [GemFilter().chooser(n) for n in (32, 40, 30, 4, 1)] == [13, 16, 12, 2, 0]
    loaded = loaded_tiny(family)
    with pytest.raises(ModelError, match="layers are 0 to 3"):
        GemFilter(layer=4).check(loaded.shape())
    GemFilter(layer=3).check(loaded.shape())


def test_edges_are_attenuated_by_the_pool() -> None:
    scores = token_scores(torch.ones(2, 1), torch.ones(1, 6, 1))
    assert scores.tolist() == pytest.approx([1.2, 1.6, 2.0, 2.0, 1.6, 1.2])
