"""Types of row fields as manifests write them: ``string``, ``int``, ``list[string]``; ``?`` allows null."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lcbench.errors import UnknownName

_PYTHON = {"string": str, "int": int, "float": float, "bool": bool}
_INT64 = 2**63


@dataclass(frozen=True)
class FieldType:
    """One type.

    Attributes:
        kind: "string", "int" (64 bits), "float", "bool" or "list".
        element: type of a list's elements, None otherwise.
        nullable: whether null is a value of it.
    """

    kind: str
    element: FieldType | None = None
    nullable: bool = False

    @classmethod
    def parse(cls, text: str, where: str = "") -> FieldType:
        """Read ``list[string]?`` and the like. Raises UnknownName (``where`` is appended to the offending word)."""
        word = text.strip()
        nullable = word.endswith("?")
        word = word.removesuffix("?").strip()
        if word.startswith("list[") and word.endswith("]"):
            return cls("list", cls.parse(word[5:-1], where), nullable)
        if word not in _PYTHON:
            raise UnknownName("field type", word, [*_PYTHON, "list[string]"], where=where)
        return cls(word, None, nullable)

    def __str__(self) -> str:
        name = f"list[{self.element}]" if self.element else self.kind
        return name + ("?" if self.nullable else "")

    def problem(self, value: Any) -> str:
        """ "" when ``value`` (parsed JSON) is of this type, else what is wrong with it in a few words."""
        if value is None:
            return "" if self.nullable else f"is null, not {self}"
        if self.element is not None:
            if not isinstance(value, list):
                return f"is {_noun(value)}, not {self}"
            problems = (f"[{i}] {p}" for i, v in enumerate(value) if (p := self.element.problem(v)))
            return next(problems, "")
        fits = isinstance(value, _PYTHON[self.kind]) or (self.kind == "float" and isinstance(value, int))
        if not fits or (isinstance(value, bool) and self.kind != "bool"):
            return f"is {_noun(value)}, not {self}"
        if self.kind == "int" and not -_INT64 <= value < _INT64:
            return "is a number of more than 64 bits"
        if self.kind == "string" and not value.isascii():
            try:
                value.encode("utf-8")
            except UnicodeEncodeError:
                return "holds half of a surrogate pair, which is not a character"
        return ""


Schema = Mapping[str, FieldType]
"""Field name to type, in the order of the file."""


def row_problem(schema: Schema, row: Any) -> str:
    """ "" when a parsed line is a row of ``schema``, else one clause saying what is wrong. Every field is required,
    null or not, and there are no others."""
    if not isinstance(row, dict):
        return f"it is {_noun(row)}, not an object"
    for name, kind in schema.items():
        if name not in row:
            return f"field '{name}' is missing"
        problem = kind.problem(row[name])
        if problem:
            return f"field '{name}' {problem}"
    for name in row:
        if name not in schema:
            return f"field '{name}' is not one of this data set"
    return ""


def _noun(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    nouns = {str: "text", int: "a whole number", float: "a number", list: "a list", dict: "an object"}
    return nouns.get(type(value), "null")
