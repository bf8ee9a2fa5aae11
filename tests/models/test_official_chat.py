"""LongBench's hand-written formats: by family, hugging the prompt, and nothing for models it does not know."""

from __future__ import annotations

import pytest

from lcbench.errors import ModelError
from lcbench.models.chat import format_chat
from lcbench.models.official_chat import family_of, official_template
from tiny import byte_tokenizer

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


def test_chatglm_is_refused_not_left_bare() -> None:
    with pytest.raises(ModelError, match="chatglm3"):
        official_template("THUDM/chatglm3-6b-32k")
