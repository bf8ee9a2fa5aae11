"""`adapter.forward` through dense caches equals the plain transformers model; observers see what they should."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GptOssConfig

from lcbench.kv.cache import CacheShape, KVCache
from lcbench.kv.observe import LastQueries, union
from lcbench.kv.record import PrefillRecord, take
from lcbench.kv.ring import RingLayer
from lcbench.models import adapter, sdpa
from lcbench.models.info import model_facts
from lcbench.models.rule import AttentionRule
from tiny import VOCAB, byte_tokenizer, tiny_model

MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 12},
    "qwen2": {},
    "qwen2-window": {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1},
    "qwen3": {},
    "gemma2": {"sliding_window": 12, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 20},
    "gemma3": {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "gpt_oss": {"sliding_window": 12},
    "gpt_oss-yarn": {"sliding_window": 12, "rope_parameters": GptOssConfig().rope_parameters},
    "phi3": {},
    "phi3-window": {"sliding_window": 12},
    "smollm3": {"no_rope_layers": [1, 0, 1]},
    "olmo2": {},
    "falcon": {},
    "falcon-multi-query": {"new_decoder_architecture": False, "multi_query": True, "parallel_attn": True},
    "falcon-all-heads": {"new_decoder_architecture": False, "multi_query": False, "num_kv_heads": 8},
}
LAYERS = 3


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """The same weights plain (eager) and behind lcbench's attention."""
    kind = request.param
    plain = tiny_model(kind.split("-")[0], layers=LAYERS, **MODELS[kind])
    ours = copy.deepcopy(plain)
    adapter.install(ours)
    plain.set_attn_implementation("eager")  # what every family has; sdpa knows neither caps nor sinks
    return plain, ours


def ids(count: int, seed: int) -> Tensor:
    return torch.randint(0, VOCAB, (count,), generator=torch.Generator().manual_seed(seed))


def plain_logits(model: Any, text: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=text[None], use_cache=False).logits[0]


def feed(model: Any, text: Tensor, cache: KVCache, **kwargs: Any) -> Tensor:
    positions = torch.arange(cache.seen, cache.seen + len(text))
    return adapter.forward(model, text[None], positions[None], [cache], **kwargs)[0]


@pytest.mark.parametrize("chunk", [1, 7, 40, 100])
def test_prompt_then_steps(pair: tuple[Any, Any], chunk: int) -> None:
    plain, ours = pair
    text = ids(56, seed=0)
    expected = plain_logits(plain, text)
    cache = KVCache.dense(LAYERS, expected=40)
    rows = [feed(ours, piece, cache, all_logits=True) for piece in text[:40].split(chunk)]
    rows += [feed(ours, text[i : i + 1], cache) for i in range(40, 50)]
    rows.append(feed(ours, text[50:], cache, all_logits=True))
    torch.testing.assert_close(torch.cat(rows), expected, rtol=0, atol=1e-4)
    assert cache.seen == 56
    kv_heads = cache.layers[0].parts()[0][0].shape[0]
    assert kv_heads == model_facts(ours, byte_tokenizer())["kv_heads"]
    assert cache.nbytes == CacheShape(LAYERS, 8, kv_heads, 32, torch.float32, torch.device("cpu")).full_bytes(56)


def test_the_last_logits_alone(pair: tuple[Any, Any]) -> None:
    plain, ours = pair
    text = ids(30, seed=1)
    logits = feed(ours, text, KVCache.dense(LAYERS, expected=30))
    assert logits.shape == (1, VOCAB)
    torch.testing.assert_close(logits[0], plain_logits(plain, text)[-1], rtol=0, atol=1e-4)


def test_rows_of_different_length_decode_together(pair: tuple[Any, Any]) -> None:
    plain, ours = pair
    texts = [ids(30, seed=2), ids(17, seed=3), ids(1, seed=4)]
    forced = torch.stack([ids(6, seed=5), ids(6, seed=6), ids(6, seed=7)])
    caches = [KVCache.dense(LAYERS, expected=len(t)) for t in texts]
    for text, cache in zip(texts, caches, strict=True):
        feed(ours, text, cache)
    steps = []
    for i in range(6):
        positions = torch.tensor([[cache.seen] for cache in caches])
        steps.append(adapter.forward(ours, forced[:, i : i + 1], positions, caches))
    together = torch.cat(steps, dim=1)
    for row, text in enumerate(texts):
        expected = plain_logits(plain, torch.cat([text, forced[row]]))[len(text) :]
        torch.testing.assert_close(together[row], expected, rtol=0, atol=1e-4)


