"""Prompts that begin alike are read once, in pieces that are the same for everyone; chunks change nothing either."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from made_up import LIMITS, Words, counted_passes, go

from lcbench.config.spec import ModelSpec, RunSpec
from lcbench.engine.answer import Answerer
from lcbench.engine.estimate import MachineRates, estimate
from lcbench.engine.generate import prefill
from lcbench.engine.groups import make_groups
from lcbench.engine.options import Options
from lcbench.engine.prefix import Beginnings
from lcbench.engine.prepare import prepare
from lcbench.kv.observe import ColumnSums, LastQueries, Observation
from lcbench.kv.query_statistics import QueryStatistics
from lcbench.kv.record import PrefillRecord
from lcbench.kv.rope import LayerRope
from lcbench.kv.rotation import Rotation
from lcbench.methods.registry import resolve
from lcbench.models.info import LoadedModel
from lcbench.tasks.base import Loaded, Prompt, Row
from tiny import loaded_tiny

WISHES: tuple[Observation, ...] = (
    LastQueries(8),
    LastQueries(1),
    ColumnSums(),
    QueryStatistics(4),
    LayerRope(),
    Rotation(),
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def tokens(seed: int, count: int) -> list[int]:
    return torch.randint(0, 256, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def assert_same(one: PrefillRecord, other: PrefillRecord, tolerance: float) -> None:
    """Keys, values, logits and everything observed."""
    assert (one.logits - other.logits).abs().max() <= tolerance
    for a, b in zip(one.cache.layers, other.cache.layers, strict=True):
        for x, y in zip(a.tensors(), b.tensors(), strict=True):
            assert x.shape == y.shape
            assert (x - y).abs().max() <= tolerance
    assert one.observed.keys() == other.observed.keys()
    for wish, layers in one.observed.items():
        for a, b in zip(layers, other.observed[wish], strict=True):
            for x, y in zip(_numbers(a), _numbers(b), strict=True):
                assert x.shape == y.shape, wish
                assert (x - y).abs().max() <= tolerance * max(1.0, float(y.abs().max())), wish


def _numbers(thing: object) -> list[torch.Tensor]:
    if isinstance(thing, torch.Tensor):
        return [thing.float()]
    return [v.float() for v in vars(thing).values() if isinstance(v, torch.Tensor)] if thing is not None else []


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3"])
@pytest.mark.parametrize("chunk", [1, 7, 64, 99])
def test_a_prompt_in_chunks_is_the_prompt_at_once(kind: str, chunk: int) -> None:
    loaded = loaded_tiny(kind, **({"sliding_window": 40} if kind == "mistral" else {}))
    ids = tokens(1, 100)
    assert_same(prefill(loaded, ids, observe=WISHES, chunk=chunk), prefill(loaded, ids, observe=WISHES), 2e-4)


def beginnings() -> Beginnings:
    return Beginnings(2**30)


def test_a_shared_beginning_is_read_once_and_changes_nothing() -> None:
    loaded = loaded_tiny()
    stem = tokens(1, 90)
    first, second = stem + tokens(2, 30), stem + tokens(3, 41)
    held = beginnings()
    with counted_passes(loaded) as passes:
        prefill(loaded, first, observe=WISHES, cuts=(90,), beginnings=held)
        again = prefill(loaded, second, observe=WISHES, cuts=(90,), beginnings=held)
    assert passes == [90, 30, 41]
    assert held.taken == 90
    cold = prefill(loaded, second, observe=WISHES, cuts=(90,), beginnings=beginnings())
    assert_same(again, cold, 0.0)  # bit by bit: what ran before does not show
    assert_same(again, prefill(loaded, second, observe=WISHES), 2e-4)
    (unchanged, *_) = [prefill(loaded, first, observe=WISHES, cuts=(90,), beginnings=held)]
    assert_same(unchanged, prefill(loaded, first, observe=WISHES, cuts=(90,), beginnings=beginnings()), 0.0)


def test_beginnings_of_beginnings_and_other_wishes() -> None:
    loaded = loaded_tiny()
    stem, more = tokens(1, 70), tokens(2, 80)
    held = beginnings()
    prefill(loaded, [*stem, *more, *tokens(3, 20)], observe=WISHES, cuts=(70, 150), beginnings=held)
    with counted_passes(loaded) as passes:
        deep = prefill(loaded, [*stem, *more, *tokens(4, 30)], observe=WISHES, cuts=(70, 150), beginnings=held)
        prefill(loaded, [*stem, *tokens(5, 30)], observe=WISHES, cuts=(70,), beginnings=held)
        prefill(loaded, [*stem, *tokens(5, 30)], observe=WISHES[:1], cuts=(70,), beginnings=held)
    assert passes == [30, 30, 70, 30]  # other observers have not watched that beginning
    assert_same(deep, prefill(loaded, [*stem, *more, *tokens(4, 30)], observe=WISHES), 3e-4)


def test_what_is_held_is_bounded() -> None:
    loaded = loaded_tiny()
    size = loaded.shape().full_bytes(50)
    held = Beginnings(int(2.5 * size))
    for seed in range(5):
        prefill(loaded, tokens(seed, 60), cuts=(50,), beginnings=held)
    assert held.nbytes == 2 * size
    tiny = Beginnings(size - 1)
    prefill(loaded, tokens(0, 60), cuts=(50,), beginnings=tiny)
    assert tiny.nbytes == 0
    assert Beginnings(2**30, entries=1).nbytes == 0


@dataclass(frozen=True)
class OneText(Words):
    """Four questions on one text, and one on another."""

    name = "onetext"

    def load(self, home: Path, limit: int | None = None) -> Loaded:
        text = "the same words again and again, " * 6
        rows = [Row(f"r{i}", {"text": text + f"question {i}" + "?" * (20 + i)}, ("a",), length=9) for i in range(4)]
        return Loaded([Row("other", {"text": "other words " * 9}, ("a",), length=9), *rows])

    def prompt(self, row: Row, home: Path) -> Prompt:
        return Prompt(row.fields["text"])


METHODS = ("full", "snapkv@window=8,budget=0.3", "h2o@budget=0.3", "expected-attention@budget=0.5", "tova@budget=0.4")


def test_a_run_reads_the_common_text_once_and_answers_as_without(tmp_path: Path) -> None:
    loaded = loaded_tiny()
    methods = [resolve(m) for m in METHODS]
    with counted_passes(loaded) as passes:
        _, shared = go(loaded, tmp_path / "shared", methods, task=OneText())
    total = sum(r.prompt_tokens for r in shared.records("full", "onetext"))
    read = sum(n for n in passes if n > 1)
    assert total - read == 3 * _cut(loaded)
    apart = answers(loaded, reuse=False)
    for m in shared.methods:
        for record in shared.records(m, "onetext"):
            assert record == apart[m, record.id]


@dataclass(frozen=True)
class ThreeTexts(Words):
    """Four questions on each of three texts of nearly the same length, in turn."""

    name = "threetexts"

    def load(self, home: Path, limit: int | None = None) -> Loaded:
        texts = [f"{word} again and again, " * 12 for word in ("one thing", "two things", "a third")]
        rows = [
            Row(f"t{t}q{q}", {"text": f"{text}{q} is asked here" + "?" * (4 * q + t)}, ("a",), length=9)
            for q in range(4)
            for t, text in enumerate(texts)
        ]
        return Loaded(rows)

    def prompt(self, row: Row, home: Path) -> Prompt:
        return Prompt(row.fields["text"])


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8])
def test_texts_are_read_once_though_their_questions_lie_in_several_groups(tmp_path: Path, rows: int) -> None:
    loaded, task, limits = loaded_tiny(), ThreeTexts(), replace(LIMITS, rows=rows)
    with counted_passes(loaded) as passes:
        go(loaded, tmp_path / "run", [resolve("full")], task=task, limits=limits)
    read = sum(n for n in passes if n > 1)
    spec = RunSpec(model=ModelSpec(name="tiny"))
    texts = [(task, task.load(Path()))]
    sets = prepare(spec, loaded.info, loaded.tokenizer, [resolve("full")], texts, Path())
    groups = make_groups(sets, loaded.shape(), limits)
    assert read == estimate(loaded.info, sets, groups, MachineRates(1.0, 1.0)).read_tokens
    cuts = {p: cut[-1] for group in groups for p, cut in zip(group.prompts, group.cuts, strict=True)}
    assert len(cuts) == 12
    once = sum(cuts.values()) / 4 + sum(sets[0].prompts[p].tokens - cut for p, cut in cuts.items())
    # The group that needs most comes first; where it is not the first of its text, one text is read twice.
    assert once - 1 <= read <= once + max(cuts.values()) + 1


def _cut(loaded: LoadedModel) -> int:
    """Tokens that the four questions on one text share, by the plan."""
    task = OneText()
    spec = RunSpec(model=ModelSpec(name="tiny"))
    sets = prepare(
        spec, loaded.info, loaded.tokenizer, [resolve(m) for m in METHODS], [(task, task.load(Path()))], Path()
    )
    groups = make_groups(sets, loaded.shape(), LIMITS)
    cuts = {p: cut for group in groups for p, cut in zip(group.prompts, group.cuts, strict=True)}
    assert cuts[0] == ()
    ((cut,),) = {cuts[i] for i in range(1, 5)}
    assert cut > 190
    return cut


def answers(loaded: LoadedModel, *, reuse: bool) -> dict[tuple[str, str], object]:
    task = OneText()
    spec = RunSpec(model=ModelSpec(name="tiny"))
    sets = prepare(
        spec, loaded.info, loaded.tokenizer, [resolve(m) for m in METHODS], [(task, task.load(Path()))], Path()
    )
    groups = make_groups(sets, loaded.shape(), replace(LIMITS, rows=1), reuse=reuse)
    answerer = Answerer(loaded, sets, Options())
    return {(r.method, r.record.id): r.record for group in groups for r in answerer.run(group)}


@pytest.mark.parametrize("kind", ["llama", "gpt_oss"])
@pytest.mark.parametrize("name", ["flexgen", "kivi@bits=4,residual_length=32"])
def test_in_chunks_codes_differ_only_at_borders(kind: str, name: str) -> None:
    """Where rounding puts a value beyond the border of two codes: rarely, and then by a single step."""
    loaded, method = loaded_tiny(kind), resolve(name)
    records = [prefill(loaded, tokens(2, 160), chunk=chunk) for chunk in (None, 53)]
    assert (records[0].layer(3).key - records[1].layer(3).key).abs().max() > 0  # rounding is there
    caches = [method.compress(record) for record in records]
    differing = elements = 0
    for i, (one, other) in enumerate(zip(*(cache.layers for cache in caches), strict=True)):
        exact = records[0].layer(i)
        for held, again, true in zip(
            zip(*one.restored(), strict=True),
            zip(*other.restored(), strict=True),
            (exact.key, exact.value),
            strict=True,
        ):
            a, b = torch.stack(held), torch.stack(again)
            step = (true.amax(dim=(1, 2)) - true.amin(dim=(1, 2))) / 15  # of a group it is no more
            assert ((a - b).abs() <= 1.01 * step[:, None, None] + 1e-3).all()
            differing += int(((a - b).abs() > 1e-3).sum())
            elements += a.numel()
    assert differing <= elements / 400
