"""LongBench's hand-written formats: by family, hugging the prompt, and nothing for models it does not know."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from lcbench.errors import ModelError
from lcbench.models.chat import Encoded, encode_prompt, format_chat
from lcbench.models.info import LoadedModel
from lcbench.models.official_chat import (
    answer_rule,
    clean_answer,
    cut_without_special_tokens,
    family_of,
    official_template,
)
from tiny import byte_tokenizer, loaded_tiny

ASSISTANT = "The assistant gives helpful, detailed, and polite answers to the "


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama2-7b-chat-4k", "[INST]Hi {x}\n[/INST]"),
        ("meta-llama/Llama-2-7b-chat-hf", "[INST]Hi {x}\n[/INST]"),
        (
            "lmsys/longchat-7b-v1.5-32k",
            f"A chat between a curious user and an artificial intelligence assistant. {ASSISTANT}user's questions. "
            "USER: Hi {x}\n ASSISTANT:",
        ),
        (
            "Salesforce/xgen-7b-8k-inst/",
            f"A chat between a curious human and an artificial intelligence assistant. {ASSISTANT}human's questions."
            "\n\n ### Human: Hi {x}\n\n###",
        ),
        ("internlm/internlm-chat-7b-8k", "<|User|>:Hi {x}\n<eoh>\n<|Bot|>:"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", None),
        ("demo", None),
    ],
)
def test_official_formats(name: str, expected: str | None) -> None:
    assert format_chat(byte_tokenizer(), "Hi {x}\n", "official", name) == expected


def test_the_family_is_read_off_the_last_part_of_the_name() -> None:
    assert family_of("/models/vicuna/other-model") is None
    assert official_template("C:\\models\\vicuna-13b") is not None


def test_chatglm2_has_its_rounds_in_text() -> None:
    """The text of its tokenizer's `build_prompt`, with or without that code at hand."""
    text = "[Round 1]\n\n\u95ee\uff1aHi {x}\n\n\n\u7b54\uff1a"
    assert format_chat(byte_tokenizer(), "Hi {x}\n", "official", "THUDM/chatglm2-6b-32k") == text
    encoded = ask("THUDM/chatglm2-6b", byte_tokenizer(bos=False))
    assert bytes(encoded.ids).decode() == text.replace("{x}\n", "{x}")
    own = byte_tokenizer(bos=False)
    own.build_prompt = lambda query: f"<{query}>"
    assert bytes(ask("THUDM/chatglm2-6b", own).ids) == b"<Hi {x}>"


def test_chatglm3_is_asked_in_ids_that_its_tokenizer_makes() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.build_chat_input = lambda query: {"input_ids": torch.tensor([[258, *query.encode(), 259]])}
    encoded = ask("THUDM/chatglm3-6b-32k", tokenizer)
    assert encoded.ids == [258, *b"Hi {x}", 259]
    assert encoded.text == "[gMASK]sop<|user|>\nHi {x}<|assistant|>"
    assert encoded.template_sha256 is not None
    assert not encoded.double_bos_avoided
    with pytest.raises(ModelError, match="chatglm3-6b-32k by code of its tokenizer") as caught:
        ask("THUDM/chatglm3-6b-32k", byte_tokenizer())
    assert "--trust-remote-code" in caught.value.next_step


def test_chatglm3_prompts_are_cut_without_special_tokens() -> None:
    assert cut_without_special_tokens("THUDM/chatglm3-6b-32k")
    assert not cut_without_special_tokens("THUDM/chatglm2-6b-32k")
    assert not cut_without_special_tokens("llama2-7b-chat-4k")


def ask(name: str, tokenizer: Any) -> Encoded:
    info = dataclasses.replace(loaded_tiny(layers=1).info, name=name)
    return encode_prompt(LoadedModel(None, tokenizer, info), "Hi {x}", chat=True, chat_option="official")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("xgen-7b-8k", " \n Assistant: Paris\nAssistant:\n", " Paris\n"),
        ("internlm/internlm-chat-7b-8k", " Paris \n<eoa>\n<|User|>:<eoa>", " Paris \n"),
        ("llama2-7b-chat-4k", " Assistant: Paris<eoa>\n", " Assistant: Paris<eoa>\n"),
        ("demo", "\n x ", "\n x "),
    ],
)
def test_answers_of_two_families_are_cleaned(name: str, text: str, expected: str) -> None:
    assert clean_answer(answer_rule(name), text) == expected
