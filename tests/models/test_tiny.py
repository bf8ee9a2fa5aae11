"""The test models themselves: bytes round-trip, logits are not flat, families differ."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from lcbench.kv.cache import KVCache
from lcbench.models import adapter
from tiny import BOS, END, EOS, KINDS, TURN, byte_tokenizer, loaded_tiny, save_tiny, tiny_model

torch.set_num_threads(1)
TOKENIZER = byte_tokenizer(bos=False)
SPECIALS = (BOS, EOS, TURN, END)


@settings(max_examples=60, deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=60).filter(lambda t: not any(s in t for s in SPECIALS))
)
def test_any_text_round_trips_as_its_bytes(text: str) -> None:
    assume(not any(special in text for special in SPECIALS))
    ids = TOKENIZER(text)["input_ids"]
    assert bytes(ids) == text.encode()
    assert TOKENIZER.decode(ids) == text


def test_bos_is_written_when_asked() -> None:
    assert byte_tokenizer(bos=True)("ab")["input_ids"] == [256, 97, 98]
    assert byte_tokenizer(bos=False)("ab")["input_ids"] == [97, 98]
    assert byte_tokenizer(chat=False).chat_template is None


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_not_flat_and_seeded(kind: str) -> None:
    ids = torch.arange(40)[None] * 5
    with torch.inference_mode():
        first, again, other = (tiny_model(kind, seed=s)(ids).logits for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert first[0, -1].std() > 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_loaded_tiny_computes_what_the_plain_model_computes(kind: str) -> None:
    loaded = loaded_tiny(kind)
    assert (loaded.info.layers, loaded.info.heads, loaded.info.kv_heads, loaded.info.head_dim) == (4, 8, 2, 32)
    assert loaded.shape().full_bytes(10) == 2 * 4 * 2 * 32 * 4 * 10
    ids = torch.randint(0, 256, (1, 50), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = tiny_model(kind)(ids).logits
    got = adapter.forward(loaded.model, ids, torch.arange(50)[None], [KVCache.dense(4, 50)], all_logits=True)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_saved_tiny_is_a_hub_folder(tmp_path: Path) -> None:
    save_tiny(tmp_path / "m", "qwen3")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    ids = torch.tensor([tokenizer("héllo 世界")["input_ids"]])
    assert ids.tolist() == [byte_tokenizer()("héllo 世界")["input_ids"]]
    assert tokenizer.chat_template == byte_tokenizer().chat_template
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, tiny_model("qwen3")(ids).logits)
