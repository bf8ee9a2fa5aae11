"""LongLLMLingua against the public package, by its outputs on a tiny random Llama, and its formulas by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from golden_longllmlingua import QUESTION, SETTINGS, SIZES, documents

from lcbench.methods.prompt import longllmlingua as method
from lcbench.methods.prompt.longllmlingua import LongLLMLingua
from lcbench.methods.rewriting import PromptText
from lcbench.methods.surprisal import Stream, joined, suffix_loss, tokens, with_offsets
from lcbench.models.info import LoadedModel
from small_classifier import texts
from tiny import loaded_tiny, tiny_model

GOLDEN = json.loads(Path(__file__).with_name("golden_longllmlingua.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def helper() -> Iterator[LoadedModel]:
    with torch.inference_mode():
        yield loaded_tiny(layers=2)


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, of_name in GOLDEN.items() for key in of_name])
def test_published_alignment_equals_the_public_package(helper: LoadedModel, name: str, key: str) -> None:
    setting, _, many = key.partition("/")
    options, text = SETTINGS[setting], texts()[name][: SIZES[name]]
    compressor = LongLLMLingua(
        rate=options["rate"],
        order=options["reorder_context"],
        dynamic=options["dynamic_context_compression_ratio"],
        alignment="published",
    )
    with torch.inference_mode():
        made = compressor.shortened(documents(text) if many == "documents" else [text], QUESTION, helper)
    assert made == GOLDEN[name][key]


def test_losses_are_those_of_the_plain_model(helper: LoadedModel) -> None:
    plain = tiny_model(layers=2)
    ids = tokens(helper, texts()["prose"][:700])
    with torch.no_grad():
        logits = plain(torch.tensor([ids])).logits[0]
    wanted = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
    stream = Stream(helper)
    with torch.inference_mode():
        first = stream.read(ids[:150])
        ahead = stream.losses(ids[150:])  # more than is held at once
        again = stream.losses(ids[150:])
        mean = suffix_loss(helper, "so it is", ", or not")
        whole = tokens(helper, "so it is, or not", special=True)
        by_hand = plain(torch.tensor([whole])).logits[0]
    assert torch.equal(ahead, again)
    assert torch.allclose(torch.cat([first, ahead])[1:], wanted, atol=1e-4)
    losses = torch.nn.functional.cross_entropy(by_hand[:-1], torch.tensor(whole[1:]), reduction="none")
    assert mean == pytest.approx(float(losses[-len(", or not") :].mean()), abs=1e-4)


def test_passages_are_ranked_by_what_the_plain_model_makes_of_the_question(helper: LoadedModel) -> None:
    plain = tiny_model(layers=2)
    whole = texts()["prose"]
    passages, asked = [whole[i : i + 150] for i in range(0, 900, 150)], "Is ka the answer?" + method.HINT
    losses = []
    for passage in passages:
        ids = torch.tensor(tokens(helper, passage + asked, special=True))
        with torch.no_grad():
            chances = torch.log_softmax(plain(ids[None]).logits[0].double(), dim=-1)
        first = len(ids) - len(asked)  # a token a character
        losses.append(-sum(float(chances[i - 1, ids[i]]) for i in range(first, len(ids))) / len(asked))
    with torch.inference_mode():
        ranked = method.rank(passages, "Is ka the answer?", helper)
    assert ranked == sorted(range(6), key=losses.__getitem__)
    assert ranked != list(range(6))


def test_a_text_beyond_the_window_goes_on_behind_its_beginning() -> None:
    helper = loaded_tiny(layers=1, window=64)
    stream = Stream(helper, anchor=4)
    ids = tokens(helper, texts()["prose"][:200])
    with torch.inference_mode():
        for start in range(0, 180, 20):
            assert torch.isfinite(stream.read(ids[start : start + 20])).all()
    assert stream._ids[:4] == ids[:4]
    assert stream._ids[-20:] == ids[160:180]
    assert stream._cache.seen == len(stream._ids) <= 64
    short = LongLLMLingua(rate=0.5, segment=20)
    with torch.inference_mode():
        left = short.shortened([texts()["prose"][:400]], "Why?", helper)
    assert 100 < len(left) < 300


def test_the_formulas_by_hand() -> None:
    assert method.arranged([4, 2, 0, 1, 3], "two_stage") == [4, 0, 3, 1, 2]  # ranks 0 2 4 3 1
    assert method.arranged([4, 2, 0], "original") == [0, 2, 4]
    assert method.arranged([4, 2, 0], "sort") == [4, 2, 0]
    ratios = method.dynamic_ratios(5, 0.4)
    assert ratios == pytest.approx([0.4, 0.2, 0.0, -0.2, -0.4])
    assert sum(ratios) == pytest.approx(0)
    assert method.dynamic_ratios(1, 0.4) == [0.0]
    assert method.within_budget([2, 0, 1], [10, 10, 10], 15) == [2, 0]  # the one that crosses stays
    assert method.within_budget([2, 0, 1], [10, 10, 10], 5) == [2]
    plan = method.segments([52, 450, 30], 0.5, [0.3, 0.0, -0.3], 200)
    assert plan[0] == [(52, 0.8), (147, 0.5)]
    assert plan[1] == [(200, 0.5)]
    assert plan[2][0][1] == 0.5
    assert plan[-1][-1] == (30, pytest.approx(0.2))
    values = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0])
    assert method.threshold(values, 0.6) == 3.0
    assert method.threshold(values, 1.0) == float("-inf")


def test_rate_one_changes_nothing_and_others_keep_their_share(helper: LoadedModel) -> None:
    assert LongLLMLingua(rate=1).idle
    text = texts()["prose"][:1000]
    prompt = PromptText(f"Read.\n{text}\nAnswer: {QUESTION}", (6, 6 + len(text)), QUESTION)
    with torch.inference_mode():
        everything = LongLLMLingua(rate=0.9, dynamic=0, passages="none", segment=50).rewrite(prompt, helper)
        half = LongLLMLingua(rate=0.5, dynamic=0, passages="none", segment=50).rewrite(prompt, helper)
        alone = LongLLMLingua(rate=0.5, dynamic=0, passages="none", segment=50, contrast=False).rewrite(prompt, helper)
    assert 0.8 < len(everything) / len(text) < 1
    assert 0.4 < len(half) / len(text) < 0.6
    assert 0.3 < len(alone) / len(text) < 0.7
    for shorter in (everything, half, alone):
        letters = iter(text.strip())
        assert all(c in letters for c in shorter)  # a subsequence


def test_characters_of_several_tokens_stay_whole(helper: LoadedModel) -> None:
    text = "aé山b"
    ids, offsets = with_offsets(helper, text)
    assert len(ids) == 7
    assert joined(text, offsets, range(7)) == text
    assert joined(text, offsets, [0, 2, 6]) == "aéb"
