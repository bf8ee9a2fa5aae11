"""GGUF files: same logits, converted once, atomically, and refused in plain words."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors import SafetensorError

from lcbench.config.spec import ModelSpec
from lcbench.errors import CannotWrite, LcbenchError, ModelError
from lcbench.kv.cache import KVCache
from lcbench.models import adapter, converted, gguf
from lcbench.models.load import describe, load
from tiny import CHAT_TEMPLATE, tiny_model

torch.set_num_threads(1)
pytest.importorskip("gguf")
pytest.importorskip("accelerate")

from gguf_file import write_gguf  # noqa: E402


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf", original(), CHAT_TEMPLATE)


def original() -> Any:
    return tiny_model("llama", layers=2, heads=4, kv_heads=2, head_dim=16, vocab_size=261)


def run(loaded: Any, ids: torch.Tensor) -> torch.Tensor:
    caches = [KVCache.dense(loaded.info.layers, ids.shape[1])]
    return adapter.forward(loaded.model, ids, torch.arange(ids.shape[1])[None], caches, all_logits=True)


def test_a_gguf_file_computes_what_its_weights_compute(file: Path, own_home: Path) -> None:
    said: list[str] = []
    loaded = load(ModelSpec(str(file)), own_home, said.append)
    ids = torch.randint(0, 256, (1, 30), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = original()(ids).logits
    torch.testing.assert_close(run(loaded, ids), expected, atol=1e-4, rtol=1e-4)
    assert loaded.info.source == "gguf"
    assert loaded.info.window == 4096
    assert loaded.info.eos_ids == (257,)
    assert loaded.tokenizer("hé")["input_ids"][-3:] == list("hé".encode())
    assert loaded.tokenizer.chat_template == CHAT_TEMPLATE
    assert any(file.name in sentence for sentence in said)


def test_the_second_load_reuses_the_conversion_and_needs_no_gguf_package(
    file: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(ModelSpec(str(file)), own_home)
    folder = own_home / "models" / f"gguf-{first.info.identity[:16]}"
    marker = json.loads((folder / converted.MARKER).read_text())
    assert marker["gguf_sha256"] == first.info.identity
    before = (folder / "model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(gguf, "missing_packages", lambda: ["gguf"])
    said: list[str] = []
    second = load(ModelSpec(str(file)), own_home, said.append)
    assert said == []
    assert second.info == first.info
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert converted.all_converted(own_home) == [(folder, "tiny.gguf")]


def test_a_dry_description_converts_nothing(file: Path, own_home: Path) -> None:
    spec = ModelSpec(str(file))
    described, tokenizer = describe(spec, own_home)
    assert not (own_home / "models").exists()
    loaded = load(spec, own_home)
    assert described == loaded.info
    assert describe(spec, own_home)[0] == loaded.info
    assert tokenizer("a b")["input_ids"] == loaded.tokenizer("a b")["input_ids"]


def test_a_half_made_conversion_is_made_again(file: Path, own_home: Path) -> None:
    identity = describe(ModelSpec(str(file)), own_home)[0].identity
    target = converted.folder_for(identity, own_home)
    for left in (target, target.with_name(f"{target.name}.part-1")):  # a target without marker, and a killed attempt
        left.mkdir(parents=True)
        (left / "model.safetensors").write_bytes(b"half")
    load(ModelSpec(str(file)), own_home)
    assert converted.is_converted(target, identity)
    assert sorted(p.name for p in target.parent.iterdir() if p.is_dir()) == [target.name]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left (error 28)")])
def test_a_conversion_that_fails_leaves_nothing_finished(
    error: Exception, file: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedModel

    def full(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    with pytest.raises(CannotWrite, match="No space left"):
        load(ModelSpec(str(file)), own_home)
    assert not [p for p in (own_home / "models").iterdir() if p.is_dir()]


def test_a_disk_too_small_is_noticed_before_writing(
    file: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(gguf.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(CannotWrite, match="are free") as caught:
        load(ModelSpec(str(file)), own_home)
    assert "LCBENCH_HOME" in caught.value.next_step


def test_a_home_that_cannot_be_written(file: Path, tmp_path: Path) -> None:
    (tmp_path / "plain-file").write_text("")
    with pytest.raises(CannotWrite, match="Cannot write the converted model"):
        load(ModelSpec(str(file)), tmp_path / "plain-file" / "home")


def test_damaged_files(file: Path, own_home: Path) -> None:
    content = file.read_bytes()
    for damaged in (content[:40], content[: len(content) // 2], b"GGUF" + bytes(100)):
        file.write_bytes(damaged)
        with pytest.raises(LcbenchError) as caught:
            load(ModelSpec(str(file)), own_home)
        assert isinstance(caught.value, ModelError)
        assert str(file) in caught.value.message
        assert "\n" not in caught.value.message
    assert converted.all_converted(own_home) == []


def test_missing_tensors_are_never_filled_with_random_ones(tmp_path: Path, own_home: Path) -> None:
    file = write_gguf(tmp_path / "holes.gguf", original(), without="layers.1.self_attn.k_proj")
    with pytest.raises(ModelError, match=r"lacks tensors .* model\.layers\.1\.self_attn\.k_proj\.weight"):
        load(ModelSpec(str(file)), own_home)


def test_tied_embeddings_stay_tied(tmp_path: Path, own_home: Path) -> None:
    tied = tiny_model("llama", layers=1, vocab_size=261, tie_word_embeddings=True)
    loaded = load(ModelSpec(str(write_gguf(tmp_path / "tied.gguf", tied, without="lm_head"))), own_home)
    assert loaded.info.parameters == sum(p.numel() for p in tied.parameters())
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    assert torch.equal(loaded.model.lm_head.weight, tied.lm_head.weight)


def test_what_is_said_reaches_the_terminal(file: Path, own_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(ModelSpec(str(file)), own_home, lambda sentence: print(sentence, file=sys.stderr))
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 3
    assert all(line.endswith(".") for line in shown)


def test_without_the_packages(file: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "missing_packages", lambda: ["gguf", "accelerate"])
    with pytest.raises(ModelError, match="gguf and accelerate") as caught:
        load(ModelSpec(str(file)), own_home)
    assert "lcbench[gguf]" in caught.value.next_step


def test_a_second_process_waits_and_uses_what_the_first_made(file: Path, tmp_path: Path, own_home: Path) -> None:
    made = load(ModelSpec(str(file)), tmp_path / "elsewhere")
    folder = converted.folder_for(made.info.identity, own_home)
    folder.parent.mkdir(parents=True)
    said: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        with FileLock(f"{folder}.lock"):  # the first, at work
            second = pool.submit(load, ModelSpec(str(file)), own_home, said.append)
            deadline = time.monotonic() + 60
            while not said and time.monotonic() < deadline:
                time.sleep(0.05)
            shutil.copytree(converted.folder_for(made.info.identity, tmp_path / "elsewhere"), folder)
        assert second.result(timeout=60).info == made.info
    assert len(said) == 1
    assert "waiting" in said[0]


def test_nothing_but_what_is_said_reaches_the_terminal(file: Path, own_home: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from lcbench.config.spec import ModelSpec\n"
        "from lcbench.models.load import load\n"
        "load(ModelSpec(sys.argv[1]), Path(sys.argv[2]), print)\n"
    )
    command = [sys.executable, "-c", code, str(file), str(own_home)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 3
