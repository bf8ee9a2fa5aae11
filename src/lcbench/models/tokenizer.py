"""A tokenizer alone, without the model it belongs to."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from lcbench.config.spec import ModelSpec
from lcbench.models import gguf, hub, identity
from lcbench.models.converted import folder_for, is_converted
from lcbench.models.identity import Say
from lcbench.models.read import Reader
from lcbench.models.source import find


def load_tokenizer(name: str, home: Path, say: Say = lambda text: None, *, trust_remote_code: bool = False) -> Any:
    """A transformers tokenizer from a hub id, a folder (which may hold nothing else), a GGUF file, or ``demo``.

    Raises:
        ModelError: it cannot be found or read.
    """
    spec = ModelSpec(name=name, trust_remote_code=trust_remote_code)
    folder = Path(name).expanduser()
    if folder.is_dir() and any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json")):
        return Reader(spec, str(folder), None).tokenizer()
    found = find(name)
    if found.path is None:
        return Reader(spec, name, hub.commit_of(name, None)).tokenizer()
    if found.source == "folder":
        return Reader(spec, str(found.path), None).tokenizer()
    weights = identity.file_sha256(found.path, home, say)
    converted = folder_for(weights, home)
    if is_converted(converted, weights):
        return Reader(replace(spec, name=str(converted)), str(converted), None).tokenizer()
    return gguf.read_head(found.path)[1]


def tokenizer_sha256(tokenizer: Any) -> str | None:
    """Hex digest over vocabulary, merges and rules; None for tokenizers that cannot write themselves down."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return None if backend is None else hashlib.sha256(backend.to_str().encode()).hexdigest()
