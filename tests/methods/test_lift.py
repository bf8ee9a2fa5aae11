"""LIFT: what is learned is what it says, and nothing of it stays."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
from harness import SHAPE, largest_difference
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lcbench.bench.efficiency import check as check_bench
from lcbench.config.spec import ModelSpec, RunSpec
from lcbench.engine.groups import make_groups
from lcbench.engine.memory import Limits
from lcbench.engine.options import Options
from lcbench.engine.plan import PromptSet
from lcbench.engine.prepare import prepare
from lcbench.engine.run import Outcome, execute
from lcbench.errors import BadValue, ModelError
from lcbench.kv.cache import KVCache
from lcbench.methods.memory.lift import Lift, segments
from lcbench.methods.registry import resolve
from lcbench.models import adapter
from lcbench.models.info import LoadedModel
from lcbench.store.rundir import RunDirectory
from lcbench.tasks.base import Loaded, Prompt, Row, Task
from tiny import loaded_tiny, tiny_model

QUICK = "lift@segment=24,offset=9,epochs=2,lr=0.01,rank=4,alpha=8"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with harness.one_thread():
        yield


@dataclass(frozen=True)
class Texts(Task):
    """Rows of a context and a question."""

    name = "texts"
    version = 1
    benchmark = "test"
    category = "test"
    metric = "qa_f1"
    chat = False

    def load(self, home: Path, limit: int | None = None) -> Loaded:
        return Loaded(
            [Row(f"r{i}", {"text": f"the {i}th number is {i * 7919} " * 3}, ("x",), length=9) for i in range(3)]
        )

    def answer_tokens(self, home: Path) -> int:
        return 8

    def prompt(self, row: Row, home: Path) -> Prompt:
        return Prompt(row.fields["text"] + "Which?", len(row.fields["text"]))


def prepared(loaded: LoadedModel, methods: list[Any], home: Path, **spec: Any) -> list[PromptSet]:
    task, wanted = Texts(), spec.pop("wanted", (0, 1, 2))
    wish = RunSpec(model=ModelSpec(name="tiny"), **spec)
    rows = Loaded([task.load(home).rows[i] for i in wanted])
    return prepare(wish, loaded.info, loaded.tokenizer, methods, [(task, rows)], home)


def answered(
    loaded: LoadedModel, methods: list[str], path: Path, **spec: Any
) -> tuple[dict[str, dict[str, Any]], Outcome]:
    """Method id to row id to record, and how the run ended."""
    made = [resolve(text) for text in methods]
    sets = prepared(loaded, made, path, **spec)
    groups = make_groups(sets, loaded.shape(), Limits(rows=8, tokens=2000, nbytes=2**30), chunk=None)
    described = {"methods": [m.id for m in made], "tasks": ["texts"]}
    with RunDirectory.create_or_continue(path, described, {}) as run:
        options = Options.of(RunSpec(model=ModelSpec(name="tiny")))
        outcome = execute(loaded, sets, groups, run, options=options)
        for m in made:
            timings = run.timings(m.id, "texts")
            assert all(("adapt" in seconds) == m.learns for seconds in timings.values())
            assert all(seconds["adapt"] > 0 for seconds in timings.values() if m.learns)
    return {m.id: {r.id: r for r in run.records(m.id, "texts")} for m in made}, outcome


def fingerprint(model: nn.Module) -> str:
    """sha256 over every parameter and buffer, their flags and gradients."""
    digest = hashlib.sha256()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(f"{name}{tensor.requires_grad}{tensor.grad is None}{tensor.dtype}".encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    hooks = sum(len(module._forward_hooks) for module in model.modules())
    return f"{digest.hexdigest()} {hooks} {model.training}"


# --- segments --------------------------------------------------------------------------------------------------------


@given(st.integers(0, 400), st.integers(2, 60), st.integers(1, 60))
def test_segments_cover_the_text(total: int, size: int, offset: int) -> None:
    offset = min(offset, size)
    spans = segments(total, size, offset)
    if total < 2:
        assert spans == []
        return
    assert sorted({place for span in spans for place in range(*span)}) == list(range(total))
    assert spans[-1][1] == total
    assert all(stop - first == min(size, total) for first, stop in spans)
    assert [first for first, _ in spans[:-1]] == list(range(0, max(0, total - size), offset))
    assert len(set(spans)) == len(spans)


def test_a_document_of_8192_tokens_has_nine_segments() -> None:
    assert len(segments(8192, 2048, 768)) == math.ceil((8192 - 2048) / 768) + 1 == 9


# --- what is learned -------------------------------------------------------------------------------------------------


def plain_loss(model: Any, ids: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(input_ids=ids[None], use_cache=False).logits[0, :-1], ids[1:])


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gemma2", "gpt_oss", "falcon", "phi3"])
def test_the_loss_and_its_gradient_are_the_plain_models(family: str) -> None:
    config = {"mistral": {"sliding_window": 12}, "gemma2": {"sliding_window": 12}}.get(family, {})
    plain = tiny_model(family, layers=2, **config).requires_grad_(True)
    ours = copy.deepcopy(plain)
    adapter.install(ours)
    if plain._can_set_attn_implementation():
        plain.set_attn_implementation("eager")
    ids = harness.tokens(30, seed=2)
    with torch.enable_grad():
        one, two = plain_loss(plain, ids), adapter.loss(ours, ids, KVCache.dense(2, expected=30))
        one.backward()
        two.backward()
    assert abs(float(one.detach()) - float(two.detach())) < 1e-4
    for (name, a), b in zip(plain.named_parameters(), ours.parameters(), strict=True):
        if name.endswith("sinks"):
            continue  # constants to our attention
        assert a.grad is not None
        assert largest_difference(a.grad, b.grad) < 2e-3 * float(a.grad.abs().max()) + 1e-6, name


def stepped(gradients: list[Tensor], lr: float) -> list[Tensor]:
    """What AdamW's first step subtracts, from gradients clipped to a norm of 1 together; decay left out."""
    norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients))
    clipped = [g * min(1.0, 1.0 / (norm + 1e-6)) for g in gradients]
    return [lr * g / (g.abs() + 1e-8) for g in clipped]