def test_positions_are_the_callers(pair: tuple[Any, Any]) -> None:
    """A cache that lost tokens still gets new ones at their own positions: leaving the position out must show."""
    plain, ours = pair
    text = ids(31, seed=8)
    cache = KVCache.dense(LAYERS, expected=30)
    feed(ours, text[:30], cache)
    right = feed(ours, text[30:], cache.fork())
    wrong = adapter.forward(ours, text[None, 30:], torch.tensor([[7]]), [cache])[0]
    torch.testing.assert_close(right[0], plain_logits(plain, text)[-1], rtol=0, atol=1e-4)
    assert (wrong - right).abs().max() > 0.05


class _Seen:
    """The class of store and the first position of each call."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, str, int, float]] = []

    def observe(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, start: int, store: Any, rule: AttentionRule
    ) -> None:
        self.calls.append((layer, type(store).__name__, start, float(query.sum())))


def test_rows_of_different_stores_and_an_observer_a_row(pair: tuple[Any, Any]) -> None:
    """Rows are grouped by their stores' class, and each row's observers see that row alone."""
    _, ours = pair
    texts = [ids(n, seed=20 + n) for n in (9, 14, 11, 6)]
    new = ids(4, seed=30)
    alone, caches, watchers = [], [], []
    for row, (text, token) in enumerate(zip(texts, new, strict=True)):
        cache = KVCache.dense(LAYERS, expected=len(text))
        feed(ours, text, cache)
        if row % 2:  # the same entries in a ring that drops nothing
            held = [layer.parts() for layer in cache.layers]
            everything = torch.arange(len(text))
            cache = KVCache(
                [RingLayer(k, v, sinks=0, capacity=40, kept=everything, seen=len(text)) for (k,), (v,) in held]
            )
        watcher = _Seen()
        alone.append(feed(ours, token[None], cache.fork(), observers=[[watcher]])[0])
        caches.append(cache)
        watchers.append(watcher)
    positions = torch.tensor([[cache.seen] for cache in caches])
    together = [_Seen() for _ in caches]
    out = adapter.forward(ours, new[:, None], positions, caches, [[w] for w in together])[:, 0]
    torch.testing.assert_close(out, torch.stack(alone), rtol=0, atol=1e-4)
    for one, other, text in zip(together, watchers, texts, strict=True):
        assert [c[:3] for c in one.calls] == [c[:3] for c in other.calls]
        assert one.calls[0][2] == len(text)
        assert [c[3] for c in one.calls] == pytest.approx([c[3] for c in other.calls], abs=1e-3)


def _record(model: Any, text: Tensor, chunk: int, wishes: list[LastQueries]) -> PrefillRecord:
    cache = KVCache.dense(LAYERS, expected=len(text))
    observers = {wish: wish.observer(LAYERS, len(text)) for wish in union(wishes)}
    logits = torch.empty(0)
    for piece in text.split(chunk):
        logits = feed(model, piece, cache, observers=[list(observers.values())])
    shape = CacheShape(LAYERS, 8, 2, 32, torch.float32, torch.device("cpu"))
    return PrefillRecord(cache, logits[-1], shape, 32**-0.5, {w: o.results for w, o in observers.items()})


@pytest.mark.parametrize("chunk", [1, 4, 7, 23, 50])
@pytest.mark.parametrize("window", [1, 5, 23, 64])
def test_last_queries_in_chunks(pair: tuple[Any, Any], window: int, chunk: int) -> None:
    text = ids(23, seed=9)
    wish = LastQueries(window)
    record = _record(pair[1], text, chunk, [wish, LastQueries(window)])
    assert list(record.observed) == [wish]
    for i in range(LAYERS):
        observed = record.layer(i).observed[LastQueries(window)]
        assert observed.shape == (8, min(window, 23), 32)
        whole = _record(pair[1], text, 23, [LastQueries(23)]).layer(i).observed[LastQueries(23)]
        torch.testing.assert_close(observed, whole[:, -window:], rtol=0, atol=1e-4)


def test_observed_queries_explain_the_attention() -> None:
    """Softmax of the observed queries on the recorded keys is transformers' own attention."""
    plain = tiny_model("llama", layers=LAYERS)
    ours = copy.deepcopy(plain)
    adapter.install(ours)
    plain.set_attn_implementation("eager")
    text = ids(23, seed=10)
    record = _record(ours, text, 23, [LastQueries(6)])
    with torch.inference_mode():
        attentions = plain(input_ids=text[None], output_attentions=True, use_cache=False).attentions
    for i in range(LAYERS):
        layer = record.layer(i)
        keys = layer.key.repeat_interleave(4, dim=0)
        logits = layer.observed[LastQueries(6)] @ keys.transpose(1, 2) * layer.scaling
        future = torch.arange(23)[None] > torch.arange(17, 23)[:, None]
        weights = torch.softmax(logits.masked_fill(future, -torch.inf), dim=-1)
        torch.testing.assert_close(weights, attentions[i][0, :, -6:], rtol=0, atol=1e-5)


