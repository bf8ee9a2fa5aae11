"""Head scores: probes hide what they say, and scores equal a second computation from eager attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lcbench.engine import head_scores
from lcbench.engine.head_scores import HeadScores, Probe, measure, probes, word_f1
from lcbench.errors import ModelError
from lcbench.models.info import LoadedModel
from tiny import loaded_tiny, tiny_model

ALPHABET = (40, 41, 42, 43, 44)
TINY = {"layers": 3, "heads": 4, "kv_heads": 2, "head_dim": 16, "hidden": 32}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def speak_only(model: Any) -> Any:
    """The model can write nothing but the alphabet, so that copies happen."""
    with torch.no_grad():
        keep = torch.zeros(model.lm_head.weight.shape[0], 1)
        keep[list(ALPHABET)] = 1
        model.lm_head.weight.mul_(keep)
        model.lm_head.weight[list(ALPHABET)] += 0.001  # none of them stays behind the silent ones
    return model


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return loaded_tiny("llama", **TINY)


@pytest.mark.parametrize("kind", ["retrieval", "reasoning"])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_scores_equal_those_of_eager_attention(kind: Any, family: str) -> None:
    extra = {"sliding_window": 20} if family == "mistral" else {}
    ours = loaded_tiny(family, **TINY, **extra)
    speak_only(ours.model)
    plain = speak_only(tiny_model(family, **TINY, **extra))
    plain.set_attn_implementation("eager")
    generator = torch.Generator().manual_seed(3)
    prompt = [ALPHABET[i] for i in torch.randint(0, len(ALPHABET), (50,), generator=generator)]
    probe = Probe(prompt, frozenset(range(20, 45)), "x", 24)
    scores, answer = head_scores._ask(ours, kind, probe)

    expected = torch.zeros(3, 4, dtype=torch.float64)
    ids, written = list(prompt), []
    for _ in range(probe.steps):
        with torch.inference_mode():
            out = plain(input_ids=torch.tensor([ids]), output_attentions=True)
        token = int(out.logits[0, -1].argmax())
        for layer in range(3):
            for head in range(4):
                row = out.attentions[layer][0, head, -1].tolist()
                order = sorted(range(len(row)), key=lambda j: (-row[j], j))
                if kind == "retrieval":
                    hit = order[0] in probe.needle and ids[order[0]] == token
                    expected[layer, head] += hit / len(probe.needle)
                else:
                    near = [row[j] for j in order[: len(probe.needle)] if j in probe.needle]
                    expected[layer, head] += sum(near) / len(probe.needle)
        ids.append(token)
        written.append(token)
    assert answer == ours.tokenizer.decode(written)
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=1e-4)
    assert 0 < (scores > 0).sum() <= scores.numel()
    assert len({round(s, 8) for s in scores.flatten().tolist()}) > 1


@pytest.mark.parametrize("kind", ["retrieval", "reasoning"])
def test_probes_hide_what_they_ask_for(loaded: LoadedModel, kind: Any) -> None:
    made = list(probes(loaded, kind, samples=8, lengths=(30, 90), seed=1))
    assert [len(p.ids) for p in made[::2]] < [len(p.ids) for p in made[1::2]]
    depths = set()
    for probe in made:
        text = loaded.tokenizer.decode(probe.ids, skip_special_tokens=True)
        hidden = loaded.tokenizer.decode([probe.ids[i] for i in sorted(probe.needle)])
        assert sorted(probe.needle) == list(range(min(probe.needle), max(probe.needle) + 1))
        assert hidden in text
        assert probe.answer in hidden
        assert probe.steps == len(probe.answer) + 1  # bytes, and the blank before them
        assert not text.endswith(" ")
        if kind == "retrieval":
            assert hidden == probe.answer
            assert text.count(probe.answer) == 1
            assert len(probe.answer) == 6
        else:
            assert hidden.endswith("box.")
            assert hidden.count(" box") == 2
        depths.add(text.index(hidden) / len(text) > 0.3)
    assert depths == {True, False}


def test_a_seed_gives_the_same_probes(loaded: LoadedModel) -> None:
    def ids(kind: Any, seed: int) -> list[Any]:
        return [list(p.ids) for p in probes(loaded, kind, samples=4, lengths=(30,), seed=seed)]

    assert ids("retrieval", 1) == ids("retrieval", 1)
    assert ids("retrieval", 1) != ids("retrieval", 2)
    assert ids("reasoning", 1) == ids("reasoning", 1)


def test_the_asked_for_box_is_the_right_one() -> None:
    uses = head_scores._texts()["reasoning"]["uses"]
    import random

    for seed in range(20):
        text, needle, answer = head_scores._reasoning_text(random.Random(seed), 20)
        use = text.split("wants to ")[1].split(". Which")[0]
        (item,) = [name for name, what in uses.items() if what == use]
        assert f"the {item} into the{answer} box" in text[needle]


def test_a_model_that_answers_nothing_is_refused(loaded: LoadedModel) -> None:
    with pytest.raises(ModelError, match="answered none of 2 retrieval probes"):
        measure(loaded, "retrieval", samples=2, lengths=(20,))


def test_only_answered_probes_count(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def ask(model: LoadedModel, kind: str, probe: Probe) -> tuple[torch.Tensor, str]:
        asked.append(len(asked))
        right = asked[-1] % 3 == 0
        return torch.full((3, 4), float(asked[-1])), f" {probe.answer}." if right else "no idea"

    monkeypatch.setattr(head_scores, "_ask", ask)
    told: list[tuple[int, int]] = []
    result = measure(loaded, "reasoning", samples=7, lengths=(20,), on_probe=lambda *at: told.append(at))
    assert result == HeadScores([[3.0] * 4] * 3, 7, 3)  # the mean of 0, 3 and 6
    assert told == [(i + 1, 7) for i in range(7)]


def test_a_probe_beyond_the_window_is_refused() -> None:
    small = loaded_tiny("llama", window=256, **TINY)
    with pytest.raises(ModelError, match="does not fit the window of tiny, 256 tokens"):
        list(probes(small, "retrieval", samples=1, lengths=(200,), seed=0))


@pytest.mark.parametrize(
    ("said", "right", "f1"),
    [
        ("Red.", "red", 1.0),
        ("the red", "red", 2 / 3),
        ("the red box", "red", 0.5),
        ("", "red", 0.0),
        ("re", "red", 0.0),
    ],
)
def test_word_f1(said: str, right: str, f1: float) -> None:
    assert word_f1(said, right) == pytest.approx(f1)
