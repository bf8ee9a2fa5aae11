"""Selective-Context: values against the plain model, units by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lcbench.methods.prompt.selective_context import SelectiveContext, sentences, units_of
from lcbench.methods.rewriting import PromptText
from lcbench.models.info import LoadedModel
from small_classifier import texts
from tiny import loaded_tiny, tiny_model


@pytest.fixture(scope="module")
def helper() -> LoadedModel:
    return loaded_tiny(layers=2)


def shortened(helper: LoadedModel, text: str, **options: object) -> str:
    with torch.inference_mode():
        return SelectiveContext(**options).rewrite(PromptText(text, (0, len(text))), helper)  # type: ignore[arg-type]


def by_hand(sentence: str) -> torch.Tensor:
    """-ln p of each byte of a sentence behind the end-of-text token, by the plain transformers model."""
    ids = [257, *sentence.encode()]
    with torch.no_grad():
        logits = tiny_model(layers=2)(torch.tensor([ids])).logits[0]
    return torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")


def test_values_are_means_of_the_plain_models_losses(helper: LoadedModel) -> None:
    sentence = "ka lomi, ren 山 sol."
    losses = by_hand(sentence)
    with torch.inference_mode():
        words = units_of(sentence, "word", helper)
        (whole,) = units_of(sentence, "sentence", helper)
        every = units_of(sentence, "token", helper)
    assert [word.text for word in words] == ["ka", " lomi,", " ren", " 山", " sol."]
    at = 0
    for word in words:
        size = len(word.text.encode())
        assert word.value == pytest.approx(float(losses[at : at + size].mean()), abs=1e-4)
        at += size
    assert whole.value == pytest.approx(float(losses.mean()), abs=1e-4)
    assert "".join(unit.text for unit in every) == sentence


def test_a_token_over_two_units_counts_for_both() -> None:
    from lcbench.methods.prompt.selective_context import _shared_out

    units = _shared_out("ab cd", [(0, 3), (3, 5)], [(0, 2), (2, 4), (4, 5)], [1.0, 4.0, 3.0])
    assert [unit.text for unit in units] == ["ab ", "cd"]
    assert units[0].value == pytest.approx((1 + 2) / 1.5)
    assert units[1].value == pytest.approx((2 + 3) / 1.5)


def test_sentences_end_where_the_published_pattern_ends_them() -> None:
    text = "See e.g. Mr. Smith. Is it so? Yes. 是的。好 the end"
    assert sentences(text) == ["See e.g. Mr. Smith.", " Is it so?", " Yes.", " 是的。", "好 the end"]


def test_no_token_of_a_word_level_tokenizer_reaches_over_two_units(helper: LoadedModel) -> None:
    """Tokens of GPT-2 and its like carry the blank before a word: so do units, and each has its own tokens' mean."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["The", "Ġgrass", "Ġis", "Ġgreen", ".", "ĠIt", "Ġgrows", "<eos>"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<eos>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    loaded = replace(helper, tokenizer=PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>"))
    with torch.inference_mode():
        for sentence in sentences("The grass is green. It grows."):
            units, tokens = units_of(sentence, "word", loaded), units_of(sentence, "token", loaded)
            assert [unit.text for unit in units[:-1]] == [
                token.text for token in tokens[:-2]
            ]  # the last: word and stop
            assert [unit.value for unit in units[:-1]] == [token.value for token in tokens[:-2]]
            assert units[-1].value == pytest.approx((tokens[-2].value + tokens[-1].value) / 2)


@pytest.mark.parametrize("level", ["sentence", "word", "token"])
def test_the_least_surprising_units_go_first(helper: LoadedModel, level: str) -> None:
    text = texts()["prose"][:900]
    flat = " ".join(text.split())
    with torch.inference_mode():
        units = [u for s in sentences(flat) for u in units_of(s, level, helper)]  # type: ignore[arg-type]
    assert "".join(unit.text for unit in units) == flat
    lengths = []
    for rate in (0.3, 0.65, 0.9):
        left = shortened(helper, text, rate=rate, level=level)
        lengths.append(len(left))
        ranked = sorted(unit.value for unit in units)
        least = ranked[0] + 0.0
        at = (1 - rate) * (len(ranked) - 1)
        least = ranked[int(at)] + (at - int(at)) * (ranked[min(int(at) + 1, len(ranked) - 1)] - ranked[int(at)])
        gone = (lambda text: " ..." if text[0] == " " else "...") if level == "sentence" else lambda text: ""
        assert left == "".join(u.text if u.value >= least else gone(u.text) for u in units).strip()
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]


def test_ends_stay_and_rate_one_is_the_plain_prompt(helper: LoadedModel) -> None:
    left = shortened(helper, "\n ka lo mi. ren ta\n\nsol? vi\n\n", rate=0.5)
    assert left.startswith("\n ")
    assert left.endswith("\n\n")
    assert SelectiveContext(rate=1).idle
    assert shortened(helper, " \n ", rate=0.5) == " \n "
    long = "ka" * 3000  # a sentence beyond the 1,023 tokens that are read at once
    assert set(shortened(helper, long, rate=0.5, level="token")) <= {"k", "a"}
