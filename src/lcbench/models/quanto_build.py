"""The C++ extension that optimum-quanto compiles at its first use, and the lock that a broken build leaves behind.

quanto restores its numbers by an extension that torch compiles into quanto's own folder, once for a torch version.
A process that begins it makes the file ``lock`` there and takes it away at the end; all others wait for it, without a
word and without an end. Who is killed while compiling leaves the file, and from then on everybody waits.
"""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path

from lcbench.errors import ModelError

_PARTS = ("cpp", "cuda")
_COMPILERS = ("ninja", "c++", "g++", "cc1plus", "clang++", "nvcc", "cicc", "ptxas")
_FRESH = 20.0  # seconds in which a build may not have reached its compiler
_OLD = 1800.0  # seconds after which no build goes on, whatever else compiles on this machine


def folder() -> Path | None:
    """Where quanto builds its extensions; None where it is not installed."""
    try:
        spec = find_spec("optimum.quanto")
    except ModuleNotFoundError:
        return None
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "library" / "extensions"


def announcement(where: Path | None = None) -> str:
    """What the first use will wait for, in a sentence; "" where the extension is there.

    Args:
        where: the folder of the extensions; default: that of the installed quanto.
    """
    where = where or folder()
    if where is None:
        return ""
    build = where / "cpp" / "build"
    if _lock(build).exists():
        return f"quanto's C++ extension is being compiled by another process; waiting for it ({_lock(build)})."
    if any(build.glob("*.so")):
        return ""
    return "quanto compiles a C++ extension at its first use; this takes a minute or more."


def refuse_stale_lock(where: Path | None = None) -> None:
    """Raises ModelError naming the file where quanto would wait for a build that nobody makes any more."""
    where = where or folder()
    for part in _PARTS if where is not None else ():
        lock = _lock(where / part / "build")  # type: ignore[operator]
        try:
            age = time.time() - lock.stat().st_mtime
        except OSError:
            continue
        if age > _OLD or (age > _FRESH and _compiling() is False):
            raise ModelError(
                f"A build of quanto's {part} extension was broken off {_ago(age)} ago, and quanto would wait for it "
                "for ever.",
                f"Delete {lock} and run again.",
            )


def _lock(build: Path) -> Path:
    return build / "lock"


def _compiling() -> bool | None:
    """Whether any compiler runs on this machine; None where that cannot be seen."""
    seen = False
    for entry in Path("/proc").glob("[0-9]*/comm"):
        try:
            name = entry.read_text().strip()
        except OSError:
            continue
        seen = True
        if name in _COMPILERS or name.startswith(("x86_64-linux-gnu-g++", "aarch64-linux-gnu-g++")):
            return True
    return False if seen else None


def _ago(seconds: float) -> str:
    minutes = round(seconds / 60)
    return (
        f"{seconds:.0f} seconds" if minutes < 2 else f"{minutes} minutes" if minutes < 120 else f"{minutes // 60} hours"
    )
