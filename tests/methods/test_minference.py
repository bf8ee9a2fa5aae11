"""What minference shows beyond the harness: the prompt itself, pieces, and patterns that are found or taken over."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import explicit_model
import harness
import memory_oracle as oracle
import pytest
import torch
from cases_memory import PATTERNS, SMALL, with_patterns
from harness import HEADS, KV_HEADS, LAYERS, SHAPE, largest_difference, models, tokens
from torch import Tensor

from lcbench.engine import calibrate_minference as search
from lcbench.engine.calibrate import CALIBRATORS
from lcbench.errors import CorruptFile, ModelError, UsageError
from lcbench.kv.layer import DenseLayer
from lcbench.methods.memory.minference import Looks, MInference, Pattern, line_sums
from lcbench.methods.registry import resolve
from lcbench.models import adapter
from lcbench.models.rule import AttentionRule
from tiny import save_tiny


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with harness.one_thread():
        yield


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_the_prompt_too_equals_the_reference(family: str) -> None:
    pair, method = models(family), with_patterns(resolve(f"minference@{SMALL}"))
    ids = tokens(80, seed=1)
    expected = explicit_model.logits(pair.plain, ids, oracle.minference(pair, method, 80, PATTERNS))
    cache = method.prefill_cache(SHAPE, 80)
    logits = adapter.forward(pair.ours, ids[None], torch.arange(80)[None], [cache], all_logits=True)[0]
    assert largest_difference(logits, expected) < 1e-4
    full = explicit_model.logits(pair.plain, ids, explicit_model.dense(pair))
    assert largest_difference(expected, full) > 0.1


def test_what_is_left_is_an_ordinary_cache() -> None:
    pair, method = models("llama"), with_patterns(resolve(f"minference@{SMALL}"))
    left = method.compress(harness.prefill(pair, tokens(60), method))
    assert all(type(layer) is DenseLayer for layer in left.layers)
    assert left.nbytes == left.storage_nbytes == SHAPE.full_bytes(60)


def test_a_prompt_in_pieces_is_refused() -> None:
    pair, method = models("llama"), with_patterns(resolve("minference"))
    with pytest.raises(UsageError, match="in pieces") as error:
        harness.prefill(pair, tokens(60), method, chunk=30)
    assert "--prefill-chunk" in error.value.next_step


def test_line_sums_add_up_to_the_queries() -> None:
    generator = torch.Generator().manual_seed(3)
    query, key = (torch.randn(n, t, 32, generator=generator) for n, t in ((HEADS, 10), (KV_HEADS, 50)))
    down, along = line_sums(query, key, AttentionRule(0.2))
    assert torch.allclose(down.sum(dim=1), torch.full((HEADS,), 10.0), atol=1e-4)
    assert torch.allclose(along.sum(dim=1), torch.full((HEADS,), 10.0), atol=1e-4)
    assert bool((along[:, 49] > 0).all())  # the last query on the first key
    assert float(down[:, 49].max()) <= 1.0


def test_another_models_patterns_are_refused() -> None:
    other = with_patterns(resolve("minference"), PATTERNS[:-1])
    with pytest.raises(ModelError, match="patterns are not those of a model of 4 layers of 8 heads") as error:
        other.check(SHAPE)
    assert "lcbench calibrate minference" in error.value.next_step
    with pytest.raises(ModelError, match="no minference calibration"):
        resolve("minference").check(SHAPE)
    resolve("minference@pattern=a-shape").check(SHAPE)  # needs none


# --- the search ------------------------------------------------------------------------------------------------------


def planted(kind: str, total: int = 256) -> tuple[Tensor, Tensor]:
    """Query ``[1, T, 8]`` and key ``[1, T, 8]`` of a head that looks one way, and hardly another."""
    query, key = torch.zeros(1, total, total), torch.zeros(1, total, total)
    place = torch.arange(total)
    if kind == "columns":  # everybody looks at 40 columns spread over the text
        columns = place[20::6][:40]
        query[0, :, 0] = 1
        key[0, columns, 0] = 12
    elif kind == "diagonals":  # everybody looks back by the same 20 distances
        for distance in range(60, 80):
            rows = place[distance:]
            query[0, rows, rows - distance] = 12
        key[0, place, place] = 1
    else:  # the newest tokens and the first ones
        for distance in range(20):
            rows = place[distance:]
            query[0, rows, rows - distance] = 12
        key[0, place, place] = 1
    return query, key


@pytest.mark.parametrize(
    ("kind", "found"), [("columns", "vertical-slash"), ("diagonals", "vertical-slash"), ("window", "a-shape")]
)
def test_the_search_finds_planted_patterns(kind: str, found: str) -> None:
    query, key = planted(kind)
    candidates = [
        Pattern("a-shape", 3, 24),
        Pattern("vertical-slash", 80, 8 if kind == "window" else 40),
        Pattern("block-sparse", 1, 0),
    ]
    watcher = search._Recall(1, candidates)
    watcher.observe(0, query, key, key, 0, None, AttentionRule(1.0))
    recall = watcher.results[0][0]
    assert candidates[int(recall.argmax())].kind == found
    assert 0.9 < float(recall.max()) <= 1.0 + 1e-6


def test_recall_is_the_share_that_is_seen() -> None:
    query, key = planted("columns", 64)
    rule, pattern = AttentionRule(1.0), Pattern("a-shape", 30, 5)
    watcher = search._Recall(1, [pattern, Pattern("a-shape", 0, 64)])
    watcher.observe(0, query, key, key, 0, None, rule)
    seen = Looks(MInference(), [pattern], query, key, rule).rows(0, 64)[0]
    logits = (query[0] @ key[0].T).masked_fill(torch.ones(64, 64).triu(1).bool(), -torch.inf)
    expected = (torch.softmax(logits, dim=-1) * seen)[32:].sum(dim=-1).mean()
    assert torch.allclose(watcher.results[0][0], torch.tensor([float(expected), 1.0]), atol=1e-5)


def test_sizes_follow_the_length_of_the_text() -> None:
    assert search.scaled(100_000) == [Pattern(*candidate) for candidate in search.CANDIDATES]
    assert search.scaled(1024)[:2] == [Pattern("a-shape", 12, 100), Pattern("vertical-slash", 4, 100)]


# --- the command -----------------------------------------------------------------------------------------------------


def stored(home: Path) -> dict[str, Any]:
    (file,) = (home / "calibration").glob("*/minference.json")
    return json.loads(file.read_text())  # type: ignore[no-any-return]


def test_calibrate_and_run(cli: Callable[..., Any], own_home: Path, tmp_path: Path) -> None:
    assert "minference" in CALIBRATORS
    model = save_tiny(tmp_path / "model", layers=2, heads=4, kv_heads=2, head_dim=16)
    run = ("run", "--model", model, "--method", "minference", "--task", "passkey@lengths=40,depths=1,repeats=1")
    refused = cli(*run)
    assert refused.code == 2
    assert "There is no minference calibration" in refused.err
    assert "lcbench calibrate minference --model" in refused.err
    done = cli("calibrate", "minference", "--model", model, "--lengths", "200", "--samples", "2", "--json")
    assert done.code == 0, done.err
    found = stored(own_home)
    assert len(found["data"]["patterns"]) == 2
    assert all(len(layer) == 4 and 0 < head[3] <= 1 for layer in found["data"]["patterns"] for head in layer)
    assert (found["provenance"]["tokens_each"], found["provenance"]["sequences"]) == (200, 2)
    assert len(found["provenance"]["text_sha256"]) == 64
    answered = cli(*run, "--out", tmp_path / "run")
    assert answered.code == 0, answered.err
    whole = json.loads((tmp_path / "run" / "run.json").read_text())
    assert len(whole["provenance"]["methods"]["minference"]["calibration_sha256"]) == 64


def test_a_published_file_is_taken_over(cli: Callable[..., Any], own_home: Path, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model", layers=2, heads=4, kv_heads=2, head_dim=16)
    layer = {
        "1": ["vertical_and_slash", 1000, 6096, 0.9],
        "0": ["stream_llm", 128, 896, 1],
        "2": ["block_sparse", 8, 1, 1],
        "3": ["vertical_and_slash", 30, 800, 33.5],
    }
    theirs = [layer, layer]
    (tmp_path / "best.json").write_text(json.dumps(theirs))
    done = cli("calibrate", "minference", "--model", model, "--from", tmp_path / "best.json")
    assert done.code == 0, done.err
    assert stored(own_home)["data"]["patterns"][0] == [
        ["a-shape", 128, 896, 1],
        ["vertical-slash", 1000, 6096, 0.9],
        ["block-sparse", 100, 0, 1],
        ["vertical-slash", 30, 800, 33.5],
    ]


@pytest.mark.parametrize(
    "content", ["", "[]x", "{}", "[1]", '[{"0": ["odd", 1, 2, 3]}]', '[{"0": ["stream_llm", 1]}]', '[{"x": []}]']
)
def test_a_file_of_something_else_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "best.json").write_text(content)
    with pytest.raises((CorruptFile, ModelError), match=r"best\.json"):
        search.read_patterns(tmp_path / "best.json", 1, 1)


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "best.json").write_text(json.dumps([{"0": ["stream_llm", 1, 2, 3]}]))
    with pytest.raises(ModelError, match="2 layers of 1 heads"):
        search.read_patterns(tmp_path / "best.json", 2, 1)
    assert search.read_patterns(tmp_path / "best.json", 1, 1)[0] == [[["a-shape", 1, 2, 3]]]


def test_layers_of_the_tiny_models_differ() -> None:
    assert len({tuple(map(tuple, layer)) for layer in PATTERNS}) == LAYERS
