"""The uncompressed cache: the row every other method is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from lcbench.methods.base import Method, Traits
from lcbench.methods.registry import method


@method("full", paper="", traits=Traits(family="baseline"))
@dataclass(frozen=True)
class Full(Method):
    """Dense attention over all keys and values; 2 N Hk d e L bytes."""
