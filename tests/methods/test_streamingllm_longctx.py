"""StreamingLLM with a windowed prompt: prompts in pieces, the two variants, presets, texts far beyond the cache."""

from __future__ import annotations

from collections.abc import Iterator

import explicit_model
import harness
import pytest
import retrieve_oracle as oracle
import torch
from harness import LAYERS, SHAPE, force, largest_difference, models, prefill, tokens

from lcbench.config.budget import Budget
from lcbench.errors import BadValue
from lcbench.methods.evict.streamingllm import StreamingLLM
from lcbench.methods.evict.streamingllm_longctx import StreamingLLMLongctx
from lcbench.methods.registry import resolve


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with harness.one_thread():
        yield


@pytest.mark.parametrize("variant", ["infllm", "official"])
@pytest.mark.parametrize("family", harness.FAMILIES)
def test_the_prompt_is_windowed_in_whatever_pieces_it_comes(family: str, variant: str) -> None:
    pair, ids = models(family), tokens(100, seed=1)
    method = resolve(f"streamingllm-longctx@n_init=4,n_local=20,variant={variant}")
    expected = explicit_model.logits(pair.plain, ids, oracle.streaming(pair, 4, 20, variant))
    for chunk in (None, 1, 7, 33):
        record = prefill(pair, ids[:80], method, chunk=chunk)
        assert largest_difference(record.logits, expected[79]) < 1e-4
        assert largest_difference(force(pair, method.compress(record), ids[80:]), expected[80:]) < 1e-4
    with torch.inference_mode():
        dense = pair.plain(input_ids=ids[None]).logits[0]
    assert largest_difference(expected[79], dense[79]) > 0.1


def test_the_variants_differ_only_while_the_window_leaves_the_first_tokens() -> None:
    pair, ids = models("llama"), tokens(40, seed=2)
    ours = {}
    for variant in ("infllm", "official"):
        method = resolve(f"streamingllm-longctx@n_init=6,n_local=20,variant={variant}")
        cache = method.prefill_cache(SHAPE, 1)
        ours[variant] = force(pair, cache, ids)
    apart = (ours["infllm"] - ours["official"]).abs().amax(dim=1)
    assert float(apart[:20].max()) == 0.0
    assert float(apart[20:24].min()) > 1e-3


def test_positions_inside_the_cache_are_not_those_of_the_text() -> None:
    """Told apart from `streamingllm`, which keeps the angles of the text."""
    pair, ids = models("llama"), tokens(120, seed=3)
    original = StreamingLLM(n_sink=4, budget=Budget(tokens=24))
    inside = StreamingLLMLongctx(n_init=4, n_local=20, variant="official")
    record = prefill(pair, ids[:100])
    logits = force(pair, original.compress(record), ids[100:])
    expected = explicit_model.logits(pair.plain, ids, oracle.streaming(pair, 4, 20, "official"))[100:]
    assert largest_difference(logits, expected) > 0.1
    assert largest_difference(force(pair, _read(pair, inside, ids[:100]), ids[100:]), expected) < 1e-4


def test_a_text_far_beyond_the_cache_has_no_angle_beyond_it() -> None:
    """The oracle rotates everything at indices below the size of the cache, however far the text has gone."""
    pair, ids = models("llama"), tokens(900, seed=4)
    expected = explicit_model.logits(pair.plain, ids, oracle.streaming(pair, 4, 20, "official"))[860:]
    method = StreamingLLMLongctx(n_init=4, n_local=20, variant="official")
    left = _read(pair, method, ids[:860])
    assert left.nbytes == SHAPE.full_bytes(24)
    assert largest_difference(force(pair, left, ids[860:]), expected) < 5e-4  # angles near 900 round a little more


def _read(pair: harness.Models, method: StreamingLLMLongctx, ids: torch.Tensor) -> harness.KVCache:
    return method.compress(prefill(pair, ids, method))


def test_what_is_held_is_the_first_and_the_newest_tokens() -> None:
    pair, ids = models("llama"), tokens(90, seed=5)
    left = _read(pair, StreamingLLMLongctx(n_init=3, n_local=10), ids[:50])
    assert left.layers[0].positions().tolist() == [0, 1, 2, *range(40, 50)]
    force(pair, left, ids[50:64])
    for layer in left.layers:
        assert sorted(layer.positions().tolist()) == [0, 1, 2, *range(54, 64)]
        assert layer.nbytes * LAYERS == left.nbytes == SHAPE.full_bytes(13)


@pytest.mark.parametrize(
    ("preset", "length", "cap", "expected"),
    [
        ("2x", 7500, 7500, (78, 3672)),
        ("4x", 7500, 7500, (39, 1836)),
        ("6x", 7500, 7500, (26, 1249)),
        ("8x", 9000, 7500, (19, 918)),
        ("2x", 31500, 31500, (330, 15420)),
        ("4x", 40000, 31500, (165, 7710)),
        ("6x", 31500, 31500, (112, 5243)),
        ("8x", 31500, None, (82, 3855)),
        ("4x", 2000, None, (10, 490)),
        ("8x", 3, None, (0, 1)),
    ],
)
def test_presets_are_the_papers_tokens(preset: str, length: int, cap: int | None, expected: tuple[int, int]) -> None:
    more = f",cap={cap}" if cap else ""
    method = resolve(f"streamingllm-longctx@preset={preset}{more}")
    assert isinstance(method, StreamingLLMLongctx)
    assert method.sizes(length) == expected


def test_a_budget_replaces_the_preset_and_numbers_replace_both() -> None:
    assert StreamingLLMLongctx(budget=Budget(tokens=1000)).sizes(5000) == (21, 979)
    assert StreamingLLMLongctx(budget=Budget(ratio=0.5)).sizes(3000) == (31, 1469)
    assert StreamingLLMLongctx(n_init=4).sizes(4000) == (4, 996)
    assert StreamingLLMLongctx(n_init=4, n_local=9).sizes(4000) == (4, 9)


def test_refuses_what_keeps_nothing() -> None:
    for spec in ("n_local=0", "n_init=-1"):
        with pytest.raises(BadValue, match=spec.split("=")[0]):
            resolve(f"streamingllm-longctx@{spec}")
    with pytest.raises(BadValue, match="n_local=0"):
        StreamingLLMLongctx(n_local=0)
    with pytest.raises(BadValue, match="n_init=-2"):
        StreamingLLMLongctx(n_init=-2)
