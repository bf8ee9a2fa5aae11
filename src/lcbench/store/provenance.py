"""Which software made a run: our version and commit, Python, and the packages that can move a result."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lcbench

#: Distributions whose version is written into run.json when they are installed.
PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "numpy",
    "safetensors",
    "accelerate",
    "bitsandbytes",
    "flash-attn",
    "triton",
    "gguf",
    "jieba",
    "rouge-score",
    "fuzzywuzzy",
)


def software() -> dict[str, Any]:
    """``{"lcbench": {"version", "commit"}, "python", "platform", "packages": {name: version}}``.

    ``commit`` is the git commit of the checkout lcbench runs from, with ``-dirty`` when tracked files were changed;
    null for an installed package.
    """
    return {
        "lcbench": {"version": lcbench.__version__, "commit": checkout_commit()},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: found for name in PACKAGES if (found := _installed(name)) is not None},
    }


def checkout_commit() -> str | None:
    """Commit of the git checkout that lcbench's own files are tracked in, else None."""
    package = Path(lcbench.__file__).resolve().parent
    # An installed copy may lie inside somebody else's checkout (a virtual environment): only tracked files count.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(package, "rev-parse", "HEAD")
    if not commit:
        return None
    changed = _git(package, "status", "--porcelain", "--untracked-files=no", "--", ".")
    return commit + ("-dirty" if changed else "")


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command, or None when it fails or there is no git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
