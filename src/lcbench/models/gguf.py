"""GGUF files: de-quantized and written as safetensors once, then loaded like any model folder.

transformers reads a GGUF file in half a minute and cannot save it. The conversion loads it once, moves the parameters
into a plain fp32 model and saves that under ``LCBENCH_HOME/models/gguf-<hash>``, which loads in about a second with
bit-identical logits (specs: transformers 5, section 7).
"""

from __future__ import annotations

import contextlib
import copy
import errno
import importlib.metadata
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from lcbench.errors import CannotWrite, ModelError
from lcbench.models import support
from lcbench.models.converted import MARKER, folder_for, is_converted, missing_packages
from lcbench.models.hub import plain
from lcbench.models.identity import Say
from lcbench.models.quiet import quiet

__all__ = ["INSTALL", "MARKER", "convert", "need_packages", "read_head"]

INSTALL = "Run: pip install 'lcbench[gguf]'"


def need_packages(file: Path) -> None:
    """Raises ModelError, with the command that installs them, when a package to read GGUF is absent."""
    missing = missing_packages()
    if missing:
        raise ModelError(f"Reading {file.name} needs the package {' and '.join(missing)}.", INSTALL)


def read_head(file: Path) -> tuple[Any, Any]:
    """Config and tokenizer of a GGUF file, without its tensors. Raises ModelError when it cannot be read."""
    from transformers import AutoConfig, AutoTokenizer

    need_packages(file)
    with _explained(file), _quiet():
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
        return config, AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def convert(file: Path, sha256: str, home: Path, say: Say) -> Path:
    """The safetensors folder of a GGUF file; made when it is not there yet, by one process at a time.

    Atomic: written beside its place and renamed, so a conversion that was killed leaves nothing that looks finished.

    Raises:
        ModelError: a package is missing, the file is damaged or of an unsupported family.
        CannotWrite: ``home`` cannot be written, or is full.
    """
    target = folder_for(sha256, home)
    if is_converted(target, sha256):
        return target
    need_packages(file)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(FileLock(f"{target}.lock"), say):
            if not is_converted(target, sha256):
                _make(file, sha256, target, say)
    except SafetensorError as error:
        raise CannotWrite(f"Cannot write the converted model to {target}: {plain(error)}.", _MOVE) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CannotWrite(f"No space left under {home} for the converted model.", _MOVE) from None
        raise CannotWrite(f"Cannot write the converted model to {target}: {error.strerror}.", _MOVE) from None
    return target


_OTHER = "Download it again, or use a safetensors checkpoint of this model."
_MOVE = "Free space or mend the permissions, or move everything with LCBENCH_HOME."


@contextlib.contextmanager
def _locked(lock: FileLock, say: Say) -> Iterator[None]:
    try:
        lock.acquire(timeout=1)
    except Timeout:
        say("Another process is converting this model; waiting for it.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _make(file: Path, sha256: str, target: Path, say: Say) -> None:
    for left in target.parent.glob(f"{target.name}.part-*"):  # of a killed conversion; we hold the lock
        shutil.rmtree(left, ignore_errors=True)
    say(f"Converting {file.name} ({file.stat().st_size / 1e6:.0f} MB) to safetensors; this is done once.")
    part = target.parent / f"{target.name}.part-{os.getpid()}"
    part.mkdir()
    try:
        _write(file, part, say)
        marker = {
            "gguf_sha256": sha256,
            "gguf_name": file.name,
            "dtype": "float32",
            "transformers": importlib.metadata.version("transformers"),
        }
        (part / MARKER).write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")
        for written in part.iterdir():  # safetensors files come out private; LCBENCH_HOME may be shared
            shutil.copymode(part / MARKER, written)
        if target.exists():
            shutil.rmtree(target)
        os.replace(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write(file: Path, part: Path, say: Say) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    config, tokenizer = read_head(file)
    skeleton = _skeleton(file, config)
    support.check(skeleton)
    _check_space(sum(p.numel() for p in skeleton.parameters()) * 4, part)
    say("Reading and de-quantizing its tensors.")
    with _explained(file), _quiet():
        read, report = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, output_loading_info=True
        )
    if report["missing_keys"]:
        raise ModelError(f"{file} lacks tensors of the model, e.g. {min(report['missing_keys'])}.", _OTHER)
    # transformers refuses to save a model that came from GGUF: hand its tensors, without copying, to a plain one.
    model = _skeleton(file, read.config)
    model.load_state_dict(read.state_dict(), strict=True, assign=True)
    model.tie_weights()
    model.generation_config = read.generation_config
    say("Writing safetensors.")
    with _quiet():
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)


def _skeleton(file: Path, config: Any) -> Any:
    """The plain model of a config, fp32, without memory for its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    clean = copy.deepcopy(config)
    if hasattr(clean, "quantization_config"):
        del clean.quantization_config
    with _explained(file), _quiet(), torch.device("meta"):
        return AutoModelForCausalLM.from_config(clean, dtype=torch.float32)


def _check_space(need: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < need * 1.05:
        raise CannotWrite(
            f"The converted model takes {need / 1e6:,.0f} MB in {folder.parent}; {free / 1e6:,.0f} MB are free.", _MOVE
        )


@contextlib.contextmanager
def _explained(file: Path) -> Iterator[None]:
    """Turns the reader's failures (KeyError, ValueError, struct and numpy errors …) into one sentence."""
    try:
        yield
    except (ModelError, CannotWrite, MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ModelError(f"{file} cannot be read as a GGUF model: {plain(error)}.", _OTHER) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the GGUF reader's own progress bars, which it always draws, off the terminal; `say` reports instead."""
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        yield
