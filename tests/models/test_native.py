"""Models on the cache they bring along: every architecture against its own forward pass over the whole text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lcbench.errors import ModelError
from lcbench.kv.cache import KVCache
from lcbench.kv.native import NativeCache
from lcbench.models import adapter, families, native
from lcbench.models.families import FAMILIES
from lcbench.models.info import UNBOUNDED, model_facts
from linear_models import ARCHITECTURES, linear_model, loaded_linear
from tiny import loaded_tiny

EVERY = sorted(ARCHITECTURES)
LENGTH, ANSWER = 40, 6
#: Two orders of summation of one recurrence differ by so much in fp32, at logits of a standard deviation about 1.
CLOSE = 3e-4


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def text(length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (1, length), generator=torch.Generator().manual_seed(seed))


def whole(model: Any, ids: Tensor) -> Tensor:
    """Logits ``[n, vocab]`` of one pass without a cache."""
    with torch.inference_mode():
        logits: Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return logits


def feed(model: Any, cache: NativeCache, ids: Tensor, *, every: bool = False) -> Tensor:
    """Logits at the last token, or at every one, through ``cache``."""
    positions = torch.arange(cache.seen, cache.seen + ids.shape[1])[None]
    logits = adapter.forward(model, ids, positions, [cache], all_logits=every)[0]
    return logits if every else logits[-1]


def held(thing: Any, seen: set[int] | None = None) -> Iterator[Tensor]:
    """Every floating-point tensor that can be reached from an object: a walk of its own, not the library's."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, type | torch.nn.Module | torch.dtype | torch.device):
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        if thing.is_floating_point():
            yield thing
    elif isinstance(thing, dict):
        for part in thing.values():
            yield from held(part, seen)
    elif isinstance(thing, list | tuple | set):
        for part in thing:
            yield from held(part, seen)
    elif hasattr(thing, "__dict__"):
        yield from held(vars(thing), seen)


def storage_bytes(thing: Any) -> int:
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held(thing)}.values())


def test_every_family_has_a_tiny_model_here() -> None:
    assert {linear_model(name).config.model_type for name in EVERY} == set(FAMILIES)


@pytest.mark.parametrize("name", EVERY)
def test_stepwise_decoding_equals_the_whole_text_without_a_cache(name: str) -> None:
    model, ids = linear_model(name), text(LENGTH + ANSWER)
    expected = whole(model, ids)
    assert expected.std() > 0.5, "logits this flat would hide a mistake"
    cache = NativeCache.empty(model)
    found = [feed(model, cache, ids[:, :LENGTH])]
    found += [feed(model, cache, ids[:, i : i + 1]) for i in range(LENGTH, LENGTH + ANSWER)]
    assert (torch.stack(found) - expected[LENGTH - 1 :]).abs().max() < CLOSE
    assert cache.seen == LENGTH + ANSWER


@pytest.mark.parametrize("name", EVERY)
def test_several_tokens_into_a_cache_that_is_not_empty(name: str) -> None:
    model, ids = linear_model(name), text(LENGTH)
    cache = NativeCache.empty(model)
    feed(model, cache, ids[:, :17])
    found = feed(model, cache, ids[:, 17:], every=True)
    assert (found - whole(model, ids)[17:]).abs().max() < CLOSE


@pytest.mark.parametrize("name", EVERY)
def test_a_prompt_of_one_token_after_another_text(name: str) -> None:
    """RecurrentGemma keeps state on its modules: what was read before must not show."""
    model, ids = linear_model(name), text(5)
    feed(model, NativeCache.empty(model), text(30, seed=1))
    cache = NativeCache.empty(model)
    found = torch.stack([feed(model, cache, ids[:, i : i + 1]) for i in range(5)])
    assert (found - whole(model, ids)).abs().max() < CLOSE


