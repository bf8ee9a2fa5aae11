"""lcbench doctor: what is there, what is missing, and the command that mends it; never an error."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from lcbench.cli import app, doctor
from lcbench.cli.doctor import Check, _print_table
from lcbench.methods import calibration
from tiny import loaded_tiny


def report() -> dict[str, Any]:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def check(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(c for c in found["checks"] if c["name"] == name)


def test_versions_home_and_disk(own_home: Path) -> None:
    found = report()
    assert check(found, "torch")["value"] == importlib.metadata.version("torch")
    assert check(found, "transformers")["ok"] is True
    assert found["home"] == str(own_home)
    assert str(own_home) in check(found, "LCBENCH_HOME")["value"]
    assert check(found, "free disk")["value"].endswith(" GB")
    assert not own_home.exists()  # looking leaves nothing behind


def test_the_table_names_sections_and_mends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lcbench.models.demo.importlib.util.find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "160"})
    assert result.exit_code == 0
    for heading in ("Software", "Machine", "Storage", "Data", "Models"):
        assert heading in result.stdout
    assert "To mend:" in result.stdout
    assert "pip install 'lcbench[demo]'" in result.stdout  # brackets are not taken for markup


def test_what_is_absent_is_never_called_complete(capsys: pytest.CaptureFixture[str]) -> None:
    fine, absent = Check("Data", "a", "there"), Check("Calibrations", "end", "not made", None, "lcbench calibrate end")
    note = "Absent and not always needed: 1 line marked -"
    for checks, first, told in [
        ([fine], "Nothing that must be there is missing.", False),
        ([fine, absent, Check("Machine", "GPU", "none", None)], "Nothing that must be there is missing.", True),
        ([absent, Check("Data", "b", "gone", False, "lcbench download b")], "To mend:", True),
    ]:
        _print_table(checks)
        shown = " ".join(capsys.readouterr().out.split())
        assert first in shown
        assert (note in shown) == told


def test_a_package_that_is_too_old_or_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"transformers": "4.40.0", "datasets": None}
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in versions:
            if versions[name] is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return versions[name]
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = report()
    assert found["ok"] is False
    assert check(found, "transformers")["ok"] is False
    assert "4.40.0" in check(found, "transformers")["value"]
    assert "pip install -U 'transformers>=5.10'" in found["mend"]
    assert any(mend.startswith("pip install -U 'datasets") for mend in found["mend"])


def test_a_home_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LCBENCH_HOME", str(tmp_path / "file" / "below"))
    found = report()
    assert check(found, "LCBENCH_HOME")["ok"] is False
    assert any("LCBENCH_HOME" in mend for mend in found["mend"])


def test_data_that_is_there_absent_gone_or_unreadable(own_home: Path) -> None:
    assert check(report(), "longbench") == {
        "section": "Data",
        "name": "longbench",
        "value": "not downloaded",
        "ok": None,
        "mend": "lcbench download longbench",
    }
    folder = own_home / "data" / "longbench"
    folder.mkdir(parents=True)
    (folder / "qasper.jsonl").write_text("{}\n")
    entry = {
        "sha256": "0" * 64,
        "size": 3,
        "rows": 1,
        "source": "test",
        "subset": {"rows": 1, "of": 200, "name": "qasper.first1.jsonl"},
        "date": "2026-01-01T00:00:00+00:00",
    }
    (folder / "lock.json").write_text(json.dumps({"qasper.jsonl": entry}))
    there = check(report(), "longbench")
    assert there["ok"] is True
    assert "qasper.jsonl: first 1 of 200 rows" in there["value"]
    (folder / "qasper.jsonl").unlink()
    gone = check(report(), "longbench")
    assert (gone["ok"], gone["mend"]) == (False, "lcbench download longbench")
    (folder / "lock.json").write_text("{ torn")
    assert check(report(), "longbench")["ok"] is False


def test_converted_models_are_listed(own_home: Path) -> None:
    folder = own_home / "models" / "gguf-0123"
    folder.mkdir(parents=True)
    assert not [c for c in report()["checks"] if c["name"] == "gguf-0123"]  # unfinished
    (folder / "lcbench.json").write_text(json.dumps({"gguf_sha256": "0", "gguf_name": "big.gguf"}))
    assert check(report(), "gguf-0123")["value"] == "converted from big.gguf"


def test_calibrations_are_listed_with_their_model(own_home: Path) -> None:
    absent = check(report(), "headkv")
    assert absent["ok"] is None
    assert absent["value"] == "not made for any model; for headkv"
    assert absent["mend"] == "lcbench calibrate headkv --model MODEL"
    info = replace(loaded_tiny(name="some/model").info, weights_sha256="ab" * 32)
    calibration.save_json("headkv", info, own_home, {"scores": []}, {})
    tensors = calibration.save_tensors("aqua-kv", info, own_home, {"key.1": torch.ones(3, 2)}, {})
    (tensors.parent / "notes.txt").write_text("not ours")
    found = report()
    for name, kind in (("headkv", "json"), ("aqua-kv", "safetensors")):
        assert check(found, name)["ok"] is True
        assert check(found, name)["value"].startswith(f"for some/model ({'ab' * 32}/{name}.{kind}, ")
    assert check(found, "headkv-r2")["ok"] is None
    assert not [c for c in found["checks"] if c["name"] == "notes"]


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"schema_version": 99}', b"\xff" * 20])
@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_a_torn_calibration_is_something_to_mend(own_home: Path, content: bytes, suffix: str) -> None:
    folder = own_home / "calibration" / "abcd"
    folder.mkdir(parents=True)
    (folder / f"headkv.{suffix}").write_bytes(content)
    found = check(report(), "headkv")
    assert found["ok"] is False
    assert "cannot be read" in found["value"]
    assert found["mend"].startswith("lcbench calibrate headkv --model MODEL")


def test_the_report_extra_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    versions: dict[str, str | None] = {"matplotlib": None}
    monkeypatch.setattr(doctor, "_version", lambda name: versions.get(name, "1"))
    found = check(report(), "matplotlib")
    assert (found["ok"], found["mend"]) == (None, "pip install 'lcbench[report]'")
    versions["matplotlib"] = "3.9"
    assert check(report(), "matplotlib")["value"] == "3.9"


def test_the_demo_without_its_reader(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lcbench.models.demo.find_demo_file", lambda: tmp_path / "demo.gguf")
    monkeypatch.setattr("lcbench.models.converted.missing_packages", lambda: ["gguf"])
    found = check(report(), "demo")
    assert found["ok"] is False
    assert "needs gguf" in found["value"]
    monkeypatch.setattr("lcbench.models.converted.missing_packages", list)
    assert check(report(), "demo")["ok"] is True


def test_a_gpu_is_shown_and_makes_its_packages_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_gpus", lambda: ["cuda:0 Some GPU, 80 GiB, CUDA 12.8"])
    found = report()
    assert check(found, "GPU")["value"].startswith("cuda:0 Some GPU")
    if not importlib.metadata.packages_distributions().get("flash_attn"):
        assert "lcbench[gpu]" in check(found, "flash-attn")["mend"]
