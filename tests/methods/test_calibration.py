"""Calibration files: found by the weights' identity, replaced at once, refused with the command that makes them."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path

import pytest
import torch
from cases_evict_b import TABLE
from harness import SHAPE

from lcbench.engine.calibrate import CALIBRATORS
from lcbench.errors import CannotWrite, CorruptFile, ModelError
from lcbench.methods import calibration
from lcbench.methods.base import Traits
from lcbench.methods.registry import all_methods, resolve
from lcbench.models.info import ModelInfo
from tiny import loaded_tiny


@pytest.fixture(scope="module")
def info() -> ModelInfo:
    return dataclasses.replace(loaded_tiny(name="some/model").info, weights_sha256="ab" * 32)


def test_json_comes_back(info: ModelInfo, tmp_path: Path) -> None:
    path = calibration.save_json("headkv", info, tmp_path, {"scores": TABLE}, {"seed": 7})
    assert path == tmp_path / "calibration" / ("ab" * 32) / "headkv.json"
    found = calibration.load_json("headkv", info, tmp_path)
    assert found.data == {"scores": TABLE}
    assert found.provenance["seed"] == 7
    assert found.provenance["model"]["identity"] == "ab" * 32
    assert found.provenance["model"]["layers"] == info.layers
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert os.listdir(path.parent) == ["headkv.json"]  # nothing half written stays


def test_tensors_come_back(info: ModelInfo, tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4).t(), "b": torch.arange(5, dtype=torch.int32)}
    path = calibration.save_tensors("predictors", info, tmp_path, tensors, {"text": "é"})
    found = calibration.load_tensors("predictors", info, tmp_path)
    assert path.suffix == ".safetensors"
    assert {k: v.dtype for k, v in found.tensors.items()} == {"a": torch.float32, "b": torch.int32}
    assert all(torch.equal(found.tensors[k], tensors[k]) for k in tensors)
    assert found.provenance["text"] == "é"
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_other_weights_do_not_get_it(info: ModelInfo, tmp_path: Path) -> None:
    calibration.save_json("headkv", info, tmp_path, {"scores": TABLE}, {})
    other = dataclasses.replace(info, weights_sha256="cd" * 32)
    for method in ("headkv", "headkv-r2"):
        with pytest.raises(ModelError, match=f"no {method} calibration for some/model") as caught:
            resolve(method).bind(other, tmp_path)
        assert caught.value.next_step == f"Run: lcbench calibrate {method} --model some/model"


def test_a_model_without_identity_has_none(info: ModelInfo, tmp_path: Path) -> None:
    unknown = dataclasses.replace(info, weights_sha256=None)
    with pytest.raises(ModelError, match="no commit and no weight hash"):
        calibration.load_json("headkv", unknown, tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema_version": 1}', b"\xff\xfe", b'{"schema_version": 2}'])
def test_a_broken_file_is_named(info: ModelInfo, tmp_path: Path, content: bytes) -> None:
    for path, load in (
        (calibration.save_json("x", info, tmp_path, {}, {}), calibration.load_json),
        (calibration.save_tensors("x", info, tmp_path, {"a": torch.ones(2)}, {}), calibration.load_tensors),
    ):
        path.write_bytes(content)
        with pytest.raises(CorruptFile, match=path.name) as caught:
            load("x", info, tmp_path)
        assert "lcbench calibrate x --model some/model" in caught.value.next_step


def test_a_truncated_tensor_file_is_named(info: ModelInfo, tmp_path: Path) -> None:
    path = calibration.save_tensors("x", info, tmp_path, {"a": torch.ones(200)}, {})
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CorruptFile, match=r"x\.safetensors"):
        calibration.load_tensors("x", info, tmp_path)


def test_a_failed_write_leaves_the_old_file(info: ModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = calibration.save_json("x", info, tmp_path, {"old": 1}, {})

    def full(file: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CannotWrite, match="No space left"):
        calibration.save_json("x", info, tmp_path, {"new": 1}, {})
    assert calibration.load_json("x", info, tmp_path).data == {"old": 1}
    assert os.listdir(path.parent) == ["x.json"]


def test_binding_gives_headkv_its_scores(info: ModelInfo, tmp_path: Path) -> None:
    path = calibration.save_json("headkv", info, tmp_path, {"scores": TABLE}, {})
    plain = resolve("headkv@budget=512,beta=1.1")
    bound = plain.bind(info, tmp_path)
    bound.check(SHAPE)
    assert bound.calibration == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (bound.id, bound) == (plain.id, plain)
    total = sum(map(sum, TABLE))
    shares = bound.shares(SHAPE)  # type: ignore[attr-defined]
    assert shares[2, 1].item() == pytest.approx(sum(TABLE[2][4:]) / total)
    with pytest.raises(ModelError, match="no headkv calibration"):
        plain.check(SHAPE)  # the method it came from is untouched


def test_every_method_that_reads_one_names_a_command_that_exists(info: ModelInfo, tmp_path: Path) -> None:
    readers = {name: cls for name, cls in all_methods().items() if cls.traits.calibrate}
    assert {"aqua-kv", "headkv", "headkv-r2"} <= set(readers)
    for name, cls in readers.items():
        for wanted in cls.traits.calibrate.split(", "):
            assert wanted in CALIBRATORS, f"{name}: no `lcbench calibrate {wanted}`"
        with pytest.raises(ModelError, match="calibration for some/model yet") as caught:
            resolve(name).bind(info, tmp_path)
        assert caught.value.next_step == f"Run: lcbench calibrate {cls.traits.calibrate} --model some/model"


def test_what_a_method_needs() -> None:
    assert Traits(family="evict").needs == "none"
    assert Traits(family="evict", calibrate="headkv").needs == "calibration"
    assert Traits(family="prompt", training="a classifier").needs == "training"
    both = resolve("headkv@budget=0.5+kivi@bits=2")
    assert (both.traits.calibrate, both.traits.needs) == ("headkv", "calibration")
    for name, cls in all_methods().items():
        assert "lcbench calibrate" not in cls.traits.training, f"{name}: put the calibration into `calibrate`"


def test_methods_without_calibration_read_none(info: ModelInfo, tmp_path: Path) -> None:
    for name, cls in all_methods().items():
        if cls.traits.needs == "none":
            method = resolve(name)
            bound = method.bind(info, tmp_path)
            assert (bound, bound.id) == (method, method.id)
            assert bound.calibration == method.calibration == ""
    assert not (tmp_path / "calibration").exists()
