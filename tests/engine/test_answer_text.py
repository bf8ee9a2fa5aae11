"""Stopping early must not change what is scored, with tokenizers that spell line feeds and rare characters in bytes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from lcbench.engine.answer_text import scorer_stop, text_of
from lcbench.models.info import LoadedModel
from lcbench.scoring.rows import first_line
from lcbench.tasks.registry import resolve
from tiny import loaded_tiny

WORDS = ["▁Type", "▁Number", "Assistant:", "▁x", "a"]
INFO = loaded_tiny(layers=1).info


def llama2_like() -> PreTrainedTokenizerFast:
    """256 byte tokens (ids 1 to 256) and a few words, decoded as Llama 2's tokenizer decodes."""
    vocab = {"<unk>": 0, **{f"<0x{b:02X}>": b + 1 for b in range(256)}}
    vocab |= {word: 257 + i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)
    ])  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def loaded(rule: str | None = None) -> LoadedModel:
    return LoadedModel(None, llama2_like(), dataclasses.replace(INFO, answer_rule=rule))


def number(*tokens: str | int) -> list[int]:
    vocab = llama2_like().get_vocab()
    return [token + 1 if isinstance(token, int) else vocab[token] for token in tokens]


def test_a_line_feed_counts_once_no_broken_character_can_swallow_it() -> None:
    model = loaded()
    stop = scorer_stop(model, resolve("lsht")[0])
    assert stop is not None
    line = number("▁Number", 0x0A)
    half = number("▁Number", 0x0A, 0xE4)
    assert text_of(model, line) == "Number\n"
    assert text_of(model, half) == "Number\ufffd\ufffd"  # the line feed is gone: this answer has one line
    assert not stop(line)
    assert not stop(half)
    assert stop([*line, *number("▁Type")])
    assert stop([*half, *number("▁Type", 0x0A, "a")])


def test_tasks_whose_scorer_reads_everything_have_no_stop() -> None:
    assert scorer_stop(loaded(), resolve("qasper")[0]) is None


TOKENS = st.lists(
    st.sampled_from(number(0x0A, 0x0A, 0xE4, 0xBD, 0xA0, 0x23, 0x20, *WORDS)), min_size=1, max_size=12
)  # fmt: skip


@pytest.mark.parametrize("task", ["trec", "lcc"])
@given(ids=TOKENS, rule=st.sampled_from([None, "xgen", "internlm"]))
def test_stop_is_no_stop(task: str, ids: list[int], rule: str | None) -> None:
    from lcbench.scoring.metrics.code_sim import first_code_line

    read: Any = first_line if task == "trec" else first_code_line
    model = loaded(rule)
    stop = scorer_stop(model, resolve(task)[0])
    assert stop is not None
    for end in range(1, len(ids)):
        if stop(ids[:end]):
            assert read(text_of(model, ids[:end])) == read(text_of(model, ids))
