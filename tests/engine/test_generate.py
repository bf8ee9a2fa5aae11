"""Prefill and greedy decoding against transformers' own generate, on tiny random models."""

from __future__ import annotations

import pytest
import torch

from lcbench.engine.generate import decode, prefill
from lcbench.kv.observe import LastQueries
from tiny import KINDS, loaded_tiny, tiny_model

PROMPT = [int(i) for i in torch.randint(0, 256, (70,), generator=torch.Generator().manual_seed(3))]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_full_equals_generate_of_transformers(kind: str) -> None:
    reference = (
        tiny_model(kind)
        .generate(
            torch.tensor([PROMPT]),
            attention_mask=torch.ones(1, len(PROMPT), dtype=torch.long),
            max_new_tokens=40,
            do_sample=False,
            eos_token_id=257,
            pad_token_id=0,
        )[0, len(PROMPT) :]
        .tolist()
    )
    loaded = loaded_tiny(kind)
    record = prefill(loaded, PROMPT)
    made = decode(loaded, record.cache.fork(), record.logits, max_new_tokens=40)
    assert made.ids == reference
    assert len(set(reference)) > 3  # a flat model would hide errors


def test_chunked_prefill_leaves_the_same_record() -> None:
    loaded = loaded_tiny()
    whole = prefill(loaded, PROMPT, observe=[LastQueries(9)])
    pieces = prefill(loaded, PROMPT, observe=[LastQueries(9)], chunk=16)
    torch.testing.assert_close(pieces.logits, whole.logits, atol=2e-5, rtol=1e-4)
    for i in range(4):
        torch.testing.assert_close(pieces.layer(i).key, whole.layer(i).key, atol=2e-5, rtol=1e-4)
        seen = pieces.observed[LastQueries(9)][i]
        assert seen.shape == (8, 9, 32)
        torch.testing.assert_close(seen, whole.observed[LastQueries(9)][i], atol=2e-5, rtol=1e-4)
    assert pieces.cache.nbytes == whole.cache.nbytes == pieces.cache.storage_nbytes


def test_decoding_a_fork_leaves_the_record_as_it_was() -> None:
    loaded = loaded_tiny()
    record = prefill(loaded, PROMPT)
    before = [t.clone() for layer in record.cache.layers for t in layer.tensors()]
    first = decode(loaded, record.cache.fork(), record.logits, max_new_tokens=12)
    second = decode(loaded, record.cache.fork(), record.logits, max_new_tokens=12)
    assert first == second
    after = [t for layer in record.cache.layers for t in layer.tensors()]
    assert len(after) == len(before)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_end_stop_and_length() -> None:
    loaded = loaded_tiny()
    record = prefill(loaded, PROMPT)
    free = decode(loaded, record.cache.fork(), record.logits, max_new_tokens=10)
    assert free.stopped_by == "length"
    assert free.new_tokens == 10
    third = free.ids[2]
    assert third not in free.ids[:2]
    stopped = decode(loaded, record.cache.fork(), record.logits, max_new_tokens=10, stop_ids=[third])
    assert (stopped.ids, stopped.stopped_by, stopped.new_tokens) == (free.ids[:3], "stop", 2)
    told: list[int] = []
    finished = decode(
        loaded,
        record.cache.fork(),
        record.logits,
        max_new_tokens=10,
        finished=lambda ids: bool(told.append(len(ids))) or len(ids) == 4,
    )
    assert (finished.ids, finished.stopped_by, finished.new_tokens) == (free.ids[:4], "finished", 4)
    assert told == [1, 2, 3, 4]


def test_min_new_tokens_forbids_ending_at_once() -> None:
    loaded = loaded_tiny()
    record = prefill(loaded, PROMPT)
    best = int(record.logits.argmax())
    logits_before = record.logits.clone()
    assert decode(loaded, record.cache.fork(), record.logits, max_new_tokens=5, stop_ids=[best]).new_tokens == 0
    kept = decode(loaded, record.cache.fork(), record.logits, max_new_tokens=5, stop_ids=[best], min_new_tokens=1)
    assert kept.ids[0] == int(logits_before.topk(2).indices[1])
    assert torch.equal(record.logits, logits_before)  # shared by all methods of the prompt
