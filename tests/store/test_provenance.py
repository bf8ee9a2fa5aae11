from __future__ import annotations

import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

import lcbench
from lcbench.store.provenance import checkout_commit, software


def test_versions_are_those_installed() -> None:
    found = software()
    assert found["lcbench"]["version"] == lcbench.__version__
    assert found["packages"]["torch"] == version("torch")
    assert "transformers" in found["packages"]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if shutil.which("git") is None:
        pytest.skip("no git")
    package = tmp_path / "checkout" / "src" / "lcbench"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("x = 1\n")
    git = ["git", "-C", str(tmp_path / "checkout"), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "checkout/README").write_text("x")
    subprocess.run([*git, "add", "README"], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    monkeypatch.setattr(lcbench, "__file__", str(package / "__init__.py"))
    return package


def test_the_commit_of_a_checkout(checkout: Path) -> None:
    git = ["git", "-C", str(checkout), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    assert checkout_commit() is None  # inside a repository that does not track us, as in a virtual environment
    subprocess.run([*git, "add", "__init__.py"], check=True)
    subprocess.run([*git, "commit", "-qm", "second"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert checkout_commit() == head
    (checkout / "__init__.py").write_text("x = 2\n")
    assert checkout_commit() == f"{head}-dirty"


def test_no_git_is_no_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert checkout_commit() is None
