"""ReMamba against a Mamba of its own in numpy, with inserted vectors and changed time steps written out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from lcbench.engine.generate import empty_cache, prefill
from lcbench.errors import ModelError
from lcbench.methods.architecture.remamba import ReMamba, ReMambaState, read_weights
from lcbench.methods.base import require
from lcbench.methods.calibration import bound
from lcbench.methods.registry import resolve
from lcbench.models.info import LoadedModel
from linear_models import linear_model, loaded_linear
from tiny import byte_tokenizer, loaded_tiny

Array = NDArray[np.float64]
HIDDEN, LAYERS, INNER = 64, 3, 96


def silu(x: Array) -> Array:
    return np.asarray(x / (1 + np.exp(-x)))


def rms(x: Array, weight: Array) -> Array:
    return np.asarray(x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight)


def mamba(w: Mapping[str, Array], x: Array, scores: Mapping[int, float], biases: list[Array]) -> Array:
    """Final hidden states ``[n, D]`` of embeddings ``[n, D]``, token after token; ``scores`` by changed position."""
    for i in range(LAYERS):
        p = {k.removeprefix(f"backbone.layers.{i}."): v for k, v in w.items() if k.startswith(f"backbone.layers.{i}.")}
        inner, gate = np.split(rms(x, p["norm.weight"]) @ p["mixer.in_proj.weight"].T, 2, axis=1)
        padded = np.concatenate([np.zeros((3, INNER)), inner])
        kernel = p["mixer.conv1d.weight"][:, 0]
        conv = np.stack([(padded[t : t + 4].T * kernel).sum(1) for t in range(len(x))]) + p["mixer.conv1d.bias"]
        conv = silu(conv)
        size, state = p["mixer.A_log"].shape[1], np.zeros_like(p["mixer.A_log"])
        rank = p["mixer.dt_proj.weight"].shape[1]
        out = []
        for t in range(len(x)):
            made = p["mixer.x_proj.weight"] @ conv[t]
            step = p["mixer.dt_proj.weight"] @ made[:rank]
            if t in scores:
                step = step * scores[t] + biases[i]
            step = np.log1p(np.exp(step + p["mixer.dt_proj.bias"]))
            b, c = made[rank : rank + size], made[rank + size :]
            state = np.exp(-np.exp(p["mixer.A_log"]) * step[:, None]) * state + step[:, None] * b * conv[t][:, None]
            out.append((state @ c + p["mixer.D"] * conv[t]) * silu(gate[t]))
        x = x + np.stack(out) @ p["mixer.out_proj.weight"].T
    return rms(x, w["backbone.norm_f.weight"])


def two_layers(extra: Mapping[str, Array], name: str, x: Array) -> Array:
    first = silu(x @ extra[f"backbone.{name}_proj.0.weight"].T + extra[f"backbone.{name}_proj.0.bias"])
    return np.asarray(first @ extra[f"backbone.{name}_proj.2.weight"].T + extra[f"backbone.{name}_proj.2.bias"])


def reference(
    w: Mapping[str, Array], extra: Mapping[str, Array], ids: list[int], more: list[int], how: ReMamba
) -> Array:
    """Logits at the last prompt token and at each of ``more``."""
    embeddings = w["backbone.embeddings.weight"][ids]
    hidden = mamba(w, embeddings, {}, [])
    begin = int(how.start * len(ids))
    end = begin + int(np.ceil(how.region * len(ids)))
    keep = int(np.ceil(how.ratio * (end - begin)))
    query, keys = two_layers(extra, "Q", hidden[-1]), two_layers(extra, "K", hidden[begin:end])
    cosine = keys @ query / np.linalg.norm(keys, axis=1) / np.linalg.norm(query)
    chosen = np.sort(np.argsort(-cosine)[:keep])
    inserted = two_layers(extra, "V", hidden[begin:end][chosen])
    text = np.concatenate([embeddings[:begin], inserted, embeddings[end:]])
    at = begin if how.place == "first" else len(text) - keep
    scores = {at + j: max(0.0, float(cosine[c])) for j, c in enumerate(chosen)}
    biases = [extra[f"backbone.layers.{i}.mixer.ret_bias.param"] for i in range(LAYERS)]
    text = np.concatenate([text, w["backbone.embeddings.weight"][more]])
    return np.asarray((mamba(w, text, scores, biases) @ w["lm_head.weight"].T)[-1 - len(more) :])


def trained(seed: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    made = {f"backbone.{p}_proj.{i}.weight": draw(HIDDEN, HIDDEN) for p in "QKV" for i in (0, 2)}
    made |= {f"backbone.{p}_proj.{i}.bias": draw(HIDDEN) for p in "QKV" for i in (0, 2)}
    return made | {f"backbone.layers.{i}.mixer.ret_bias.param": draw(INNER) for i in range(LAYERS)}


def checkpoint(folder: Path) -> Path:
    """A merged checkpoint: Mamba and, beside its tensors, ReMamba's."""
    linear_model("mamba").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, **trained()}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def remembering() -> LoadedModel:
    """A Mamba whose steps are small: what stood at the beginning still shows at the end."""
    loaded = loaded_linear("mamba")
    with torch.no_grad():
        for layer in loaded.model.backbone.layers:
            layer.mixer.dt_proj.bias.sub_(4)
    return loaded


def read(loaded: LoadedModel, method: Any, ids: list[int], more: list[int]) -> Array:
    record = prefill(loaded, ids, cache=empty_cache(loaded, method, len(ids)))
    cache, rows = method.compress(record), [record.logits]
    for token in more:
        rows.append(cache.native.forward(loaded.model, torch.tensor([[token]]), torch.tensor([[cache.seen]]))[0, -1])
    return torch.stack(rows).detach().double().numpy()


