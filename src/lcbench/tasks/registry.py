"""Finding tasks by name: our own, and those that other packages register under the entry points ``lcbench.tasks``.

A name on the command line is a task (``qasper``, ``passkey@digits=64``), a group of tasks (a benchmark such as
``longbench``, a category such as ``few-shot``), or either with its benchmark before it: ``longbench/qasper`` is
``qasper``, ``longbench-e/qasper`` is ``qasper_e``, ``longbench-e/few-shot`` are the few-shot tasks of LongBench-E.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TypeVar

from lcbench.config.home import home as lcbench_home
from lcbench.config.options import Item, build, check_name, parse_item, split_items
from lcbench.errors import UnknownName, UsageError
from lcbench.tasks.base import Task

T = TypeVar("T", bound=type[Task])

_registered: dict[str, type[Task]] = {}
_groups: dict[str, Group] = {}
_broken: dict[str, UsageError] = {}
_NEEDED = ("benchmark", "category", "metric")


@dataclass(frozen=True)
class Group:
    """A name for several tasks.

    Attributes:
        name: on the command line. doc: what it is, in a few words. members: task names in order.
    """

    name: str
    doc: str
    members: tuple[str, ...]


def task(name: str) -> Callable[[T], T]:
    """Class decorator that registers a `Task` subclass under ``name`` (lower case). Raises UsageError for a class that
    cannot be a task: it leaves a hook out, or does not say benchmark, category or metric; or for no name."""
    check_name("task", name)

    def register(cls: T) -> T:
        _check(name, cls)
        other = _registered.get(name)
        if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise UsageError(
                f"Two tasks are named '{name}': {other.__module__}.{other.__qualname__} and "
                f"{cls.__module__}.{cls.__qualname__}.",
                "Rename one of them.",
            )
        cls.name = name
        _registered[name] = cls
        return cls

    return register


def _check(name: str, cls: type[Task]) -> None:
    step = "docs/plugins.md has an example."
    if not (isinstance(cls, type) and issubclass(cls, Task) and dataclasses.is_dataclass(cls)):
        raise UsageError(f"The task '{name}' is not a dataclass of kind lcbench.tasks.base.Task.", step)
    absent = [f"{hook}()" for hook in sorted(getattr(cls, "__abstractmethods__", ()))]
    absent += [attribute for attribute in _NEEDED if not isinstance(getattr(cls, attribute, None), str)]
    if absent:
        raise UsageError(f"The task '{name}' has no {', '.join(absent)}.", step)


def group(name: str, doc: str, members: Sequence[str]) -> None:
    """Register a name for several tasks, which must be registered before. A group of that name is replaced."""
    unknown = [member for member in members if member not in _registered]
    if unknown or not members:
        raise UsageError(f"The task group '{name}' has no members, or unknown ones: {unknown}.", "Register them first.")
    _groups[name] = Group(name, doc, tuple(members))


@cache
def _import_all() -> None:
    package = importlib.import_module("lcbench.tasks")
    for module in pkgutil.walk_packages(package.__path__, "lcbench.tasks."):
        importlib.import_module(module.name)
    for point in entry_points(group="lcbench.tasks"):
        try:
            point.load()
        except (Exception, SystemExit) as error:
            why = str(error) or type(error).__name__
            _broken[point.name] = UsageError(
                f"The task plug-in '{point.name}' ({point.value}) cannot be imported: {why.rstrip('.')}.",
                "Repair or uninstall the package that provides it.",
            )


def broken_plugins() -> Mapping[str, UsageError]:
    """Entry points that could not be imported: name to what is told to a user who asks for it."""
    _import_all()
    return dict(sorted(_broken.items()))


def all_tasks() -> Mapping[str, type[Task]]:
    """Every registered task by name: by benchmark, then in the order of registration (the benchmark's own)."""
    _import_all()
    return dict(sorted(_registered.items(), key=lambda item: item[1].benchmark))


def all_groups() -> Mapping[str, Group]:
    """Every group by name: by the benchmark of its first task, then in the order of registration."""
    _import_all()
    return dict(sorted(_groups.items(), key=lambda item: _registered[item[1].members[0]].benchmark))


def resolve(texts: str | Item | Iterable[str | Item], home: Path | None = None) -> list[Task]:
    """Tasks from ``qasper``, ``passkey@digits=64,trec``, ``longbench`` …, in that order, each once.

    Options of a group go to each of its members.

    Args:
        home: where data lie, for names that mean "all there is" (`Task.variants`); default LCBENCH_HOME.

    Raises:
        UnknownName: no such task or group (the nearest is offered), or no such parameter.
        BadValue: a value it cannot take.
        DataMissing: a name that means "all there is", and there is nothing.
    """
    home = lcbench_home() if home is None else home
    found: dict[Task, None] = {}
    for item in _items(texts):
        for name in _members(item.name):
            cls = all_tasks()[name]
            whole = item.name in all_groups() and item.name not in all_tasks()
            for variant in cls.variants(Item(name, item.options), home, whole=whole):
                # Equal tasks may have different ids, when one of them names a default.
                found.setdefault(build(cls, variant, "task"))
    return list(found)


def _items(texts: str | Item | Iterable[str | Item]) -> list[Item]:
    items: list[Item] = []
    for text in [texts] if isinstance(texts, str | Item) else texts:
        items += [text] if isinstance(text, Item) else [parse_item(piece, "task") for piece in split_items(text)]
    if not items:
        raise UsageError("No task was given.", "Name one, e.g. passkey, or see `lcbench list tasks`.")
    return items


def _members(name: str) -> tuple[str, ...]:
    tasks, groups = all_tasks(), all_groups()
    if name in tasks:
        return (name,)
    if name in groups:
        return groups[name].members
    benchmark, slash, rest = name.partition("/")
    members = [n for n, cls in tasks.items() if slash and cls.benchmark == benchmark]
    chosen = [n for n in members if n in (rest, f"{rest}_e") or tasks[n].category == rest]
    if not chosen:
        if name in _broken:
            raise _broken[name]
        raise UnknownName("task", name, _names(benchmark if members else ""), listing="lcbench list tasks")
    return tuple(chosen)


def _names(benchmark: str) -> list[str]:
    """What could have been meant: with a benchmark before the slash, its tasks and categories as one writes them."""
    if not benchmark:
        return [*all_tasks(), *all_groups()]
    classes = [cls for cls in all_tasks().values() if cls.benchmark == benchmark]
    return [f"{benchmark}/{rest}" for rest in dict.fromkeys([c.name for c in classes] + [c.category for c in classes])]
