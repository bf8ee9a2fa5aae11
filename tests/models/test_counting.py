"""Token counters: the counts of the tokenizer itself, whatever way it is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from lcbench.errors import ModelError, UsageError
from lcbench.models import counting
from lcbench.models.counting import token_counter
from lcbench.tasks.hundred.counting import shortened
from tiny import save_tiny

TEXTS = ["", "a", "two words\n", "é" * 7, "x" * 1000]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "little", layers=1, hidden=16, heads=2, kv_heads=1, head_dim=8)


def test_a_model_and_its_tokenizer_file_count_alike(
    folder: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, file = token_counter(str(folder), own_home), token_counter(str(folder / "tokenizer.json"), own_home)
    assert model.name == file.name == "little"
    assert model.identity == file.identity
    expected = [1 + len(text.encode()) for text in TEXTS]  # one token a byte, and the BOS before every text
    assert model.count(TEXTS) == file.count(TEXTS) == expected
    monkeypatch.setattr(counting, "_BATCH_CHARACTERS", 5)
    assert model.count(TEXTS) == expected
    assert model.count([]) == []


def test_a_truncating_tokenizer_counts_whole_texts(folder: Path, own_home: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    cutting = Tokenizer.from_file(str(folder / "tokenizer.json"))
    cutting.enable_truncation(4)
    cutting.save(str(tmp_path / "tokenizer.json"))
    assert token_counter(str(tmp_path / "tokenizer.json"), own_home).count(["x" * 50]) == [51]


def test_words_need_no_tokenizer(own_home: Path) -> None:
    assert token_counter("words", own_home).count(["", "a b\n c", " d "]) == [0, 3, 1]


def test_what_is_no_tokenizer_is_told(own_home: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{}", encoding="utf-8")
    for path in ("bad.json", "none.json"):
        with pytest.raises(UsageError, match=path):
            token_counter(str(tmp_path / path), own_home)
    with pytest.raises(ModelError):
        token_counter(str(tmp_path / "no-such-folder"), own_home)


@pytest.mark.parametrize("limit", [1, 2, 5, 17, 80, 81, 1000])
def test_a_text_is_cut_between_words_close_to_the_limit(own_home: Path, limit: int) -> None:
    counter = token_counter("words", own_home)
    text = "  ".join(f"word{i}," for i in range(80))
    cut, tokens = shortened(text, limit, counter)
    assert text.startswith(cut)
    assert tokens == len(cut.split()) <= limit
    assert tokens >= min(80, limit) - 2
    assert cut == text or text[len(cut)].isspace()


def test_a_first_word_that_does_not_fit_leaves_nothing(folder: Path, own_home: Path) -> None:
    assert shortened("x" * 100 + " y", 20, token_counter(str(folder), own_home)) == ("", 0)
