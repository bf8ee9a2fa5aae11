"""Published score tables that ship with lcbench: one JSON file a source, so that one's own run can stand beside them.

A file holds numbers that others measured and where they are from; nothing in it was run by lcbench:

    {"schema_version": 1, "name": "longctx_bench", "title": …, "source": …, "paper": …, "benchmark": "longbench",
     "notes": [sentences], "rows": [{"model": …, "method": …, "setting": …, "scores": {key: percent}}]}

``scores`` is keyed as lcbench keys its own: a task id (``qasper``), or the name of a mean as in scores.json
(``en/single-doc-qa``, ``code``, ``micro15``). A benchmark with several lengths adds ``"lengths": {key: {length:
percent}}`` to a row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from lcbench.errors import BadValue, UnknownName, nearest

PREFIX = "published:"
UNCOMPRESSED = ("full", "baseline", "native")
"""Names under which the sources list a model without any method."""


@dataclass(frozen=True)
class PublishedRow:
    """One model with one method, as published.

    Attributes:
        model, method: as the source calls them. setting: what the source varied ("2bit", "4x"), or "".
        scores: score key to percent. lengths: score key to {length: percent}; empty where there is one length only.
    """

    model: str
    method: str
    setting: str
    scores: Mapping[str, float]
    lengths: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.method} {self.setting}".strip()


@dataclass(frozen=True)
class Published:
    """The table of one source.

    Attributes:
        name: as in ``published:NAME``. title, source, paper: what it is and where it stands. benchmark: its benchmark.
        notes: what a reader must know before comparing. rows: in the order of the source.
    """

    name: str
    title: str
    source: str
    paper: str
    benchmark: str
    notes: tuple[str, ...]
    rows: tuple[PublishedRow, ...]

    @property
    def models(self) -> list[str]:
        """Models in the order of the table."""
        return list(dict.fromkeys(row.model for row in self.rows))

    def of_model(self, model: str) -> tuple[PublishedRow, ...]:
        """Rows of the model with this name, in any case, or of the only one whose name begins so.

        Raises:
            UnknownName: no such model. BadValue: several begin so.
        """
        lowered = model.lower()
        exact = [name for name in self.models if name.lower() == lowered]
        found = exact or [name for name in self.models if name.lower().startswith(lowered)]
        if not model or not found:
            raise UnknownName("model", model, self.models, where=f" in {PREFIX}{self.name}")
        if len(found) > 1:
            raise BadValue(
                f"{PREFIX}{self.name} has several models that begin with '{model}'.", f"Name one: {', '.join(found)}."
            )
        return tuple(row for row in self.rows if row.model == found[0])


@cache
def names() -> tuple[str, ...]:
    """Names of the tables that ship with this lcbench."""
    found = (entry.name for entry in files(__name__).iterdir())
    return tuple(sorted(name.removesuffix(".json") for name in found if name.endswith(".json")))


@cache
def load(name: str) -> Published:
    """The table called ``name``. Raises UnknownName."""
    if name not in names():
        raise UnknownName("published table", name, names())
    data: dict[str, Any] = json.loads(files(__name__).joinpath(f"{name}.json").read_text(encoding="utf-8"))
    rows = tuple(
        PublishedRow(row["model"], row["method"], row.get("setting") or "", row["scores"], row.get("lengths", {}))
        for row in data["rows"]
    )
    return Published(
        data["name"],
        data["title"],
        data["source"],
        data.get("paper", ""),
        data["benchmark"],
        tuple(data.get("notes", ())),
        rows,
    )


def find(reference: str) -> tuple[Published, tuple[PublishedRow, ...]]:
    """The table and the rows behind ``published:NAME/MODEL``.

    Raises:
        BadValue: not of that form. UnknownName: no such table or model; the nearest is offered.
    """
    rest = reference.removeprefix(PREFIX)
    name, slash, model = rest.partition("/")
    if not name or not slash:
        listed = ", ".join(f"{PREFIX}{one}/{load(one).models[0]}" for one in names())
        close = nearest(name, names())
        if close and not model:
            listed = ", ".join(f"{PREFIX}{close}/{one}" for one in load(close).models)
        raise BadValue(f"'{reference}' does not name a table and a model.", f"Write one of {listed}.")
    table = load(name)
    return table, table.of_model(model)
