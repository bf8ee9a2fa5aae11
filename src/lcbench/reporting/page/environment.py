"""How a page is made of a template: escaped, with a policy that lets its own script run and nothing else."""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Any

from lcbench import __version__
from lcbench.reporting.page.visible import visible

if TYPE_CHECKING:
    from jinja2 import Environment


def environment() -> Environment:
    """Everything is escaped; the filter ``visible`` names what a page would hide or obey."""
    from jinja2 import Environment, StrictUndefined

    made = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters["visible"] = visible
    return made


def trimmings(style: str, script: str) -> dict[str, Any]:
    """What the head of every page needs: ``version``, ``style``, ``script`` and the script's ``script_hash``."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {"version": __version__, "style": style, "script": script, "script_hash": digest}