@pytest.mark.parametrize("name", EVERY)
def test_two_sequences_token_by_token_in_turn(name: str) -> None:
    model, texts = linear_model(name), [text(LENGTH, seed=1), text(LENGTH - 9, seed=2)]
    caches = [NativeCache.empty(model) for _ in texts]
    found: list[list[Tensor]] = [[feed(model, c, ids[:, :20])] for c, ids in zip(caches, texts, strict=True)]
    for i in range(20, 26):
        ids = torch.cat([one[:, i : i + 1] for one in texts])
        logits = adapter.forward(model, ids, torch.full((2, 1), i), caches)
        for row in range(2):
            found[row].append(logits[row, -1])
    for rows, ids in zip(found, texts, strict=True):
        assert (torch.stack(rows) - whole(model, ids)[19:26]).abs().max() < CLOSE


@pytest.mark.parametrize("name", [name for name in EVERY if FAMILIES[linear_model(name).config.model_type].stacks])
def test_many_sequences_of_all_lengths_take_a_step_as_one_batch(name: str) -> None:
    model, lengths = linear_model(name), (3, 40, 17, 1)
    texts = [text(length + 3, seed=i) for i, length in enumerate(lengths)]
    caches = [NativeCache.empty(model) for _ in texts]
    for cache, ids, length in zip(caches, texts, lengths, strict=True):
        feed(model, cache, ids[:, :length])
    bytes_before = [cache.storage_nbytes for cache in caches]
    for step in range(3):
        at = [length + step for length in lengths]
        ids = torch.cat([one[:, i : i + 1] for one, i in zip(texts, at, strict=True)])
        found = adapter.forward(model, ids, torch.tensor(at)[:, None], caches)
        for row, (one, i) in enumerate(zip(texts, at, strict=True)):
            assert (found[row, -1] - whole(model, one)[i]).abs().max() < CLOSE
    assert [cache.storage_nbytes for cache in caches] == bytes_before
    assert [cache.seen for cache in caches] == [length + 3 for length in lengths]


@pytest.mark.parametrize("name", EVERY)
def test_a_copy_goes_its_own_way_and_wastes_nothing(name: str) -> None:
    model, ids = linear_model(name), text(LENGTH)
    cache = NativeCache.empty(model)
    feed(model, cache, ids[:, :30])
    copy = cache.fork()
    shared = {t.untyped_storage().data_ptr() for t in held(cache.native)}
    assert not shared & {t.untyped_storage().data_ptr() for t in held(copy.native)}
    assert copy.storage_nbytes == copy.nbytes
    feed(model, copy, text(5, seed=3))
    found = torch.stack([feed(model, cache, ids[:, i : i + 1]) for i in range(30, LENGTH)])
    assert (found - whole(model, ids)[30:]).abs().max() < CLOSE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", EVERY)
def test_bytes_are_those_of_the_cache_and_of_the_formula(name: str, dtype: torch.dtype) -> None:
    model = linear_model(name, dtype=dtype)
    with torch.device("meta"):
        shape = native.measure(type(model)._from_config(model.config, dtype=dtype))
    for length in (1, 5, LENGTH):
        cache = NativeCache.empty(model)
        feed(model, cache, text(length))
        kept = cache.fork()
        assert kept.storage_nbytes == storage_bytes(kept.native) == shape.bytes_at(length)
        feed(model, kept, text(1))
        assert kept.nbytes == shape.bytes_at(length + 1)


