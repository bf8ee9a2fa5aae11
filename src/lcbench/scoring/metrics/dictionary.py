"""jieba's dictionary: loaded at the first Chinese text, silently, from a cache that only the user can write.

jieba keeps its parsed dictionary in the shared temporary folder, where any user of the machine can put another one.
lcbench keeps its copy under ``LCBENCH_HOME``, named after a hash of the dictionary's text, and checks it when it reads
it. Nothing depends on the copy: where it cannot be written or is damaged, the dictionary is parsed anew.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import logging
import marshal
import math
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from lcbench.config.home import home

_lock = threading.Lock()


@dataclass(frozen=True)
class Dictionary:
    """What segmentation stands on.

    Attributes:
        frequency: word to frequency; 0 for what only begins a word.
        log_total: logarithm of the sum of all frequencies.
        unknown: jieba's hidden Markov model: cuts a text of characters that make no dictionary word.
        log_share: frequency to the logarithm of its share, filled as needed.
    """

    frequency: dict[str, int]
    log_total: float
    unknown: Callable[[str], Iterable[str]]
    log_share: dict[int, float] = field(default_factory=dict)


def load() -> Dictionary:
    """The dictionary, loaded once in a process; about 0.2 s from the cache and 0.6 s without."""
    with _lock:
        return _load()


@cache
def _load() -> Dictionary:
    with _quietly():
        from jieba import Tokenizer, finalseg

        # An own one: words that another package adds to jieba's global dictionary must not move scores.
        tokenizer = Tokenizer()
        frequency, total = _parsed(tokenizer)
    return Dictionary(frequency, math.log(total), finalseg.cut)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """No log lines and no warnings while jieba is imported; no garbage collection while a large table is built."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        # jieba sets its own logger to DEBUG on import, with a handler on stderr.
        logging.getLogger("jieba").setLevel(logging.WARNING)
        if collecting:
            gc.enable()


def _parsed(tokenizer: Any) -> tuple[dict[str, int], int]:
    """Word or beginning of a word to frequency, and the sum of frequencies."""
    with tokenizer.get_dict_file() as file:
        key = hashlib.sha256(file.read()).hexdigest()[:16]
    path = home() / "cache" / f"jieba-{key}-{sys.implementation.cache_tag}.bin"
    table = _read_cache(path)
    if table is None:
        with tokenizer.get_dict_file() as file:
            table = tokenizer.gen_pfdict(file)
        _write_cache(path, table)
    return table


def _read_cache(path: Path) -> tuple[dict[str, int], int] | None:
    try:
        data = path.read_bytes()
        if hashlib.sha256(data[32:]).digest() != data[:32]:
            return None
        frequency, total = marshal.loads(data[32:])
    except (OSError, ValueError, EOFError, TypeError):
        return None
    return frequency, total


def _write_cache(path: Path, table: tuple[dict[str, int], int]) -> None:
    data = marshal.dumps(tuple(table))
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(hashlib.sha256(data).digest() + data)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