def expected_logits(plain: Any, method: Lift, ids: Tensor, seed: int) -> Tensor:
    """Logits of the unmodified model after one step on the whole text, written out for both kinds of tuning."""
    model = copy.deepcopy(plain).requires_grad_(True)
    with torch.enable_grad():
        plain_loss(model, ids).backward()
    embedding = model.get_input_embeddings().weight
    with torch.no_grad():
        if method.tune == "full":
            weights = [p for p in model.base_model.parameters() if p is not embedding]
            steps = stepped([p.grad for p in weights if p.grad is not None], method.lr)
            for weight, step in zip(weights, steps, strict=True):
                weight.copy_(weight * (1 - method.lr * 1e-4) - step)
        else:
            draws, factor = torch.Generator().manual_seed(seed), method.alpha / method.rank
            maps = [m for m in model.base_model.modules() if isinstance(m, nn.Linear)]
            downs = []
            for m in maps:
                wide = m.weight.shape[1]
                downs.append((torch.rand(wide, method.rank, generator=draws) * 2 - 1) / math.sqrt(wide))
            grads = [down.T @ m.weight.grad.T * factor for m, down in zip(maps, downs, strict=True)]
            for m, down, step in zip(maps, downs, stepped(grads, method.lr), strict=True):
                m.weight += (down * (1 - method.lr * 1e-4) @ -step).T * factor
        result: Tensor = model(input_ids=ids[None], use_cache=False).logits[0]
        return result


