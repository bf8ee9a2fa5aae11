"""Finding methods by name: our own, and those that other packages register under the entry points
``lcbench.methods``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import TypeVar

from lcbench.config.options import Item, build, parse_item
from lcbench.errors import UnknownName, UsageError
from lcbench.methods.base import Method, Traits

M = TypeVar("M", bound=type[Method])

_registered: dict[str, type[Method]] = {}


def method(name: str, *, paper: str, traits: Traits) -> Callable[[M], M]:
    """Class decorator that registers a `Method` subclass.

    Args:
        name: on the command line; lower case, words joined by ``-``.
        paper: "arXiv:2402.02750" or "" for baselines.
        traits: what the engine may assume.
    """

    def register(cls: M) -> M:
        other = _registered.get(name)
        if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise UsageError(
                f"Two methods are named '{name}': {other.__module__}.{other.__qualname__} and "
                f"{cls.__module__}.{cls.__qualname__}.",
                "Rename one of them.",
            )
        cls.name, cls.paper, cls.traits = name, paper, traits
        _registered[name] = cls
        return cls

    return register


@cache
def _import_all() -> None:
    package = importlib.import_module("lcbench.methods")
    for module in pkgutil.walk_packages(package.__path__, "lcbench.methods."):
        importlib.import_module(module.name)
    for point in entry_points(group="lcbench.methods"):
        try:
            point.load()
        except Exception as error:
            raise UsageError(
                f"The method plug-in '{point.name}' ({point.value}) cannot be imported: {error}.",
                "Repair or uninstall the package that provides it.",
            ) from error


def all_methods() -> Mapping[str, type[Method]]:
    """Every registered method by name, sorted."""
    _import_all()
    return dict(sorted(_registered.items()))


def resolve(spec: str | Item) -> Method:
    """A method from ``kivi@bits=2``.

    Raises:
        UnknownName: no such method, or no such parameter. BadValue: a value it cannot take.
    """
    item = parse_item(spec, "method") if isinstance(spec, str) else spec
    methods = all_methods()
    if item.name not in methods:
        raise UnknownName("method", item.name, methods, listing="lcbench list methods")
    return build(methods[item.name], item, "method")
