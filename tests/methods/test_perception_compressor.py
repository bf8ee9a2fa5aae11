"""Perception Compressor: shares and choices by hand, and a run on a tiny model."""

from __future__ import annotations

import pytest
import torch

from lcbench.errors import ModelError
from lcbench.methods.prompt.perception_compressor import (
    PerceptionCompressor,
    choose,
    guiding_questions,
    mean_state,
    perceived,
)
from lcbench.methods.rewriting import PromptText
from lcbench.methods.surprisal import Stream, complete, tokens
from lcbench.models.info import LoadedModel
from small_classifier import texts
from tiny import loaded_tiny, tiny_model


@pytest.fixture(scope="module")
def helper() -> LoadedModel:
    return loaded_tiny(layers=2)


def test_a_segment_keeps_what_the_question_changes_and_then_what_is_expected() -> None:
    plain = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0, 6.0, 0.5, 7.0, 8.0, 9.0])
    asked = plain.clone()
    asked[7] -= 3  # the question explains it
    asked[9] -= 1
    assert choose(plain, asked, 0.5, 0.4, reverse=False) == [1, 3, 6, 7, 9]
    assert choose(plain, asked, 0.5, 0.4, reverse=True) == [0, 5, 7, 8, 9]
    assert choose(plain, asked, 1.0, 0.2, reverse=False) == list(range(10))
    assert choose(plain, asked, 0.0, 0.2, reverse=False) == []


def test_shares_hold_and_order_stays(helper: LoadedModel) -> None:
    text = texts()["prose"][:1600]
    flat = PerceptionCompressor(k1=0.0, k2=0.0)
    with torch.inference_mode():
        assert flat.shortened(helper, text, "Why?", 0) == text
        left = flat.shortened(helper, text, "Why?", 800)
        one = flat.shortened(helper, text[:150], "Why?", 75)  # a single segment
        sloped = PerceptionCompressor().shortened(helper, text, "Why?", 800)
    assert len(left) == 800
    assert len(one) == 75
    assert 700 < len(sloped) < 900
    for shorter in (left, one, sloped):
        letters = iter(text)
        assert all(c in letters for c in shorter)
    streams = Stream(helper), Stream(helper)
    piece = tokens(helper, text[:200])
    with torch.inference_mode():
        streams[1].read(tokens(helper, "Why?\n\n"))
        kept = choose(streams[0].losses(piece), streams[1].losses(piece), 0.5, 0.2, reverse=False)
    assert left.startswith("".join(text[i] for i in kept))


def test_ranking_by_hand(helper: LoadedModel) -> None:
    documents = [texts()["prose"][a : a + 60] for a in (0, 100, 300)]
    plain = tiny_model(layers=2)
    scores = []
    for document in documents:
        suffix = "\nQuestion: Why?\nAnswer: We can get the answer to this question in the given documents."
        ids = tokens(helper, document + suffix, special=True)
        with torch.no_grad():
            logits = plain(torch.tensor([ids])).logits[0]
        losses = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
        scores.append(float(losses[-len(suffix) :].mean()))
    with torch.inference_mode():
        assert perceived(helper, documents, ["Why?"]) == sorted(range(3), key=lambda i: scores[i])
        state = mean_state(helper, "ka lo")
    with torch.no_grad():
        ids = torch.tensor([tokens(helper, "ka lo", special=True)])
        assert torch.allclose(state, _last_layer(plain, ids).mean(dim=0), atol=1e-4)


def _last_layer(plain: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Output of the last layer, before the final norm."""
    found = []
    hook = plain.model.layers[-1].register_forward_hook(  # type: ignore[union-attr,index]
        lambda module, inputs, output: found.append(output[0] if isinstance(output, tuple) else output)
    )
    plain(ids)
    hook.remove()
    return found[0].reshape(ids.shape[1], -1)


def test_guiding_questions_are_what_the_model_writes(helper: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from lcbench.methods.prompt import perception_compressor as module

    monkeypatch.setattr(module, "complete", lambda *args: " Who was it?\n2. - When?\n3) nothing\n4. Where?\n5. How?")
    assert guiding_questions(helper, "Why?", 3) == ["Who was it?", "When?", "Where?"]
    assert guiding_questions(helper, "Why?", 0) == []
    monkeypatch.undo()
    with torch.inference_mode():
        assert complete(helper, "ka", 5) == complete(helper, "ka", 5)
        text = texts()["prose"][:2500]
        prompt = PromptText(text + "Why?", (0, len(text)), "Why?")
        left = PerceptionCompressor(rate=0.5, guides=1).rewrite(prompt, helper)
    assert 0.35 < len(left) / len(text) < 0.65
    assert PerceptionCompressor(rate=1).idle


def test_a_helper_whose_window_is_too_short_is_refused_before_it_reads() -> None:
    small = loaded_tiny(layers=2, window=256)
    with pytest.raises(ModelError, match="window of 256") as caught:
        PerceptionCompressor().check_helper(small)
    assert "segment=191" in caught.value.next_step
    PerceptionCompressor(segment=191).check_helper(small)
    text = "ka lo mi. " * 200
    with torch.inference_mode():
        left = PerceptionCompressor(segment=191, guides=0, rate=0.5).rewrite(
            PromptText(text, (0, len(text)), "Ask?"), small
        )
    assert 0 < len(left) < len(text)
