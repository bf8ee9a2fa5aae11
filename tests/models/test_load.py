"""Loading: every family from a folder, facts, placement, and each refusal in one sentence."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lcbench.config.spec import ModelSpec
from lcbench.errors import BadValue, LcbenchError, ModelError
from lcbench.kv.cache import KVCache
from lcbench.models import adapter
from lcbench.models.load import LoadedModel, describe, load
from tiny import KINDS, byte_tokenizer, save_tiny, tiny_model

torch.set_num_threads(1)


def logits(loaded: LoadedModel, ids: torch.Tensor) -> torch.Tensor:
    q = ids.shape[1]
    caches = [KVCache.dense(loaded.info.layers, q)]
    return adapter.forward(loaded.model, ids, torch.arange(q)[None], caches, all_logits=True)


def failure(spec: ModelSpec, home: Path) -> LcbenchError:
    with pytest.raises(LcbenchError) as caught:
        load(spec, home)
    assert caught.value.message.endswith(".")
    assert caught.value.next_step
    assert "\n" not in caught.value.message
    return caught.value


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_each_family_loads_and_computes_what_transformers_computes(
    kind: str, tmp_path: Path, own_home: Path
) -> None:
    folder = save_tiny(tmp_path / "model", kind)
    loaded = load(ModelSpec(str(folder)), own_home)
    ids = torch.randint(0, 256, (1, 40), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(ids).logits
    torch.testing.assert_close(logits(loaded, ids), expected, atol=1e-4, rtol=1e-4)
    info = loaded.info
    assert (info.source, info.layers, info.heads, info.kv_heads, info.head_dim) == ("folder", 4, 8, 2, 32)
    assert (info.dtype, info.device, info.attn) == ("float32", "cpu", "sdpa")
    assert info.architecture.lower().startswith(kind.replace("_", ""))
    assert info.window == 4096
    assert info.bos_id == 256
    assert not loaded.model.training
    assert info.parameters == sum(p.numel() for p in tiny_model(kind).parameters())
    assert info.weight_bytes == 4 * info.parameters


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_the_dry_description_is_the_loaded_one(kind: str, tmp_path: Path, own_home: Path) -> None:
    spec = ModelSpec(str(save_tiny(tmp_path / "model", kind)), dtype="bfloat16")
    described, tokenizer = describe(spec, own_home)
    loaded = load(spec, own_home)
    assert described == loaded.info
    assert tokenizer("x")["input_ids"] == loaded.tokenizer("x")["input_ids"]
    assert json.loads(json.dumps(described.to_dict())) == described.to_dict()


def test_dry_description_reads_no_weights(tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny(tmp_path / "model")

    def forbidden(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("weights were read")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", forbidden)
    info, _ = describe(ModelSpec(str(folder)), own_home)
    assert info.parameters > 0
    with pytest.raises(ModelError, match="weights were read"):
        load(ModelSpec(str(folder)), own_home)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtype_is_the_one_asked_for(dtype: str, tmp_path: Path, own_home: Path) -> None:
    loaded = load(ModelSpec(str(save_tiny(tmp_path / "model")), dtype=dtype), own_home)  # type: ignore[arg-type]
    assert {p.dtype for p in loaded.model.parameters()} == {getattr(torch, dtype)}
    assert loaded.shape().dtype == getattr(torch, dtype)
    assert loaded.info.weight_bytes == loaded.info.parameters * getattr(torch, dtype).itemsize


def test_the_dtype_of_the_checkpoint_does_not_leak_in(tmp_path: Path, own_home: Path) -> None:
    folder = save_tiny(tmp_path / "model", dtype=torch.bfloat16)
    assert load(ModelSpec(str(folder)), own_home).info.dtype == "float32"


def test_all_end_tokens_are_collected(tmp_path: Path, own_home: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    edit_json(folder / "generation_config.json", eos_token_id=[7, 259])
    edit_json(folder / "config.json", eos_token_id=12)
    info = load(ModelSpec(str(folder)), own_home).info
    assert info.eos_ids == (7, 12, 257, 259)
    assert describe(ModelSpec(str(folder)), own_home)[0].eos_ids == info.eos_ids


def test_a_folder_without_generation_config(tmp_path: Path, own_home: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    (folder / "generation_config.json").unlink()
    spec = ModelSpec(str(folder))
    assert load(spec, own_home).info == describe(spec, own_home)[0]


@pytest.mark.parametrize(
    ("rope", "window"),
    [
        ({"rope_type": "default"}, 64),
        ({"rope_type": "linear", "factor": 8.0}, 512),
        ({"rope_type": "dynamic", "factor": 2.0}, 128),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}, 64),
        (
            {
                "rope_type": "llama3",
                "factor": 32.0,
                "original_max_position_embeddings": 16,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            },
            64,
        ),
    ],
    ids=lambda v: v["rope_type"] if isinstance(v, dict) else str(v),
)
def test_the_window_honours_rope_scaling(rope: dict[str, Any], window: int, tmp_path: Path, own_home: Path) -> None:
    folder = save_tiny(tmp_path / "model", window=64, rope_parameters={"rope_theta": 10000.0, **rope})
    assert describe(ModelSpec(str(folder)), own_home)[0].window == window


def test_an_old_style_rope_scaling_key_is_honoured(tmp_path: Path, own_home: Path) -> None:
    folder = save_tiny(tmp_path / "model", window=64)
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]
    (folder / "config.json").write_text(
        json.dumps({**config, "rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}})
    )
    assert describe(ModelSpec(str(folder)), own_home)[0].window == 256


def test_a_relative_folder_wins_over_a_hub_id(own_home: Path) -> None:
    save_tiny(Path("org/model"))
    assert load(ModelSpec("org/model"), own_home).info.source == "folder"


# --- placement -------------------------------------------------------------------------------------------------------


def test_placement_that_this_machine_cannot_serve_is_refused_before_reading(own_home: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    nowhere = "/no/such/folder"
    assert "no GPU" in failure(ModelSpec(nowhere, device="cuda:0"), own_home).message
    assert "flash_attention_2" in failure(ModelSpec(nowhere, attn="flash_attention_2"), own_home).message
    assert "load_in=4bit" in failure(ModelSpec(nowhere, load_in="4bit"), own_home).message
    wrong = failure(ModelSpec(nowhere, device="tpu"), own_home)
    assert isinstance(wrong, BadValue)
    assert "tpu" in wrong.message


def test_revision_of_a_local_folder_is_refused(tmp_path: Path, own_home: Path) -> None:
    assert "revision=v2" in failure(ModelSpec(str(save_tiny(tmp_path / "m")), revision="v2"), own_home).message


# --- what cannot be loaded -------------------------------------------------------------------------------------------


def test_paths_that_are_no_model(tmp_path: Path, own_home: Path) -> None:
    save_tiny(tmp_path / "Llama-3-8B")
    typo = failure(ModelSpec(str(tmp_path / "Lama-3-8b")), own_home)
    assert "no model folder" in typo.message
    assert str(tmp_path / "Llama-3-8B") in typo.next_step
    (tmp_path / "empty").mkdir()
    assert "no config.json" in failure(ModelSpec(str(tmp_path / "empty")), own_home).message
    (tmp_path / "note.txt").write_text("hello")
    assert "not a GGUF file" in failure(ModelSpec(str(tmp_path / "note.txt")), own_home).message
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    assert "adapter" in failure(ModelSpec(str(tmp_path / "lora")), own_home).message


def test_a_typo_of_demo_is_understood(own_home: Path) -> None:
    error = failure(ModelSpec("deom"), own_home)
    assert "'deom'" in error.message
    assert "'demo'" in error.next_step


def test_damaged_folders(tmp_path: Path, own_home: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    spec, weights, config = ModelSpec(str(folder)), folder / "model.safetensors", folder / "config.json"
    whole, text = weights.read_bytes(), config.read_text()

    weights.write_bytes(whole[: len(whole) // 2])
    error = failure(spec, own_home)
    assert "model.safetensors is damaged or cut short" in error.message
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    assert "Git LFS" in failure(spec, own_home).message
    weights.unlink()
    assert "has no weights" in failure(spec, own_home).message
    weights.write_bytes(whole)

    config.write_text("{ not json")
    assert "config.json" in failure(spec, own_home).message
    config.write_text(json.dumps({**json.loads(text), "model_type": "llamma9"}))
    assert "does not know the architecture" in failure(spec, own_home).message
    config.write_text(text)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert "no tokenizer" in failure(spec, own_home).message


def test_missing_and_misshapen_tensors_are_never_filled_with_random_ones(tmp_path: Path, own_home: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    name = "model.layers.2.self_attn.k_proj.weight"
    save_file({k: v for k, v in tensors.items() if k != name}, weights, metadata={"format": "pt"})
    assert name in failure(ModelSpec(str(folder)), own_home).message
    save_file({**tensors, name: tensors[name][:3].contiguous()}, weights, metadata={"format": "pt"})
    assert "cannot be read" in failure(ModelSpec(str(folder)), own_home).message


def test_a_shard_that_is_not_there_is_named(tmp_path: Path, own_home: Path) -> None:
    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder, max_shard_size="300KB")
    byte_tokenizer().save_pretrained(folder)
    assert load(ModelSpec(str(folder)), own_home).info.layers == 4
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert shard.name in failure(ModelSpec(str(folder)), own_home).message


@pytest.mark.parametrize(
    ("family", "config", "words"),
    [
        ("FalconConfig", {"num_attention_heads": 4, "num_hidden_layers": 2, "alibi": True}, "ALiBi"),
        ("MptConfig", {"n_heads": 4, "n_layers": 2, "d_model": 64}, "attention"),
        ("DeepseekV3Config", {"num_hidden_layers": 2}, "different width"),
        ("DiffLlamaConfig", {"num_hidden_layers": 2}, "differential attention"),
        ("BertConfig", {"num_hidden_layers": 2, "num_attention_heads": 4}, "looks ahead"),
        ("T5Config", {"num_layers": 2}, "not a causal language model"),
    ],
)
def test_unsupported_families_are_refused_before_any_work(
    family: str, config: dict[str, Any], words: str, tmp_path: Path, own_home: Path
) -> None:
    folder = tmp_path / "model"  # config and tokenizer alone: a refusal that came later would name the weights
    getattr(transformers, family)(hidden_size=64, vocab_size=300, **config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    error = failure(ModelSpec(str(folder)), own_home)
    assert isinstance(error, ModelError)
    assert words in error.message


def test_code_of_strangers_runs_only_when_asked(tmp_path: Path, own_home: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    trace = tmp_path / "was-run"
    edit_json(
        folder / "config.json",
        model_type="stranger",
        architectures=["StrangerForCausalLM"],
        auto_map={
            "AutoConfig": "configuration_stranger.StrangerConfig",
            "AutoModelForCausalLM": "modeling_stranger.StrangerForCausalLM",
        },
    )
    (folder / "configuration_stranger.py").write_text(
        f"open({str(trace)!r}, 'w').close()\n"
        "from transformers import LlamaConfig\n"
        "class StrangerConfig(LlamaConfig):\n    model_type = 'stranger'\n"
    )
    (folder / "modeling_stranger.py").write_text(
        "from transformers.models.llama.modeling_llama import *\n"
        "from .configuration_stranger import StrangerConfig\n"
        "class StrangerForCausalLM(LlamaForCausalLM):\n    config_class = StrangerConfig\n"
    )
    error = failure(ModelSpec(str(folder)), own_home)
    assert "--trust-remote-code" in error.next_step
    assert not trace.exists()
    code = (
        "import sys; from pathlib import Path; from lcbench.config.spec import ModelSpec\n"
        "from lcbench.models.load import load\n"
        "info = load(ModelSpec(sys.argv[1], trust_remote_code=True), Path(sys.argv[2])).info\n"
        "print(info.architecture, info.parameters)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(own_home)],
        capture_output=True,
        text=True,
        env={**__import__("os").environ, "HF_HOME": str(tmp_path / "hf")},
    )
    assert trace.exists(), done.stderr
    assert done.stdout.split() == ["StrangerForCausalLM", str(sum(p.numel() for p in tiny_model().parameters()))]


# --- identity --------------------------------------------------------------------------------------------------------


def test_identity_follows_the_weights_and_is_remembered(
    tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModelSpec(str(save_tiny(tmp_path / "a")))
    first = describe(spec, own_home)[0].identity
    assert len(first) == 64
    same = describe(ModelSpec(str(save_tiny(tmp_path / "b"))), own_home)[0]
    assert same.identity == first
    assert describe(ModelSpec(str(save_tiny(tmp_path / "c", seed=1))), own_home)[0].identity != first

    from lcbench.models import identity

    monkeypatch.setattr(identity.hashlib, "sha256", None)  # any hashing of contents would now fail
    stored = json.loads((own_home / "state" / "hashes.json").read_text())
    assert identity.file_sha256(tmp_path / "a" / "model.safetensors", own_home, print) in {
        entry["sha256"] for entry in stored.values()
    }
    monkeypatch.undo()
    save_tiny(tmp_path / "a", seed=1)
    assert describe(spec, tmp_path / "lcbench-home")[0].identity != first


def test_a_home_that_cannot_be_written_still_loads(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    info = load(ModelSpec(str(save_tiny(tmp_path / "m"))), blocked / "home").info
    assert len(info.identity) == 64


def test_info_is_frozen_and_hashable_identity() -> None:
    from tiny import loaded_tiny

    info = loaded_tiny().info
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.window = 1  # type: ignore[misc]
    assert info.identity == ""
