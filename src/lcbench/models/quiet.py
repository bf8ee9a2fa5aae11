"""Keeps transformers' own messages and progress bars off the terminal; what matters is checked and said by us."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Errors only, no weight-loading bars, while it lasts. Downloads from the hub keep their bars."""
    from huggingface_hub import utils as hub
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub_bars = not hub.are_progress_bars_disabled()  # type: ignore[attr-defined]
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if hub_bars:
        hub.enable_progress_bars()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
        if not hub_bars:
            hub.disable_progress_bars()  # type: ignore[attr-defined]