@pytest.mark.parametrize(
    ("name", "state", "token"),
    [
        # layers x (convolution [channels, width] + recurrence), and 2 x attention layers x KV heads x head width
        ("mamba", 3 * (96 * 4 + 96 * 8), 0),  # d_inner = 96 of the config
        ("mamba2", 3 * ((128 + 2 * 2 * 8) * 4 + 8 * 16 * 8), 0),  # d_inner + 2 groups n; heads P n
        ("rwkv", 3 * 5 * 64, 0),  # two shifts; numerator, denominator, maximum
        ("rwkv5", 3 * (2 * 64 + 8 * 8 * 8), 0),  # two shifts; a matrix a head
        ("jamba", 2 * (128 * 4 + 128 * 8), 2 * 2 * 2 * 16),
        ("bamba", 2 * ((128 + 2 * 2 * 8) * 4 + 8 * 16 * 8), 2 * 1 * 2 * 16),
        ("falcon_h1", 3 * ((128 + 2 * 2 * 8) * 4 + 8 * 16 * 8), 2 * 3 * 2 * 16),
        ("lfm2", 2 * 64 * 3, 2 * 1 * 2 * 16),
        ("qwen3_next", 2 * ((2 * 2 * 8 + 4 * 8) * 4 + 4 * 8 * 8), 2 * 1 * 2 * 16),
        ("kimi_linear", 2 * (3 * 4 * 8 * 4 + 4 * 8 * 8), 16 + 8),  # one latent of 16 and one rotated key of 8 a token
    ],
)
def test_bytes_by_hand(name: str, state: int, token: int) -> None:
    shape = loaded_linear(name).info.state
    assert shape is not None
    assert (shape.state_bytes, shape.token_bytes) == (4 * state, 4 * token)


def test_recurrent_gemma_keeps_a_window_and_two_states_a_layer() -> None:
    shape = loaded_linear("recurrent_gemma").info.state
    assert shape is not None
    assert shape.state_bytes == 4 * 2 * (64 * 3 + 64)  # convolution of width 4, RG-LRU
    assert (shape.window, shape.token_bytes, shape.window_bytes) == (23, 0, 4 * 2 * 16)
    assert shape.bytes_at(1000) == shape.bytes_at(23)


@pytest.mark.parametrize("name", EVERY)
def test_the_state_is_what_answers_stand_on(name: str) -> None:
    model, ids = linear_model(name), text(LENGTH + 1)
    cache = NativeCache.empty(model)
    feed(model, cache, ids[:, :LENGTH])
    other = cache.fork()
    for tensor in held(other.native):
        tensor.zero_()
    assert (feed(model, cache, ids[:, -1:]) - feed(model, other, ids[:, -1:])).abs().max() > 0.05


@pytest.mark.parametrize("name", EVERY)
def test_facts_name_attention_only_where_there_is_some(name: str) -> None:
    model = linear_model(name)
    facts = model_facts(model, None)
    pure = name in ("mamba", "mamba2", "falcon_mamba", "rwkv", "rwkv5", "xlstm")
    assert (facts["heads"] == 0) == pure
    assert (facts["state"].attention_layers == 0) == pure
    assert (native.attention_of(model) == "none") == pure
    assert facts["layers"] == model.config.num_hidden_layers
    named = name not in ("mamba", "mamba2", "falcon_mamba", "xlstm")
    assert (facts["window"] != UNBOUNDED) == named


@pytest.mark.parametrize("name", EVERY)
def test_installing_changes_no_answer(name: str) -> None:
    plain, installed, ids = linear_model(name), linear_model(name), text(LENGTH)
    adapter.install(installed)
    assert (whole(plain, ids) - whole(installed, ids)).abs().max() < 1e-4


def test_nothing_watches_or_replaces_such_a_cache() -> None:
    loaded = loaded_linear("mamba")
    with pytest.raises(ModelError, match="own cache"):
        adapter.forward(loaded.model, text(3), torch.arange(3)[None], [KVCache.dense(3, expected=3)])


def test_other_models_have_no_state() -> None:
    assert loaded_tiny().info.state is None


def test_the_docs_show_the_table_as_it_is() -> None:
    page = (Path(__file__).parents[2] / "docs" / "architectures.md").read_text(encoding="utf-8")
    assert families.with_table(page) == page
    assert all(title in page for title in families.titles())


def test_the_table_has_all_that_the_installed_transformers_carries() -> None:
    """Every causal model type whose default config asks its cache for layers with a state."""
    from transformers import AutoConfig, DynamicCache
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    found = set()
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            config = AutoConfig.for_model(model_type).get_text_config(decoder=True)
            layers = DynamicCache(config=config).layers
        except Exception:  # a few have no default, or a cache class of their own
            continue
        if any("Linear" in type(layer).__name__ for layer in layers):
            found.add(config.model_type)
    assert len(found) > 15
    assert found <= set(FAMILIES)
