"""END: the prober on made-up features, its training on a tiny model, and which chunks stay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lcbench.config.spec import ModelSpec
from lcbench.engine.calibrate import Request, calibrate
from lcbench.engine.calibrate_end import choose, examples, sweep
from lcbench.errors import BadValue, ModelError
from lcbench.methods.calibration import load_tensors
from lcbench.methods.passages import split
from lcbench.methods.probing import auroc, fit, probability
from lcbench.methods.prompt.end import END
from lcbench.methods.rewriting import PromptText
from lcbench.models.load import load
from tiny import loaded_tiny, save_tiny


def features(count: int, *, shift: float) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    labels = torch.rand(count, generator=draw) < 0.25
    states = torch.randn(count, 24, generator=draw) * 3 + 1
    states[labels, :4] += shift
    return states, labels


def test_a_prober_finds_what_can_be_told_apart_and_nothing_else() -> None:
    states, labels = features(600, shift=8.0)
    prober = fit(states[:400], labels[:400])
    assert auroc(probability(states[400:], prober), labels[400:]) > 0.99
    shuffled = labels[torch.randperm(600, generator=torch.Generator().manual_seed(1))]
    nothing = fit(states[:400], shuffled[:400])
    assert auroc(probability(states[400:], nothing), shuffled[400:]) == pytest.approx(0.5, abs=0.12)
    assert auroc(torch.tensor([0.1, 0.5, 0.5, 0.9]), torch.tensor([False, False, True, True])) == 0.875


def test_the_earliest_layer_that_is_nearly_the_best_is_taken() -> None:
    states, labels = features(400, shift=8.0)
    noise = torch.randn(400, 24, generator=torch.Generator().manual_seed(9))
    held_out = torch.arange(400) % 4 == 3
    result = choose([2, 5, 9], [noise, states, states], labels, held_out)
    assert result.layer == 5
    assert result.recall >= 0.98
    assert result.dropped > 0.9
    assert sweep(32) == [2, 4, 8, 12, 16]
    assert sweep(2) == [1, 2]


def test_training_texts_hold_both_kinds_of_chunks(tmp_path: Path) -> None:
    found = examples(tmp_path, 8, (400, 500), 7)
    assert found == examples(tmp_path, 8, (400, 500), 7)
    assert found != examples(tmp_path, 8, (400, 500), 8)
    for source in range(8):
        chunks = [one.wanted for one in found if one.source == source]
        assert 1 <= sum(chunks) <= 2  # a needle on a border stands in both, or in one
        assert len(chunks) > 2


@pytest.mark.parametrize("samples", [8, 16, 40])
def test_texts_of_both_kinds_are_held_out(tmp_path: Path, samples: int) -> None:
    found = examples(tmp_path, samples, (500,), 0)
    for held_out in (True, False):
        kinds = {(one.kind, one.wanted) for one in found if one.held_out is held_out}
        assert kinds == {("passkey", True), ("passkey", False), ("key-value", True), ("key-value", False)}
    assert {one.kind for one in found if "pass key" in one.text.lower()} == {"passkey"}


def test_a_model_that_cannot_be_calibrated_is_refused_at_once(tmp_path: Path) -> None:
    from lcbench.models.info import ModelInfo

    mamba = replace(loaded_tiny().info, state=object())  # type: ignore[arg-type]
    assert isinstance(mamba, ModelInfo)
    with pytest.raises(ModelError, match="cache of another kind"):
        END().bind(mamba, tmp_path)
    assert END(threshold=0.0).bind(mamba, tmp_path).id


def test_calibrated_and_used(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", layers=2)
    spec = ModelSpec(name=str(folder), device="cpu", chat="none")
    request = Request("end", spec, tmp_path / "home", samples=8, lengths=(400,))
    (made,) = calibrate(request, say=lambda text: None, progress=lambda what, done, total: None)
    assert "AUROC" in made.summary
    loaded = load(spec, tmp_path / "home")
    stored = load_tensors("end", loaded.info, tmp_path / "home")
    assert stored.provenance["samples"] == 8
    assert set(stored.provenance["auroc"]) == {"1", "2"}
    assert set(stored.provenance["recall_by_kind"]) == {"passkey", "key-value"}
    assert all(0 <= share <= 1 for share in stored.provenance["recall_by_kind"].values())
    assert int(stored.tensors["layer"]) in (1, 2)
    method = END(rate=0.5).bind(loaded.info, tmp_path / "home")
    assert method.calibration == stored.sha256
    assert method.depends_on["calibration"] == stored.sha256  # type: ignore[attr-defined]
    text = "\n".join(f"Passage {i}:\n" + f"ka lo mi {i} " * 12 for i in range(1, 9))
    prompt = PromptText(f"Read.\n{text}\nAsk?", (6, 6 + len(text)), "Ask?")
    with torch.inference_mode():
        half = method.rewrite(prompt, loaded)  # type: ignore[attr-defined]
        everything = replace(END(), threshold=1e-9).bind(loaded.info, tmp_path / "home").rewrite(prompt, loaded)  # type: ignore[attr-defined]
    chunks = split(text, 180)
    assert len(chunks) == 8
    staying = [chunk for chunk in chunks if chunk in half]
    assert half == "".join(staying)
    assert 3 <= len(staying) <= 4
    assert everything == text
    short = "\n".join(f"Passage {i}:\n" + f"ka lo mi {i} " * 12 for i in range(1, 4))
    with torch.inference_mode():  # a share is a share of few chunks, too
        left = method.rewrite(PromptText(f"Read.\n{short}\nAsk?", (6, 6 + len(short)), "Ask?"), loaded)  # type: ignore[attr-defined]
    assert left in split(short, 180)
    with pytest.raises(ModelError, match="no end calibration") as caught:
        END().bind(loaded.info, tmp_path / "elsewhere")
    assert "lcbench calibrate end" in caught.value.next_step
    assert END(threshold=0.0).idle
    assert END(threshold=0.0).bind(loaded.info, tmp_path / "elsewhere").calibration == ""
    with pytest.raises(BadValue, match="too few"):
        calibrate(replace(request, samples=4), say=print, progress=lambda what, done, total: None)


@pytest.mark.parametrize(("lengths", "why"), [((150,), "too short"), ((400, 30_000), "more than 10000 words")])
def test_texts_that_cannot_be_used_are_known_before_the_model_is(
    tmp_path: Path, lengths: tuple[int, ...], why: str
) -> None:
    nowhere = ModelSpec(name=str(tmp_path / "no such model"), device="cpu")
    request = Request("end", nowhere, tmp_path, samples=8, lengths=lengths)
    with pytest.raises(BadValue, match=why) as caught:
        calibrate(request, say=lambda text: None, progress=lambda what, done, total: None)
    assert caught.value.next_step


def test_which_chunks_stay() -> None:
    values, sizes = [0.9, 0.1, 0.6, 0.2, 0.7], [10, 10, 10, 10, 10]
    assert END(keep=1).staying(values, sizes, 0.65) == [0, 4]
    assert END(keep=3).staying(values, sizes, 0.95) == [0, 2, 4]
    assert END(rate=0.4).staying(values, sizes, 0.0) == [0, 4]
    assert END(rate=0.01).staying(values, sizes, 0.0) == [0]


def test_passages_lose_nothing() -> None:
    plain = "\n\n".join("One two three four five. " * 40 for _ in range(6))
    for text in (plain, "x" * 5000, "山水。" * 900, "Passage 1:\nka\nPassage 2:\nlo", "", "a b"):
        assert "".join(split(text, 50)) == text
    assert split("Passage 1:\nka\n\nPassage 2:\nlo", 50) == ["Passage 1:\nka\n\n", "Passage 2:\nlo"]
    assert max(len(piece.split()) for piece in split(plain, 50)) <= 100