@pytest.mark.parametrize(
    "how",
    [
        ReMamba(region=0.5, ratio=0.3),
        ReMamba(start=0.25, region=0.5, ratio=0.2),
        ReMamba(start=0.1, region=0.4, ratio=0.5, place="last"),
        ReMamba(),
    ],
    ids=lambda h: h.id,
)
def test_logits_are_those_of_the_reference(how: ReMamba) -> None:
    loaded, extra = remembering(), trained()
    ids, more = [(11 * i * i + 3) % 256 for i in range(40)], [7, 200, 31]
    weights = {k: p.detach().double().numpy() for k, p in loaded.model.named_parameters()}
    expected = reference(weights, {k: v.double().numpy() for k, v in extra.items()}, ids, more, how)
    with torch.inference_mode():
        found = read(loaded, bound(how, _weights=extra), ids, more)
        plain = read(loaded, resolve("full"), ids, more)
    assert np.abs(found - expected).max() < 3e-4
    assert np.abs(plain - expected).max() > 0.02


def test_everything_kept_as_it_was_is_the_plain_model(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, ids = loaded_linear("mamba"), list(range(30, 60))
    extra = {k: torch.zeros_like(v) if "ret_bias" in k else v for k, v in trained().items()}
    how = bound(ReMamba(region=0.5, ratio=1.0), _weights=extra)
    embeddings = loaded.model.get_input_embeddings()(torch.tensor(ids))

    def mapped(self: ReMambaState, name: str, x: Tensor) -> Tensor:
        return embeddings[: len(x)] if name == "V" else torch.ones_like(x)

    monkeypatch.setattr(ReMambaState, "_map", mapped)
    with torch.inference_mode():
        assert np.abs(read(loaded, how, ids, [1]) - read(loaded, resolve("full"), ids, [1])).max() < 1e-4


def test_the_second_reading_is_shorter_and_scores_are_not_negative() -> None:
    loaded, ids = loaded_linear("mamba"), torch.randint(0, 256, (1, 50), generator=torch.Generator().manual_seed(2))
    how = ReMamba(start=0.2, region=0.5, ratio=0.3)
    begin, end, keep = how.span(50)
    assert (begin, end, keep) == (10, 35, 8)
    state = bound(how, _weights=trained()).native_state(loaded.model)
    with torch.inference_mode():
        text, scores, first = state.condensed(loaded.model, ids)
    assert text.shape == (1, 50 - 25 + 8, HIDDEN)
    assert (len(scores), first) == (8, 10)
    assert (scores >= 0).all()


@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_short_prompts(length: int) -> None:
    loaded, how = loaded_linear("mamba"), ReMamba(region=1.0, ratio=1.0)
    begin, end, keep = how.span(length)
    assert (begin, end, keep) == (0, length - 1, length - 1)
    with torch.inference_mode():
        assert np.isfinite(read(loaded, bound(how, _weights=trained()), list(range(length)), [3])).all()


def test_the_model_is_as_it_was() -> None:
    loaded, ids = loaded_linear("mamba"), list(range(30))
    before = {k: p.clone() for k, p in loaded.model.named_parameters()}
    how = bound(ReMamba(region=0.5, ratio=0.3), _weights=trained())
    with torch.inference_mode():
        plain = read(loaded, resolve("full"), ids, [1])
        one = read(loaded, how, ids, [1])
        read(loaded, how, list(range(90, 130)), [1])
        assert np.array_equal(read(loaded, how, ids, [1]), one)
        assert np.array_equal(read(loaded, resolve("full"), ids, [1]), plain)
    after = dict(loaded.model.named_parameters())
    assert set(before) == set(after)
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert not any(m._forward_hooks for m in loaded.model.modules())


def test_weights_come_from_the_models_folder(tmp_path: Path, own_home: Path) -> None:
    folder = checkpoint(tmp_path / "remamba")
    info = replace(loaded_linear("mamba").info, source="folder", name=str(folder))
    require(ReMamba(), info.shape(), info.name)
    method = ReMamba().bind(info, own_home)
    method.check(info.shape())
    assert set(read_weights(folder, LAYERS)) == set(trained())
    plain = tmp_path / "mamba"
    linear_model("mamba").save_pretrained(plain)
    with pytest.raises(ModelError, match=r"backbone\.K_proj"):
        ReMamba().bind(replace(info, name=str(plain)), own_home)
    with pytest.raises(ModelError, match="folder"):
        ReMamba().bind(replace(info, source="hub"), own_home)
    with pytest.raises(ModelError, match="Llama"):
        ReMamba().bind(loaded_tiny().info, own_home)


def test_a_run_from_the_command_line(tmp_path: Path, cli: Any) -> None:
    folder = checkpoint(tmp_path / "remamba")
    task = "passkey@lengths=20/60,depths=2,repeats=1,digits=3,max_new_tokens=5"
    methods = "full,remamba@region=0.5,ratio=0.2"
    done = cli("run", "--model", folder, "--method", methods, "--task", task, "--out", "run")
    assert done.code == 0, done.err
    files = sorted(Path("run/predictions").rglob("*.jsonl"))
    assert len(files) == 2
    assert files[0].read_bytes() != files[1].read_bytes()
    refused = cli("run", "--model", tmp_path / "none", "--method", "remamba", "--task", task)
    assert refused.code == 2
