"""Prompts to tokens: chat templates, BOS exactly once, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors

from lcbench.errors import ModelError
from lcbench.models import chat
from lcbench.models.chat import encode_prompt, format_chat
from lcbench.models.info import LoadedModel
from tiny import EOS, byte_tokenizer, loaded_tiny

torch.set_num_threads(1)
TURN = b"user\nhi"


def loaded(**options: Any) -> LoadedModel:
    return loaded_tiny(layers=1, **options)


def as_bytes(ids: list[int]) -> bytes:
    return bytes(i for i in ids if i < 256)


def test_a_template_that_writes_the_bos_gets_no_second_one() -> None:
    model = loaded(bos=True)
    encoded = encode_prompt(model, "hi", chat=True, chat_option="auto")
    assert encoded.ids.count(256) == 1
    assert encoded.ids[0] == 256
    assert encoded.double_bos_avoided
    assert encoded.text == "<s><|turn|>user\nhi<|end|>\n<|turn|>assistant\n"
    assert encoded.ids == model.tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, return_dict=False
    )
    assert encoded.template_sha256 == chat.template_sha256(model.tokenizer.chat_template)


def test_a_template_without_bos_leaves_it_to_the_tokenizer(tmp_path: Path) -> None:
    template = tmp_path / "plain.jinja"
    template.write_text("USER: {{ messages[0]['content'] }} ASSISTANT:")
    encoded = encode_prompt(loaded(bos=True), "hi", chat=True, chat_option=str(template))
    assert encoded.ids == [256, *b"USER: hi ASSISTANT:"]
    assert not encoded.double_bos_avoided
    assert encoded.template_sha256 == chat.template_sha256(template.read_text())


def test_a_tokenizer_without_bos() -> None:
    encoded = encode_prompt(loaded(bos=False), "hi", chat=True, chat_option="auto")
    assert 256 not in encoded.ids
    assert not encoded.double_bos_avoided
    assert as_bytes(encoded.ids) == TURN + b"\nassistant\n"


def test_a_tokenizer_that_has_a_bos_but_does_not_add_it_doubles_nothing() -> None:
    model = loaded(bos=True)
    model.tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
    encoded = encode_prompt(model, "hi", chat=True, chat_option="auto")
    assert encoded.ids[0] == 256
    assert encoded.ids.count(256) == 1
    assert not encoded.double_bos_avoided


@pytest.mark.parametrize(("wants_chat", "option"), [(False, "auto"), (True, "none"), (False, "none")])
def test_plain_prompts_get_the_special_tokens(wants_chat: bool, option: str) -> None:
    encoded = encode_prompt(loaded(bos=True), "hi", chat=wants_chat, chat_option=option)
    assert encoded.ids == [256, *b"hi"]
    assert (encoded.text, encoded.template_sha256) == ("hi", None)


def test_an_end_token_that_the_tokenizer_appends_is_dropped() -> None:
    model = loaded(bos=True)
    model.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"<s> $A {EOS}", special_tokens=[("<s>", 256), (EOS, 257)]
    )
    assert model.tokenizer("hi")["input_ids"][-1] == 257
    assert encode_prompt(model, "hi", chat=False, chat_option="auto").ids == [256, *b"hi"]
    assert encode_prompt(model, f"hi{EOS}", chat=False, chat_option="auto").ids == [256, *b"hi", 257]  # meant so


def test_no_template_where_one_is_needed() -> None:
    model = loaded(chat=False, name="org/base")
    with pytest.raises(ModelError, match="org/base has no chat template") as caught:
        encode_prompt(model, "hi", chat=True, chat_option="auto")
    assert "--chat none" in caught.value.next_step
    assert "--chat FILE.jinja" in caught.value.next_step
    assert encode_prompt(model, "hi", chat=False, chat_option="auto").ids == [256, *b"hi"]
    assert format_chat(model.tokenizer, "hi", "none") is None


def test_template_files_that_cannot_be_used(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    with pytest.raises(ModelError, match=r"nowhere\.jinja"):
        format_chat(tokenizer, "hi", str(tmp_path / "nowhere.jinja"))
    binary = tmp_path / "binary.jinja"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelError, match="not UTF-8"):
        format_chat(tokenizer, "hi", str(binary))
    for text in ("{% for %}", "{{ raise_exception('only two turns') }}", "{{ 1 / 0 }}"):
        broken = tmp_path / "broken.jinja"
        broken.write_text(text)
        with pytest.raises(ModelError, match="failed") as caught:
            format_chat(tokenizer, "hi", str(broken))
        assert "--chat" in caught.value.next_step


def test_templates_run_in_a_sandbox(tmp_path: Path) -> None:
    hostile = tmp_path / "hostile.jinja"
    hostile.write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(ModelError, match="failed"):
        format_chat(byte_tokenizer(), "hi", str(hostile))


def test_a_template_that_prints_the_date_prints_the_same_one_every_day(tmp_path: Path) -> None:
    dated = tmp_path / "dated.jinja"
    dated.write_text("\nToday is {{ strftime_now('%d %b %Y') }}. {{ messages[0]['content'] }}")
    assert format_chat(byte_tokenizer(), "hi", str(dated)) == "\nToday is 26 Jul 2024. hi"
    dated.write_text(
        "{%- if not day is defined %}{%- set day = strftime_now('%Y-%m-%d, %A') %}{%- endif %}"
        "{{ day | upper }} {{ messages[0]['content'] }}"
    )
    assert format_chat(byte_tokenizer(), "hi", str(dated)) == "2024-07-26, FRIDAY hi"


def test_of_several_templates_the_default_one_is_taken() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"default": "D {{ messages[0]['content'] }}", "tool_use": "T"}
    assert format_chat(tokenizer, "hi", "auto") == "D hi"


def test_text_reaches_the_template_unchanged() -> None:
    text = "a {{ 7 * 7 }} {% raw %} <b>&amp;</b> \u4e16\n"
    assert text in (format_chat(byte_tokenizer(), text, "auto") or "")


def test_a_template_file_that_leaves_the_prompt_out_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "t.jinja"
    file.write_text("<s>[INST]{prompt}[/INST]", encoding="utf-8")
    with pytest.raises(ModelError, match="leaves the prompt out"):
        format_chat(byte_tokenizer(), "What is the key?", str(file))
