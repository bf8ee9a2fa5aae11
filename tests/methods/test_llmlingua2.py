"""LLMLingua-2 against the public package, by its outputs on small random classifiers, and by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_llmlingua2 import SETTINGS, weigh

from lcbench.config.spec import ModelSpec
from lcbench.errors import BadValue, ModelError
from lcbench.methods.prompt import llmlingua2
from lcbench.methods.prompt.llmlingua2 import LLMLingua2, Reader, Word, choose
from lcbench.methods.registry import resolve
from lcbench.methods.rewriting import PromptText
from lcbench.models.classifier import TokenClassifier, find_classifier, load_classifier
from small_classifier import BARE, KINDS, save_classifier, texts

GOLDEN: dict[str, Any] = json.loads(Path(__file__).with_name("golden_llmlingua2.json").read_text(encoding="utf-8"))
EXTRA = [f"[NEW{i}]" for i in range(100)]


def silent(text: str) -> None:
    pass


def opened(folder: Path, home: Path) -> TokenClassifier:
    spec = ModelSpec(name=str(folder), device="cpu")
    return load_classifier(spec, find_classifier(str(folder), "x", home, silent), EXTRA)


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, TokenClassifier]]:
    home = tmp_path_factory.mktemp("classifiers")
    return {kind: opened(save_classifier(home, kind), home) for kind in (*KINDS, BARE)}


def shortened(method: LLMLingua2, text: str, helper: TokenClassifier) -> str:
    with torch.inference_mode():
        return method.rewrite(PromptText(text, (0, len(text))), helper)


def of_setting(name: str) -> LLMLingua2:
    options = SETTINGS[name]
    names = {"\n": "newline", ",": "comma"}
    return LLMLingua2(
        rate=options["rate"],
        force="/".join(names.get(text, text) for text in options.get("force_tokens", [])) or "none",
        digits=options.get("force_reserve_digit", False),
        drop_consecutive=options.get("drop_consecutive", False),
        count="gpt-3.5",
    )


@pytest.mark.parametrize("kind", [*KINDS, BARE])
@pytest.mark.parametrize("setting", list(SETTINGS))
def test_keeps_what_the_public_package_keeps(
    classifiers: dict[str, TokenClassifier], kind: str, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llmlingua2, "_gpt_tokens", lambda word: weigh(word.text))
    method = of_setting(setting)
    for name, text in texts().items():
        assert shortened(method, text, classifiers[kind]) == GOLDEN[f"tiny-{kind}"][setting][name], name


def test_the_presets_are_the_workbenchs_rates() -> None:
    rates = [resolve(f"llmlingua2@{preset}").share for preset in ("2x", "4x", "6x", "8x")]  # type: ignore[attr-defined]
    assert [(int(100 * (1 - rate)), int(100 * (1 - rate) + 1)) for rate in rates] == [
        (50, 51), (75, 76), (83, 84), (87, 88)
    ]  # fmt: skip
    assert LLMLingua2().force_tokens == ["\n", ".", "!", "?", ","]
    assert LLMLingua2(rate=1.0).idle
    assert not LLMLingua2().idle


def test_words_stay_by_worth_and_in_order() -> None:
    words = [Word(f"▁w{i}", [float(i % 10) / 10]) for i in range(100)]
    kept = choose(words, lambda word: 1, 0.2, [], drop_consecutive=False)
    assert kept == [f"▁w{i}" for i in range(100) if i % 10 == 9]  # above percentile 81, which is an 8
    assert choose([], lambda word: 1, 0.2, [], drop_consecutive=True) == []


def test_a_repeated_force_token_goes_unless_something_stays_between() -> None:
    worths = [("a", 0.1), ("\n", 1.0), ("b", 0.1), ("\n", 1.0), ("c", 0.9), ("\n", 1.0), ("d", 0.2), ("e", 0.3)]
    words = [Word(text, [value]) for text, value in worths]
    assert choose(words, lambda word: 1, 0.5, ["\n"], drop_consecutive=True) == ["\n", "c", "\n", "e"]


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_lose_no_token_and_end_where_they_should(classifiers: dict[str, TokenClassifier], kind: str) -> None:
    helper = classifiers[kind]
    reader = Reader(helper, ["\n", ".", "!", "?", ","], digits=False, own_marks=False)
    # In the others spaces are lost and pieces found anew; a BERT word that is cut in two is another word afterwards.
    for name in ("prose", "chinese", "short") + (("no-punctuation",) if kind == KINDS[0] else ()):
        text = texts()[name]
        mapped = reader.mapped(text)
        chunks = reader.chunks(mapped)
        tokens = [helper.tokenizer.tokenize(chunk) for chunk in chunks]
        if name in ("prose", "short"):
            ends = {".", "[NEW0]"}
            assert all(row[-1] in ends or row[-1].lstrip("▁") in ends for row in tokens[:-1])
        whole = [t.lstrip("▁") for t in helper.tokenizer.tokenize(mapped) if t != "▁"]
        assert [t.lstrip("▁") for row in tokens for t in row if t != "▁"] == whole


def test_own_marks_give_the_encoder_its_own_end_tokens(classifiers: dict[str, TokenClassifier]) -> None:
    text = texts()["prose"]
    helper = classifiers[KINDS[0]]
    assert Reader(helper, [], digits=False, own_marks=False)._marks == (3, 3)  # <unk>, as the published code
    assert Reader(helper, [], digits=False, own_marks=True)._marks == (0, 2)  # <s> and </s>
    assert shortened(LLMLingua2(wrapper="own"), text, helper) != shortened(LLMLingua2(), text, helper)
    assert Reader(classifiers[KINDS[1]], [], digits=False, own_marks=False)._marks == (2, 3)  # BERT has them


def test_embeddings_of_added_tokens_are_the_mean(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path, KINDS[0])
    helper = load_classifier(*_asked(folder, tmp_path), [*EXTRA, "[NEW100]", "[NEW101]"])
    table = helper.model.get_input_embeddings().weight
    assert len(helper.tokenizer) == table.shape[0] == opened(folder, tmp_path).model.config.vocab_size + 2
    torch.testing.assert_close(table[-2:], table[:-2].double().mean(dim=0).float().expand(2, -1))


def _asked(folder: Path, home: Path) -> tuple[ModelSpec, Any]:
    return ModelSpec(name=str(folder), device="cpu"), find_classifier(str(folder), "x", home, silent)


def test_what_is_no_classifier_is_refused_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="into 3 classes"):
        opened(save_classifier(tmp_path / "three", KINDS[0], labels=3), tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        find_classifier(str(empty), "llmlingua2@model=FOLDER", tmp_path, silent)
    with pytest.raises(ModelError, match="microsoft/llmlingua-2-xlm") as caught:
        find_classifier(llmlingua2.LARGE, "llmlingua2@model=FOLDER", tmp_path, silent)
    assert "hf download" in caught.value.next_step
    assert "llmlingua2@model=FOLDER" in caught.value.next_step
    with pytest.raises(BadValue):
        resolve("llmlingua2@rate=1.5")
