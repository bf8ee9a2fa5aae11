"""The question visible or hidden: where a prompt is cut, what a method sees of it, what the full cache says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up import Half, Shorter, Words, go

from lcbench.config.spec import ModelSpec, RunSpec
from lcbench.engine.generate import decode, prefill, read_on
from lcbench.engine.prepare import prepare
from lcbench.errors import BadValue, ModelError
from lcbench.kv.cache import KVCache
from lcbench.kv.record import PrefillRecord
from lcbench.methods.full import Full
from lcbench.methods.registry import resolve
from lcbench.models import adapter
from lcbench.models.chat import encode_prompt
from lcbench.tasks.base import Loaded, Prompt, Row
from tiny import loaded_tiny

HIDDEN = RunSpec(model=ModelSpec(name="tiny"), question="hidden")
VISIBLE = replace(HIDDEN, question="visible")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Asked(Words):
    """A context, and a question after it."""

    name = "asked"
    chat = True

    def load(self, home: Path, limit: int | None = None) -> Loaded:
        rows = [
            Row(f"r{i}", {"context": f"fact {i} é " * (8 + 3 * i), "question": f"\nQ{i}: what? "}, ("a",), length=9)
            for i in range(3)
        ]
        return Loaded(rows[:limit])

    def prompt(self, row: Row, home: Path) -> Prompt:
        return Prompt(row.fields["context"] + row.fields["question"], len(row.fields["context"]))


def prompts(spec: RunSpec, **model: Any) -> tuple[Any, Any]:
    loaded = loaded_tiny(**model)
    task = Asked()
    (made,) = prepare(spec, loaded.info, loaded.tokenizer, [Full()], [(task, task.load(Path()))], Path())
    return loaded, made


@pytest.mark.parametrize("chat", ["auto", "none"])
def test_the_cut_is_at_the_question_and_changes_no_token(chat: str) -> None:
    spec = replace(HIDDEN, model=ModelSpec(name="tiny", chat=chat))
    loaded, hidden = prompts(spec)
    _, visible = prompts(replace(spec, question="visible"))
    for one, other, row in zip(hidden.prompts, visible.prompts, Asked().load(Path()).rows, strict=True):
        assert list(one.ids) == list(other.ids)
        assert [*hidden.read_first(one), *hidden.read_last(one)] == list(one.ids)
        assert list(visible.read_first(other)) == list(other.ids)
        assert len(visible.read_last(other)) == 0
        before = loaded.tokenizer.decode(list(hidden.read_first(one)), skip_special_tokens=True)
        after = loaded.tokenizer.decode(list(hidden.read_last(one)), skip_special_tokens=True)
        assert before.endswith(row.fields["context"])
        assert after.startswith(row.fields["question"].rstrip())
        assert one.ids[0] == 256  # the beginning of the chat belongs to the context


def test_a_token_that_spans_the_border_belongs_to_the_question() -> None:
    class Fused:
        """Tokens of three characters."""

        bos_token = eos_token = None
        eos_token_id = None
        is_fast = True

        def __call__(self, text: str, **options: Any) -> dict[str, Any]:
            spans = [(i, min(i + 3, len(text))) for i in range(0, len(text), 3)]
            return {"input_ids": list(range(len(spans))), "offset_mapping": spans}

    reader = replace(loaded_tiny(), tokenizer=Fused())
    for start, tokens in ((0, 4), (3, 3), (4, 3), (5, 3), (6, 2), (9, 1)):
        found = encode_prompt(reader, "0123456789", chat=False, chat_option="none", question_start=start)
        assert found.question_tokens == tokens, start
    assert encode_prompt(reader, "0123456789", chat=False, chat_option="none").question_tokens == 0


def test_a_tokenizer_without_offsets_is_refused() -> None:
    class Slow:
        bos_token = eos_token = None
        eos_token_id = None

        def __call__(self, text: str, **options: Any) -> dict[str, Any]:
            return {"input_ids": [1, 2, 3]}

    with pytest.raises(ModelError, match="cannot be told apart"):
        encode_prompt(replace(loaded_tiny(), tokenizer=Slow()), "abc", chat=False, chat_option="none", question_start=1)


@pytest.mark.parametrize("truncation", ["middle", "exact-ids"])
def test_prompts_that_are_cut_keep_their_question(truncation: Any) -> None:
    spec = replace(HIDDEN, truncation=truncation, max_input_tokens=60)
    loaded, made = prompts(spec)
    assert any(p.truncated_from for p in made.prompts)
    for prompt, row in zip(made.prompts, Asked().load(Path()).rows, strict=True):
        assert prompt.error is None
        after = loaded.tokenizer.decode(list(made.read_last(prompt)), skip_special_tokens=True)
        assert after.startswith(row.fields["question"].rstrip())
    _, tight = prompts(replace(spec, max_input_tokens=12))
    assert all(p.error and "cut ran into it" in p.error for p in tight.prompts)


def test_tasks_and_methods_that_cannot_hide_it_are_refused() -> None:
    loaded, task = loaded_tiny(), Words()
    rows = [(task, task.load(Path()))]
    with pytest.raises(BadValue, match="words have no question apart"):
        prepare(HIDDEN, loaded.info, loaded.tokenizer, [Full()], rows, Path())
    asked = [(Asked(), Asked().load(Path()))]
    for method in (Shorter(), resolve("infllm")):
        with pytest.raises(BadValue, match=f"{method.id} reads the prompt in its own way"):
            prepare(HIDDEN, loaded.info, loaded.tokenizer, [method], asked, Path())
    with pytest.raises(BadValue, match="leaves nothing to compress"):
        prepare(replace(HIDDEN, context="none"), loaded.info, loaded.tokenizer, [Full()], asked, Path())


def test_the_full_cache_says_the_same_either_way(tmp_path: Path) -> None:
    loaded = loaded_tiny()
    _, hidden = go(loaded, tmp_path / "h", [Full(), Half()], spec=HIDDEN, task=Asked())
    _, visible = go(loaded, tmp_path / "v", [Full(), Half()], spec=VISIBLE, task=Asked())
    for one, other in zip(hidden.records("full", "asked"), visible.records("full", "asked"), strict=True):
        assert one.question == "hidden"
        assert other.question == "visible"
        assert replace(one, question="visible") == other
    assert [r.pred for r in hidden.records("half", "asked")] != [r.pred for r in visible.records("half", "asked")]


def test_a_method_compresses_the_context_alone(tmp_path: Path) -> None:
    """Kept tokens and bytes are those of the compressed context and the whole question; the answer is that of a
    cache made by hand."""
    seen: list[PrefillRecord] = []

    class Watched(Half):
        name = "watched"

        def compress(self, record: PrefillRecord) -> KVCache:
            seen.append(record)
            return super().compress(record)

    loaded = loaded_tiny()
    _, run = go(loaded, tmp_path / "h", [Watched(), Full()], spec=HIDDEN, task=Asked())
    _, made = prompts(HIDDEN)
    lengths = [len(made.read_first(p)) for p in made.prompts]
    assert sorted(r.length for r in seen) == sorted(lengths)
    assert {r.question_tokens for r in seen} == {0}
    for prompt, length, record in zip(made.prompts, lengths, sorted_by_id(run, "watched"), strict=True):
        question = list(made.read_last(prompt))
        kept = -(-length // 2) + len(question)
        assert record.kept_tokens == kept
        assert record.kv_bytes == loaded.shape().full_bytes(kept)
        assert record.kv_bytes_full == loaded.shape().full_bytes(len(prompt.ids))
        cache = Half().compress(prefill(loaded, made.read_first(prompt)))
        for i, token in enumerate(question):  # one by one, without the engine
            logits = adapter.forward(loaded.model, torch.tensor([[token]]), torch.tensor([[length + i]]), [cache])
        by_hand = decode(loaded, cache, logits[0, -1], max_new_tokens=6)
        assert record.pred == loaded.tokenizer.decode(by_hand.ids, skip_special_tokens=True)


def sorted_by_id(run: Any, method: str) -> list[Any]:
    return sorted(run.records(method, "asked"), key=lambda record: record.id)


def test_reading_on_in_a_batch_equals_reading_alone() -> None:
    loaded = loaded_tiny()
    specs = ("full", "snapkv@window=8,budget=0.5", "h2o@budget=0.3", "adakv@window=8", "streamingllm@budget=20")
    methods = [resolve(s) for s in (*specs, "kivi@group_size=32,residual_length=32", "tova@budget=0.3")]
    record = prefill(loaded, [*range(90)], observe=[w for m in methods for w in m.observes()])
    question = [5, 200, 31, 77, 8, 120, 33]
    together = [m.compress(record) for m in methods]
    logits = read_on(loaded, together, question)
    for i, m in enumerate(methods):
        cache = m.compress(record)
        for token in question:
            alone = adapter.forward(loaded.model, torch.tensor([[token]]), torch.tensor([[cache.seen]]), [cache])
        assert (logits[i] - alone[0, -1]).abs().max() < 1e-3, m.id
        assert together[i].nbytes == cache.nbytes