def test_a_record_is_one_unbroken_prompt() -> None:
    ours = tiny_model("llama", layers=LAYERS)
    adapter.install(ours)
    record = _record(ours, ids(9, seed=11), 9, [])
    assert record.length == record.layer(2).length == 9
    assert record.layer(2).index == 2
    feed(ours, ids(1, seed=12), record.cache)
    with pytest.raises(AssertionError, match="nothing after it"):
        record.layer(0)


def test_take_copies() -> None:
    ours = tiny_model("llama", layers=LAYERS)
    adapter.install(ours)
    layer = _record(ours, ids(9, seed=13), 9, []).layer(1)
    for index in (torch.tensor([1, 4, 8]), torch.tensor([[0, 2], [1, 8]])):
        key, value = take(layer, index)
        for out, source in ((key, layer.key), (value, layer.value)):
            assert out.untyped_storage().data_ptr() != source.untyped_storage().data_ptr()
            for head in range(2):
                assert torch.equal(out[head], source[head, index if index.ndim == 1 else index[head]])


def test_rows_on_both_sides_of_a_longrope_do_not_change_each_other() -> None:
    """Phi-3's long-context models have other angles beyond their first window."""
    factors = {"short_factor": [1.0] * 16, "long_factor": [4.0] * 16}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 24, **factors}
    ours = tiny_model("phi3", layers=LAYERS, rope_parameters=rope, original_max_position_embeddings=24)
    adapter.install(ours)
    texts, new = [ids(9, seed=50), ids(40, seed=51), ids(12, seed=52)], ids(3, seed=53)
    caches = [KVCache.dense(LAYERS, expected=len(text)) for text in texts]
    for text, cache in zip(texts, caches, strict=True):
        feed(ours, text, cache)
    alone = torch.stack([feed(ours, new[i : i + 1], cache.fork())[0] for i, cache in enumerate(caches)])
    watchers = [_Seen() for _ in caches]
    positions = torch.tensor([[len(text)] for text in texts])
    together = adapter.forward(ours, new[:, None], positions, caches, [[w] for w in watchers])[:, 0]
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
    assert [[call[2] for call in w.calls] for w in watchers] == [[len(text)] * LAYERS for text in texts]


def test_no_forward_pass_uses_cudnn_and_the_setting_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = tiny_model("llama", layers=1), list[bool]()
    adapter.install(model)
    real = torch.nn.functional.scaled_dot_product_attention

    def watched(*arguments: Any, **options: Any) -> Tensor:
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        return real(*arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        feed(model, ids(8, seed=0), KVCache.dense(1))
        assert seen == [False]
        assert torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def test_passes_that_overlap_put_the_setting_back_in_the_end() -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        first, second = sdpa.without_cudnn(), sdpa.without_cudnn()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)  # as of two threads
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        second.__exit__(None, None, None)
        assert torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
