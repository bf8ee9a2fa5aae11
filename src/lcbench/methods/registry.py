"""Finding methods by name: our own, and those that other packages register under the entry points
``lcbench.methods``."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from typing import TypeVar

from lcbench.config.options import PRESET, Item, build, check_name, parse_item, split_parts
from lcbench.errors import BadValue, UnknownName, UsageError
from lcbench.methods.base import Method, Traits
from lcbench.methods.compose import compose
from lcbench.models import families

M = TypeVar("M", bound=type[Method])

_CONVERTED = ("rwkv5", "mha2mla")  # no hub has models of them that transformers reads
_registered: dict[str, type[Method]] = {}
_broken: dict[str, UsageError] = {}


def method(name: str, *, paper: str = "", traits: Traits | None = None) -> Callable[[M], M]:
    """Class decorator that registers a `Method` subclass.

    Args:
        name: on the command line; lower case, words joined by ``-``.
        paper: "arXiv:2402.02750" or "" for baselines.
        traits: what the engine may assume; every method says it, and one that does not is refused.

    Raises:
        UsageError: the name is taken or none, or the class cannot be a method: no dataclass, no traits, or a hook is
            left out.
    """
    check_name("method", name)

    def register(cls: M) -> M:
        other = _registered.get(name)
        if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise UsageError(
                f"Two methods are named '{name}': {other.__module__}.{other.__qualname__} and "
                f"{cls.__module__}.{cls.__qualname__}.",
                "Rename one of them.",
            )
        cls.traits = _checked(name, cls, traits)
        cls.name, cls.paper = name, paper
        _registered[name] = cls
        return cls

    return register


def _checked(name: str, cls: type[Method], traits: Traits | None) -> Traits:
    step = "docs/plugins.md has an example."
    if not (isinstance(cls, type) and issubclass(cls, Method) and dataclasses.is_dataclass(cls)):
        raise UsageError(f"The method '{name}' is not a dataclass of kind lcbench.methods.base.Method.", step)
    absent = [f"{hook}()" for hook in sorted(getattr(cls, "__abstractmethods__", ()))]
    if absent or not isinstance(traits, Traits):
        raise UsageError(f"The method '{name}' has no {', '.join(absent) or 'traits'}.", step)
    return traits


@cache
def _import_all() -> None:
    package = importlib.import_module("lcbench.methods")
    for module in pkgutil.walk_packages(package.__path__, "lcbench.methods."):
        importlib.import_module(module.name)
    for point in entry_points(group="lcbench.methods"):
        try:
            point.load()
        except (Exception, SystemExit) as error:
            why = str(error) or type(error).__name__
            _broken[point.name] = UsageError(
                f"The method plug-in '{point.name}' ({point.value}) cannot be imported: {why.rstrip('.')}.",
                "Repair or uninstall the package that provides it.",
            )


def broken_plugins() -> Mapping[str, UsageError]:
    """Entry points that could not be imported: name to what is told to a user who asks for it."""
    _import_all()
    return dict(sorted(_broken.items()))


def all_methods() -> Mapping[str, type[Method]]:
    """Every registered method by name, sorted."""
    _import_all()
    return dict(sorted(_registered.items()))


def parse(spec: str) -> list[Item]:
    """The parts of ``kivi@bits=2`` (one) or ``snapkv@budget=0.25+kivi@bits=2`` (two). Raises UsageError."""
    return [parse_item(part, "method") for part in split_parts(spec)]


def resolve(spec: str | Item | Sequence[Item]) -> Method:
    """A method from ``kivi@bits=2``, or a composition from ``snapkv@budget=0.25+kivi@bits=2``.

    ``name@4x`` sets the parameter ``preset`` where the method has one, else its budget.

    Raises:
        UnknownName: no such method, or no such parameter. BadValue: a value it cannot take, or methods that do not go
            together. UsageError: it is not written as a spec.
    """
    items = parse(spec) if isinstance(spec, str) else [spec] if isinstance(spec, Item) else list(spec)
    parts = [_build(item) for item in items]
    return parts[0] if len(parts) == 1 else compose(parts)


def _build(item: Item) -> Method:
    methods = all_methods()
    if item.name not in methods:
        if item.name in _broken:
            raise _broken[item.name]
        found = families.named(item.name)
        if found is not None:
            made = f", made by lcbench convert {found[0]}" if found[0] in _CONVERTED else ""
            raise UsageError(
                f"{found[1].title} is an architecture and no method.",
                f"Run a model of it{made}: --model MODEL --method full (docs/architectures.md).",
            )
        raise UnknownName("method", item.name, methods, listing="lcbench list methods")
    cls = methods[item.name]
    fields = {field.name for field in dataclasses.fields(cls)}
    if PRESET not in fields and "budget" in fields:
        options = tuple(("budget" if key == PRESET else key, value) for key, value in item.options)
        if len(dict(options)) < len(options):
            raise BadValue(f"'{item}' sets the budget twice.", "Give it once.")
        item = Item(item.name, options)
    return build(cls, item, "method")
