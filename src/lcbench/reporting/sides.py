"""Which two methods `lcbench compare` is asked about: words of the command line to pairs of (run, method)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lcbench.errors import BadValue, NotARun, UnknownName
from lcbench.reporting.same_method import same
from lcbench.store.run_file import RUN_FILE
from lcbench.store.rundir import RunDirectory

SEPARATOR = "::"


@dataclass(frozen=True)
class Side:
    """One method of one run."""

    run: RunDirectory
    method: str

    @property
    def name(self) -> str:
        """``RUN::METHOD``, as it may be given again."""
        return f"{self.run.path}{SEPARATOR}{self.method}"


def pairs_of(words: Sequence[str], baseline: str | None, latest: Callable[[], Path]) -> list[tuple[Side, Side]]:
    """The comparisons asked for, each (first, second).

    Words are run directories, methods of the run (of the latest one where none is named), or ``RUN::METHOD``. With a
    ``baseline`` every other method is compared with it. One run of two methods needs no further words; two runs are
    compared method by method.

    Raises:
        BadValue: too few or too many words; the next step lists what there is. UnknownName: no such method or run.
        NotARun: a folder that is none.
    """
    folders, others = split_words(words)
    whole = [word for word in others if SEPARATOR in word]
    if len(folders) == 2 and not others and baseline is None:
        return _two_runs(*(_opened(folder) for folder in folders))
    if whole and len(whole) == len(others) and not folders and len(others) + (baseline is not None) == 2:
        sides = [_side(word) for word in ([baseline] if baseline else []) + others]
        return [_different(sides[0], sides[1])]
    if len(folders) > 1 or whole:
        raise BadValue(
            "These words do not name two things to compare.",
            f"Give two methods of one run, two runs, or RUN{SEPARATOR}METHOD twice.",
        )
    run = _opened(folders[0] if folders else latest())
    return _of_one_run(run, others, baseline)


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Run directories, and the rest. Raises NotARun for a word that was meant as a folder and is no run."""
    folders = [word for word in words if (Path(word) / RUN_FILE).exists()]
    others = [word for word in words if word not in folders]
    for word in others:
        _refuse_path(word)
    return folders, others


def _of_one_run(run: RunDirectory, names: Sequence[str], baseline: str | None) -> list[tuple[Side, Side]]:
    if baseline is not None:
        first = _method(run, baseline)
        rest = [_method(run, name) for name in names] or [m for m in run.methods if m != first]
        if not rest:
            raise BadValue(f"{run.path} has no method but {first}.", "Compare it with another run.")
        return [_different(Side(run, first), Side(run, other)) for other in rest]
    chosen = [_method(run, name) for name in names] or (run.methods if len(run.methods) == 2 else [])
    if len(chosen) != 2:
        raise BadValue(
            f"Comparing needs two methods of {run.path}, or --baseline METHOD for all against one.",
            f"It has: {', '.join(run.methods)}.",
        )
    return [_different(Side(run, chosen[0]), Side(run, chosen[1]))]


def _two_runs(a: RunDirectory, b: RunDirectory) -> list[tuple[Side, Side]]:
    shared = [pair for method in a.methods if (pair := _in_both(a, method, b)) is not None]
    if a.path.resolve() == b.path.resolve():
        raise BadValue(f"{a.path} twice is one run.", "Name two runs, or two methods of it.")
    if not shared and len(a.methods) == len(b.methods) == 1:
        return [(Side(a, a.methods[0]), Side(b, b.methods[0]))]
    if not shared:
        raise BadValue(
            f"{a.path} and {b.path} have no method in common.",
            f"Name one of each, e.g.: {a.path}{SEPARATOR}{a.methods[0]} {b.path}{SEPARATOR}{b.methods[0]}",
        )
    return [(Side(a, first), Side(b, second)) for first, second in shared]


def _in_both(a: RunDirectory, method: str, b: RunDirectory) -> tuple[str, str] | None:
    """A method of ``a`` with the one of ``b`` that has its parameters, however spelled, or else its id."""
    alike = [other for other in b.methods if same(a, method, b, other)]
    found = alike or [other for other in b.methods if other == method]
    return (method, found[0]) if found else None


def _side(word: str) -> Side:
    folder, _, method = word.partition(SEPARATOR)
    run = _opened(folder)
    return Side(run, _method(run, method))


def _opened(folder: Path | str) -> RunDirectory:
    run = RunDirectory.open(folder)
    if not run.methods:
        raise BadValue(
            f"{run.path} has no predictions: it holds what `lcbench bench` measured.",
            f"Name runs of `lcbench run`; `lcbench report {run.path}` shows the measurements.",
        )
    return run


def _method(run: RunDirectory, name: str) -> str:
    if name not in run.methods:
        raise UnknownName("method", name, run.methods, where=f" in {run.path}, and no run")
    return name


def _different(a: Side, b: Side) -> tuple[Side, Side]:
    if a.method == b.method and a.run.path.resolve() == b.run.path.resolve():
        raise BadValue(f"{a.method} would be compared with itself.", "Name two methods, or two runs.")
    return a, b


def _refuse_path(word: str) -> None:
    """A word that was meant as a folder deserves to be told what is wrong with the folder."""
    path = Path(word)
    if SEPARATOR not in word and (path.is_dir() or (("/" in word or "\\" in word) and "@" not in word)):
        RunDirectory.open(path)
        raise NotARun(f"{path} is not a run directory.", "Give the folder that `lcbench run` wrote.")
