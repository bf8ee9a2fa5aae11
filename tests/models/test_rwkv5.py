"""RWKV-5 against a reference of its own: numpy, fp64, one token after another, the formulas as they are written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lcbench.models.rwkv5.modeling import time_mixing
from lcbench.models.rwkv5.tokenizer import END, VOCABULARY, RwkvWorldTokenizer
from linear_models import linear_model

Array = NDArray[np.float64]
HEAD = 8


def reference(weights: Mapping[str, Array], ids: list[int], layers: int) -> tuple[Array, list[dict[str, Any]]]:
    """Logits ``[n, vocab]`` and the last state."""
    width = weights["emb.weight"].shape[1]
    states = [
        {"a": np.zeros(width), "b": np.zeros(width), "s": np.zeros((width // HEAD, HEAD, HEAD))} for _ in range(layers)
    ]
    rows = []
    for token in ids:
        x = weights["emb.weight"][token]
        for i, state in enumerate(states):
            w = {k.removeprefix(f"blocks.{i}."): v for k, v in weights.items() if k.startswith(f"blocks.{i}.")}
            if i == 0:
                x = norm(x, w["ln0.weight"], w["ln0.bias"])
            a = norm(x, w["ln1.weight"], w["ln1.bias"])
            x = x + time(w, a, state)
            state["a"] = a
            b = norm(x, w["ln2.weight"], w["ln2.bias"])
            x = x + channel(w, b, state["b"])
            state["b"] = b
        rows.append(weights["head.weight"] @ norm(x, weights["ln_out.weight"], weights["ln_out.bias"]))
    return np.stack(rows), states


def norm(x: Array, scale: Array, shift: Array, eps: float = 1e-5) -> Array:
    return (x - x.mean()) / np.sqrt(x.var() + eps) * scale + shift


def mix(w: Mapping[str, Array], name: str, x: Array, before: Array) -> Array:
    mu = w[name].reshape(-1)
    return mu * x + (1 - mu) * before


def time(w: Mapping[str, Array], x: Array, state: dict[str, Any]) -> Array:
    r, k, v = (
        w[f"att.{name}.weight"] @ mix(w, f"att.time_mix_{name[0]}", x, state["a"])
        for name in ("receptance", "key", "value")
    )
    g = w["att.gate.weight"] @ mix(w, "att.time_mix_g", x, state["a"])
    g = g / (1 + np.exp(-g))
    parts = []
    for h in range(len(state["s"])):
        here = slice(h * HEAD, (h + 1) * HEAD)
        outer = np.outer(k[here], v[here])
        out = r[here] @ (np.diag(w["att.time_faaaa"][h]) @ outer + state["s"][h])
        state["s"][h] = outer + np.diag(np.exp(-np.exp(w["att.time_decay"][h]))) @ state["s"][h]
        parts.append(norm(out, w["att.ln_x.weight"][here], w["att.ln_x.bias"][here], eps=64e-5))
    out = w["att.output.weight"] @ (np.concatenate(parts) * g)
    return np.asarray(out)


def channel(w: Mapping[str, Array], x: Array, before: Array) -> Array:
    k = np.maximum(w["ffn.key.weight"] @ mix(w, "ffn.time_mix_k", x, before), 0) ** 2
    r = 1 / (1 + np.exp(-(w["ffn.receptance.weight"] @ mix(w, "ffn.time_mix_r", x, before))))
    return np.asarray(r * (w["ffn.value.weight"] @ k))


def weights_of(model: Any) -> dict[str, Array]:
    return {name: p.detach().double().numpy() for name, p in model.named_parameters()}


def model_with_uneven_decays() -> Any:
    model = linear_model("rwkv5")
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "time_decay" in name:  # from almost none to e^-12 a token
                p.copy_(torch.linspace(-6, 2.5, p.numel()).view_as(p))
            if "time_mix" in name:
                p.copy_(torch.rand(p.shape, generator=torch.Generator().manual_seed(1)))
    return model


def test_logits_and_state_of_a_text_read_at_once() -> None:
    model, ids = model_with_uneven_decays(), [(7 * i * i + 3) % 256 for i in range(50)]  # over three chunks and a rest
    expected, states = reference(weights_of(model), ids, 3)
    with torch.inference_mode():
        output = model(torch.tensor([ids]))
    assert np.abs(output.logits[0].double().numpy() - expected).max() < 2e-4
    assert expected.std() > 0.5
    for mine, theirs in zip(output.state, states, strict=True):
        assert np.abs(mine["matrix"][0].double().numpy() - theirs["s"]).max() < 1e-4
        assert np.abs(mine["shift"][0].double().numpy() - theirs["a"]).max() < 1e-4
        assert np.abs(mine["channel_shift"][0].double().numpy() - theirs["b"]).max() < 1e-4


def test_token_by_token_and_in_pieces() -> None:
    model, ids = model_with_uneven_decays(), [(5 * i + 1) % 256 for i in range(40)]
    expected, _ = reference(weights_of(model), ids, 3)
    for pieces in ([1] * 40, [17, 1, 22]):
        state, found, at = None, [], 0
        for length in pieces:
            with torch.inference_mode():
                output = model(torch.tensor([ids[at : at + length]]), state=state)
            state, at = output.state, at + length
            found.append(output.logits[0])
        assert np.abs(torch.cat(found).double().numpy() - expected).max() < 2e-4


def test_a_first_token_has_no_predecessor() -> None:
    """Token shift at t = 0 mixes with zeros, not with the token itself."""
    model = model_with_uneven_decays()
    first, _ = reference(weights_of(model), [9], 3)
    with torch.inference_mode():
        assert np.abs(model(torch.tensor([[9]])).logits[0].double().numpy() - first).max() < 2e-4


def test_decays_so_strong_that_their_powers_vanish() -> None:
    generator = torch.Generator().manual_seed(0)
    r, k, v = (torch.randn(1, 40, 2, HEAD, generator=generator) for _ in range(3))
    decay, first = torch.full((2, HEAD), -60.0), torch.zeros(2, HEAD)
    out, state = time_mixing(r, k, v, decay, first, torch.zeros(1, 2, HEAD, HEAD))
    assert torch.isfinite(out).all()
    # what is left of the past is the token before
    expected = torch.einsum("thi,thi,thj->thj", r[0, 1:], k[0, :-1], v[0, :-1])
    assert (out[0, 1:] - expected).abs().max() < 1e-4
    assert torch.isfinite(state).all()


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    entries: list[bytes] = [bytes([i]) for i in range(256)]
    entries += [b"th", b"the", b" the", b"there", b"\xc3\xa9", "日本".encode(), b"\n\n", b"User:"]
    lines = []
    for i, entry in enumerate(entries, 1):
        try:
            written = repr(entry.decode())
        except UnicodeDecodeError:
            written = repr(entry)
        lines.append(f"{i} {written} {len(entry)}")
    path = tmp_path / VOCABULARY
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("text", ["the other there", "User: café 日本語\n\n\x00", "", "a" * 300])
def test_the_tokenizer_takes_the_longest_entry_and_gives_the_text_back(vocabulary: Path, text: str) -> None:
    tokenizer = RwkvWorldTokenizer(str(vocabulary))
    ids = tokenizer(text, add_special_tokens=True)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    entries = {i: t for t, i in tokenizer._ids.items()}
    data, at = text.encode(), 0
    for i in ids:  # by trying every entry
        best = max((t for t in entries.values() if data.startswith(t, at)), key=len)
        assert entries[i] == best
        at += len(best)
    assert at == len(data)


def test_the_end_token_is_zero(vocabulary: Path, tmp_path: Path) -> None:
    tokenizer = RwkvWorldTokenizer(str(vocabulary))
    assert (tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(END)) == (0, 0)
    assert tokenizer.decode([0, 117, 0], skip_special_tokens=True) == "t"
    tokenizer.save_pretrained(tmp_path / "saved")
    again = RwkvWorldTokenizer.from_pretrained(tmp_path / "saved")
    assert again("the é")["input_ids"] == tokenizer("the é")["input_ids"]


@pytest.mark.parametrize("line", ["1 'ab' 3", "x 'a' 1", "1 a 1", "no entry"])
def test_a_line_that_is_no_entry_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / VOCABULARY
    path.write_text(f"7 'a' 1\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 2"):
        RwkvWorldTokenizer(str(path))
