"""Chinese word segmentation with jieba: loaded at the first Chinese text, silently, with a safe dictionary cache.

Scores must not depend on what else runs in the process, so lcbench has a segmenter of its own: words that another
package adds to jieba's global one do not reach it. jieba keeps its parsed dictionary in the shared temporary folder,
where any user of the machine can put another one; lcbench keeps its copy under ``LCBENCH_HOME`` and checks it.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import logging
import marshal
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from lcbench.config.home import home

_lock = threading.Lock()


@lru_cache(maxsize=2048)
def words(text: str) -> tuple[str, ...]:
    """``text`` in words (jieba, accurate mode, hidden Markov model on); joined they give ``text`` back.

    Cached, because answers come back for every prediction and every method.
    """
    return tuple(_segmenter().cut(text, cut_all=False))


def load() -> None:
    """Load the dictionary now, for example before worker processes are forked that will share it."""
    _segmenter()


def _segmenter() -> Any:
    with _lock:
        return _load()


@cache
def _load() -> Any:
    with _quietly():
        import jieba

        segmenter = jieba.Tokenizer()
        with segmenter.get_dict_file() as file:
            content = file.read()
        segmenter.FREQ, segmenter.total = _dictionary(segmenter, content)
        segmenter.initialized = True
    return segmenter


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """No log lines and no warnings while jieba is imported; no garbage collection while a large table is built."""
    logger = logging.getLogger("jieba")
    collecting = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        # jieba sets its own logger to DEBUG on import, with a handler on stderr.
        logger.setLevel(logging.WARNING)
        if collecting:
            gc.enable()


def _dictionary(segmenter: Any, content: bytes) -> tuple[dict[str, int], int]:
    """The prefix dictionary (word or prefix to frequency) and the sum of frequencies."""
    key = hashlib.sha256(content).hexdigest()[:16]
    path = home() / "cache" / f"jieba-{key}-{sys.implementation.cache_tag}.bin"
    table = _read_cache(path)
    if table is None:
        with segmenter.get_dict_file() as file:
            table = segmenter.gen_pfdict(file)
        _write_cache(path, table)
    return table


def _read_cache(path: Path) -> tuple[dict[str, int], int] | None:
    try:
        data = path.read_bytes()
        if hashlib.sha256(data[32:]).digest() != data[:32]:
            return None
        frequencies, total = marshal.loads(data[32:])
    except (OSError, ValueError, EOFError, TypeError):
        return None
    return frequencies, total


def _write_cache(path: Path, table: tuple[dict[str, int], int]) -> None:
    """Keep the table for the next process. Nothing depends on it: a folder that cannot be written is no error."""
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