@pytest.mark.parametrize("tune", ["lora", "full"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_one_step_is_adamw_on_the_plain_model(family: str, tune: str) -> None:
    pair = harness.models(family)
    ours = copy.deepcopy(pair.ours)
    before = fingerprint(ours)
    method = resolve(f"lift@epochs=1,lr=0.002,rank=4,alpha=8,tune={tune}")
    assert isinstance(method, Lift)
    ids = harness.tokens(40, seed=4)
    expected = expected_logits(pair.plain, method, ids, seed=11)
    with method.adapt(ours, ids.tolist(), 11):
        cache = method.prefill_cache(SHAPE, len(ids))
        logits = adapter.forward(ours, ids[None], torch.arange(len(ids))[None], [cache], all_logits=True)[0]
    assert largest_difference(logits, expected) < 2e-2
    with torch.inference_mode():
        untouched = pair.plain(input_ids=ids[None]).logits[0]
    assert largest_difference(expected, untouched) > 0.5
    assert fingerprint(ours) == before


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_the_text_is_learned(tune: str) -> None:
    """Loss falls epoch by epoch, and most of the text is then foretold, which it was not."""
    loaded, ids = loaded_tiny(layers=2), harness.tokens(60, seed=5)
    method = resolve(f"lift@segment=60,offset=60,epochs=80,lr=0.005,tune={tune}")

    def foretold() -> float:
        cache = KVCache.dense(2, expected=60)
        positions = torch.arange(60)[None]
        logits = adapter.forward(loaded.model, ids[None], positions, [cache], all_logits=True)[0]
        return float((logits[:-1].argmax(dim=-1) == ids[1:]).float().mean())

    before = foretold()
    with method.adapt(loaded.model, ids.tolist(), 1) as losses:
        assert losses[0] > losses[5] > losses[-1]
        assert foretold() > 0.9 > 0.3 > before
    assert foretold() == before


def test_the_text_is_learned_uncut(tmp_path: Path) -> None:
    """What the cut prompt does not hold is in the lesson, and the question is not."""
    loaded = loaded_tiny()
    full, lift = prepared(loaded, [resolve("full"), resolve(QUICK)], tmp_path, max_input_tokens=30, wanted=(2,))
    (prompt,), (plain,) = lift.prompts, full.prompts
    assert list(prompt.ids) == list(plain.ids)
    assert len(prompt.ids) <= 30
    text = Texts().load(tmp_path).rows[2].fields["text"]
    assert loaded.tokenizer.decode(list(prompt.lesson), skip_special_tokens=True) == text
    assert len(prompt.lesson) > 60
    assert list(plain.lesson) == []
    assert lift.sha256 != full.sha256


# --- and nothing stays -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["lift@epochs=0", "lift@lr=0,segment=24,offset=9,epochs=1"])
@pytest.mark.parametrize("tune", ["lora", "full"])
def test_without_learning_it_is_the_full_method(tmp_path: Path, spec: str, tune: str) -> None:
    loaded = loaded_tiny()
    name = resolve(f"{spec},tune={tune}").id
    records, _ = answered(loaded, ["full", f"{spec},tune={tune}"], tmp_path / "run", max_input_tokens=40)
    for row, record in records["full"].items():
        other = records[name][row]
        assert (other.pred, other.kv_bytes, other.kept_tokens) == (record.pred, record.kv_bytes, record.kept_tokens)
        assert record.pred


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_samples_leave_no_trace(tmp_path: Path, tune: str) -> None:
    loaded = loaded_tiny()
    before = fingerprint(loaded.model)
    spec = f"{QUICK},tune={tune}"
    name = resolve(spec).id
    together, _ = answered(loaded, ["full", spec], tmp_path / "together")
    assert fingerprint(loaded.model) == before
    plain, _ = answered(loaded, ["full"], tmp_path / "plain")
    assert {r: x.pred for r, x in plain["full"].items()} == {r: x.pred for r, x in together["full"].items()}
    for i in range(3):
        alone, _ = answered(loaded, [spec], tmp_path / f"alone{i}", wanted=(i,))
        assert alone[name][f"r{i}"] == together[name][f"r{i}"]
    assert any(together[name][row].pred != together["full"][row].pred for row in together[name])
    assert fingerprint(loaded.model) == before


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_a_failing_sample_leaves_no_trace(tmp_path: Path, tune: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, calls, real = loaded_tiny(), [], adapter.loss
    before = fingerprint(loaded.model)

    def loss(*arguments: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("no luck")
        return real(*arguments)

    monkeypatch.setattr(adapter, "loss", loss)
    spec = f"{QUICK},tune={tune}"
    records, outcome = answered(loaded, [spec], tmp_path / "run")
    assert outcome.failed == 1
    assert [r.error for r in records[resolve(spec).id].values() if r.status == "error"] == ["RuntimeError: no luck"]
    assert fingerprint(loaded.model) == before


def test_a_text_of_one_token_is_not_learned() -> None:
    loaded = loaded_tiny(layers=2)
    for lesson in ([], [5]):
        with resolve(QUICK).adapt(loaded.model, lesson, 0) as losses:
            assert losses == []


# --- refusals --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="float16") as error:
        resolve("lift").check(replace(SHAPE, dtype=torch.float16))
    assert "--dtype" in error.value.next_step
    resolve("lift").check(replace(SHAPE, dtype=torch.bfloat16))
    quantized = replace(loaded_tiny().info, load_in="4bit")
    with pytest.raises(ModelError, match="held in 4bit"):
        resolve("lift@tune=full").bind(quantized, tmp_path)
    assert resolve("lift").bind(quantized, tmp_path) == resolve("lift")
    with pytest.raises(BadValue, match="would not be learned"):
        resolve("lift@segment=100,offset=101")
    with pytest.raises(ModelError, match="learns from each prompt"):
        check_bench(loaded_tiny().info, resolve("lift"))
