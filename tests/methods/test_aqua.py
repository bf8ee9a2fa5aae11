"""aqua-kv beyond the acceptance harness: prediction, storage, forks, calibration."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aqua_reference
import harness
import pytest
import torch
from aqua_reference import predictors, with_predictors
from torch import Tensor

import tiny
from lcbench.config.spec import ModelSpec
from lcbench.engine import calibrate_aqua
from lcbench.engine.calibrate import Request
from lcbench.errors import BadValue, CorruptFile, ModelError
from lcbench.kv.cache import CacheShape
from lcbench.kv.codecs import Codec
from lcbench.kv.higgs import Higgs
from lcbench.kv.predicted import PredictedLayer, Predictor
from lcbench.kv.rotation import Rotation
from lcbench.methods.calibration import bound, load_tensors
from lcbench.methods.quantize.aqua_kv import AquaKV
from lcbench.methods.registry import resolve
from lcbench.models import adapter
from lcbench.models.load import load
from lcbench.models.rope import Rope

WIDTH = 64


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with harness.one_thread():
        yield


def zeros(layers: int = 4) -> dict[str, Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in predictors(layers).items()}


class Identity:
    """A codec that keeps everything."""

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x.clone(),)

    def decode(self, parts: Sequence[Tensor], width: int, dtype: torch.dtype) -> Tensor:
        return parts[0].to(dtype)


@dataclass(frozen=True)
class Lossless(AquaKV):
    """The method with an identity quantizer."""

    def codec(self, layer: int) -> Codec:
        return Identity()


# --- parameters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "names"), [("aqua-kv@bits=5", "bits=5"), ("aqua-kv@sink=-1", "sink=-1"), ("aqua-kv@buffer=0", "buffer=0")]
)
def test_values_it_cannot_take(spec: str, names: str) -> None:
    with pytest.raises(BadValue, match=names):
        resolve(spec)


def test_models_it_cannot_serve() -> None:
    def shape(layers: int, kv_heads: int, width: int) -> CacheShape:
        return CacheShape(layers, 8, kv_heads, width, torch.float16, torch.device("cpu"))

    with pytest.raises(ModelError, match="no aqua-kv calibration") as caught:
        resolve("aqua-kv").check(shape(4, 2, 32))
    assert "lcbench calibrate aqua-kv --model" in caught.value.next_step
    with pytest.raises(ModelError) as caught:
        resolve("aqua-kv@bits=3").check(shape(4, 2, 32))
    assert "lcbench calibrate aqua-kv-3bit --model" in caught.value.next_step
    method = with_predictors(resolve("aqua-kv"))
    method.check(shape(4, 2, 32))
    for wrong in (shape(3, 2, 32), shape(5, 2, 32), shape(4, 4, 32)):
        with pytest.raises(ModelError):
            method.check(wrong)
    with pytest.raises(ModelError, match="multiple of 8"):
        method.check(shape(4, 1, 12))


# --- what is stored ---------------------------------------------------------------------------------------------------


def test_predictors_of_zero_are_higgs_alone() -> None:
    """Check 1."""
    pair = harness.models("llama")
    method = with_predictors(resolve("aqua-kv@bits=3"), zeros())
    record = harness.prefill(pair, harness.tokens(150, seed=1), method)
    layers = method.compress(record).layers
    for i, layer in enumerate(layers):
        assert isinstance(layer, PredictedLayer)
        original = record.layer(i)
        positions = torch.arange(4, 150)
        key = original.observed[Rotation()].undo(original.key[:, 4:], positions)
        codec = Higgs(4 if i == 0 else 3)
        layer.ladder.hand_up(i - 1, (torch.zeros(146, WIDTH), torch.zeros(146, WIDTH)))
        for restored, exact in zip(layer._restored(), (key, original.value[:, 4:]), strict=True):
            plain = exact.transpose(0, 1).reshape(146, WIDTH)
            assert torch.equal(restored, codec.decode(codec.encode(plain), WIDTH, torch.float32))


@pytest.mark.parametrize("family", harness.FAMILIES)
def test_an_identity_quantizer_is_the_full_cache(family: str) -> None:
    """Check 2: predictions cancel, rotations cancel, nothing is lost on the way; across two flushes."""
    pair, ids = harness.models(family), harness.tokens(150, seed=2)
    method = bound(Lossless(buffer=32), _predictors=with_predictors(resolve("aqua-kv"))._stored)
    record = harness.prefill(pair, ids[:70], method)
    full = harness.force(pair, record.cache.fork(), ids[70:])
    assert harness.largest_difference(harness.force(pair, method.compress(record), ids[70:]), full) < 2e-4


def test_what_is_restored_is_prediction_and_rest() -> None:
    """Stored codes, decoded and added up in fp64, are what the layers restore; to fp32 accuracy."""
    pair = harness.models("llama")
    method = with_predictors(resolve("aqua-kv"))
    record = harness.prefill(pair, harness.tokens(180, seed=3), method)
    below: tuple[Tensor, Tensor] | None = None
    for i, layer in enumerate(method.compress(record).layers):
        assert isinstance(layer, PredictedLayer)
        codec = Higgs(2 if i else 4)
        parts = [
            codec.decode([buffer.used[0] for buffer in buffers], WIDTH, torch.float32).double()
            for buffers in layer._codes
        ]
        if below is not None:
            w = [method.predictor(i).key.double(), method.predictor(i).value.double()]
            parts[0] = parts[0] + below[0] @ w[0][:-1] + w[0][-1]
            parts[1] = parts[1] + torch.cat([parts[0], below[1]], dim=1) @ w[1][:-1] + w[1][-1]
            layer.ladder.hand_up(i - 1, (below[0].float(), below[1].float()))
        for restored, expected in zip(layer._restored(), parts, strict=True):
            assert (restored - expected).abs().max() < 1e-4 * expected.abs().max()
        below = (parts[0], parts[1])


@pytest.mark.parametrize("prompt", [1, 2, 5])
def test_sinks_fill_up_after_a_short_prompt(prompt: int) -> None:
    pair, ids = harness.models("llama"), harness.tokens(prompt + 64, seed=4)
    method, watcher = with_predictors(resolve("aqua-kv@buffer=20")), harness.KeysAndValues()
    record = harness.prefill(pair, ids[:prompt], method, watchers=[watcher])
    cache = method.compress(record)
    logits = harness.force(pair, cache, ids[prompt:], watchers=[watcher])
    expected = aqua_reference.logits(pair, method, ids, prompt, watcher.layers())
    assert harness.largest_difference(logits, expected) < 1e-4
    layer = cache.layers[0]
    assert isinstance(layer, PredictedLayer)
    assert [len(layer._first[0]), layer.encoded, len(layer._waiting[0])] == [4, 60, prompt]


def test_nothing_is_carried_between_passes() -> None:
    pair = harness.models("llama")
    method = with_predictors(resolve("aqua-kv@buffer=16"))
    cache = method.compress(harness.prefill(pair, harness.tokens(60, seed=5), method))
    for step in range(40):
        ladders = {id(layer.ladder) for layer in cache.layers if isinstance(layer, PredictedLayer)}
        assert len(ladders) == 1
        assert cache.layers[0].ladder.restored is None  # type: ignore[attr-defined]
        harness.force(pair, cache, harness.tokens(1, seed=step))


def test_forks_that_decode_in_one_batch_do_not_meet() -> None:
    """Rows of a forward pass take turns layer by layer, so each needs a ladder of its own."""
    pair, forced = harness.models("llama"), harness.tokens(40, seed=6)
    method = with_predictors(resolve("aqua-kv@buffer=16"))
    cache = method.compress(harness.prefill(pair, harness.tokens(60, seed=7), method))
    harness.force(pair, cache, forced[:10])
    rows = [cache.fork(), cache.fork()]
    texts = torch.stack([forced[10:], harness.tokens(30, seed=8)])
    alone = [harness.force(pair, cache.fork(), text) for text in texts]
    for step in range(30):
        positions = torch.full((2, 1), 70 + step)
        logits = adapter.forward(pair.ours, texts[:, step : step + 1], positions, rows)[:, -1]
        for row in range(2):
            assert harness.largest_difference(logits[row], alone[row][step]) < 1e-4


@pytest.mark.parametrize("scaling", [1.0, 1.19])
def test_rotation_round_trip_in_fp16(scaling: float) -> None:
    """Check 4."""
    rope = Rope(10000.0 ** (-torch.arange(0, 64, 2) / 64), scaling, False)
    key = torch.randn(2, 5000, 64, generator=torch.Generator().manual_seed(0)).half()
    positions = torch.arange(5000)
    assert (rope.apply(rope.undo(key, positions), positions) - key.float()).abs().max() < 1e-3
    again = rope.apply(rope.undo(key, positions).half(), positions).half()
    assert float((again.float() - key.float()).norm() / key.float().norm()) < 1e-3


# --- calibration ------------------------------------------------------------------------------------------------------


def request(folder: Path, home: Path, **more: Any) -> Request:
    return Request(more.pop("name", "aqua-kv"), ModelSpec(str(folder)), home, samples=9, lengths=(128,), **more)


def make(asked: Request) -> tuple[str, list[tuple[str, int, int]]]:
    told: list[tuple[str, int, int]] = []
    made = calibrate_aqua.calibrate_aqua(asked, say=lambda text: None, progress=lambda *what: told.append(what))
    assert [one.name for one in made] == [asked.name]
    return made[0].summary, told


def test_predictors_are_fitted_stored_and_used(tmp_path: Path) -> None:
    """Check 3, and the way from the command to a decoding method."""
    folder, home = tiny.save_tiny(tmp_path / "model"), tmp_path / "home"
    summary, told = make(request(folder, home))
    assert "8 sequences of 128 tokens of the Python language reference" in summary
    assert told[8:] == [("sequences", 9, 9), ("layers", 1, 3), ("layers", 2, 3), ("layers", 3, 3)]
    loaded = load(ModelSpec(str(folder)), home)
    kept = load_tensors("aqua-kv", loaded.info, home)
    assert {tuple(t.shape) for name, t in kept.tensors.items() if name.startswith("key")} == {(65, 64)}
    for what in ("keys", "values"):
        assert len(kept.provenance["unexplained"][what]) == 3
        assert all(share < 1 for share in kept.provenance["unexplained"][what])
        pairs = zip(kept.provenance["error"][what], kept.provenance["error_without_predictors"][what], strict=True)
        assert all(with_them < without for with_them, without in pairs)
    assert (kept.provenance["bits"], kept.provenance["tokens_each"], kept.provenance["held_out"]) == (2, 128, 1)
    assert len(kept.provenance["text_sha256"]) == 64
    method = resolve("aqua-kv").bind(loaded.info, home)
    method.check(loaded.shape())
    assert method.calibration == kept.sha256
    assert (method.id, resolve("aqua-kv").calibration) == ("aqua-kv", "")
    assert resolve("aqua-kv@buffer=64").bind(loaded.info, home).parameters["buffer"] == "64"
    with pytest.raises(ModelError, match="aqua-kv-4bit"):
        resolve("aqua-kv@bits=4").bind(loaded.info, home)


def test_the_same_twice_is_the_same_to_the_bit_and_bits_have_their_own(tmp_path: Path) -> None:
    folder = tiny.save_tiny(tmp_path / "model", layers=2)
    files = []
    for home in (tmp_path / "a", tmp_path / "b"):
        make(request(folder, home))
        make(request(folder, home, name="aqua-kv-3bit"))
        info = load(ModelSpec(str(folder)), home).info
        files.append([load_tensors(name, info, home) for name in ("aqua-kv", "aqua-kv-3bit")])
    assert [c.sha256 for c in files[0]] == [c.sha256 for c in files[1]]
    assert [c.provenance["bits"] for c in files[0]] == [2, 3]


def test_predictors_help_where_they_are_fitted(tmp_path: Path) -> None:
    """Values restored with fitted predictors are nearer to the exact ones than without, on text not seen before."""
    loaded = tiny.loaded_tiny("qwen3", kv_heads=4, hidden=96, head_dim=16)
    text = Path(calibrate_aqua.__file__).read_text(encoding="utf-8")
    sequences = calibrate_aqua.cut(loaded, text, count=10, length=200, seed=1)
    fitted = calibrate_aqua.fit(loaded, sequences, bits=2, held_out=2)
    for what in ("keys", "values"):
        assert all(a < b for a, b in zip(fitted.error[what], fitted.plain[what], strict=True))
        assert all(a < 1 for a in fitted.unexplained[what])


def test_ridge_is_the_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 6, generator=generator) + 1, torch.randn(200, 3, generator=generator)
    weights = calibrate_aqua.ridge([x[:150], x[150:]], [y[:150], y[150:]], torch.device("cpu"))
    design = torch.cat([x, torch.ones(200, 1)], dim=1).double()
    square = design.t() @ design
    damped = square + 1e-3 * square.diagonal().mean() * torch.eye(7, dtype=torch.float64)
    assert torch.allclose(weights.double(), damped.inverse() @ design.t() @ y.double(), atol=1e-5)
    predictor = Predictor(weights[:, :3], weights)
    assert torch.allclose(predictor.keys((x, y)), (design @ weights[:, :3].double()).float(), atol=1e-4)


@pytest.mark.parametrize("length", [1, 100_000])
def test_too_little_text(length: int, tmp_path: Path) -> None:
    loaded = tiny.loaded_tiny()
    with pytest.raises(ModelError, match="4 sequences") as caught:
        calibrate_aqua.cut(loaded, "a short text", count=4, length=length, seed=0)
    assert "--samples" in caught.value.next_step


def test_a_text_of_ones_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("Ein Text.\n", encoding="utf-8")
    assert calibrate_aqua.sample_text(mine) == ("mine.txt", "Ein Text.\n")
    mine.write_bytes(b"\xff\xfe\x00")
    for wrong in (mine, tmp_path / "none.txt", tmp_path):
        with pytest.raises(BadValue, match=wrong.name):
            calibrate_aqua.sample_text(wrong)


def test_from_the_command_line(cli: Callable[..., Any], tmp_path: Path) -> None:
    folder, text = tiny.save_tiny(tmp_path / "model", layers=2), tmp_path / "mine.txt"
    text.write_text("The quick brown fox. " * 200, encoding="utf-8")
    common = ("calibrate", "aqua-kv-4bit", "--model", folder, "--samples", 4)
    done = cli(*common, "--lengths", 100, "--text", text, "--json")
    assert done.code == 0, done.err
    stored = json.loads(done.out)
    assert stored["name"] == "aqua-kv-4bit"
    assert "of mine.txt" in stored["summary"]
    assert Path(stored["path"]).is_file()
    for wrong, told in (
        (("--from", text), "--from"),
        (("--lengths", "100,200"), "one length"),
        (("--text", tmp_path / "none.txt"), "none.txt"),
        (("--lengths", 90000, "--text", text), "--lengths"),
    ):
        done = cli(*common, *wrong)
        assert (done.code, done.out) == (2, "")
        assert told in done.err
    done = cli("calibrate", "headkv", "--model", folder, "--text", text)
    assert done.code == 2
    assert "--text" in done.err


def test_a_damaged_file_is_reported(tmp_path: Path) -> None:
    folder, home = tiny.save_tiny(tmp_path / "model", layers=2), tmp_path / "home"
    make(request(folder, home))
    info = load(ModelSpec(str(folder)), home).info
    path = load_tensors("aqua-kv", info, home).path
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CorruptFile):
        resolve("aqua-kv").bind(info, home)


def test_sequences_do_not_overlap_and_begin_with_bos() -> None:
    loaded = tiny.loaded_tiny(bos=True)
    text = "".join(chr(33 + i % 90) for i in range(3000))
    sequences = calibrate_aqua.cut(loaded, text, count=20, length=101, seed=3)
    assert all(len(s) == 101 and s[0] == loaded.info.bos_id for s in sequences)
    assert len({json.dumps(s) for s in sequences}) == 20 or len(sequences) == 20
    again = calibrate_aqua.cut(loaded, text, count=20, length=101, seed=3)
    assert sequences == again
    assert sequences != calibrate_aqua.cut(loaded, text, count=20, length=101, seed=4)
