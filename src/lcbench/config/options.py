"""Typed options of methods and tasks: ``kivi@bits=2,group_size=64`` to a dataclass and back to a stable id.

A *spec string* is ``name`` or ``name@key=value,key=value`` (``:`` works like ``@``). A thing that exists at several
lengths may be written with its lengths alone: ``name@8k,16k``, ``name@base``. Methods and tasks are frozen
dataclasses whose fields, made with `param`, are their options; `build` fills one from text with full checking,
`identifier` writes the id: the name and the options that were written or differ from their defaults, in field order
and canonical form. A default that the user wrote stays in the id, so that tables show what was asked for.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from lcbench.config.budget import Budget
from lcbench.errors import BadValue, UnknownName, UsageError

T = TypeVar("T")
PRESETS = ("2x", "4x", "6x", "8x")
BUDGET = "budget"  # the parameter that the budgets of a run set
PRESET = "preset"  # the option that a bare 4x in ``name@4x`` sets
_GIVEN = "_given_options"  # not a field: two instances with equal options stay equal
BARE = ""  # the key under which an option that was written without one stands in `Item.options`

_NAME = re.compile(r"[a-z0-9][a-z0-9_./-]*")
_LENGTH = re.compile(r"(?:\d+k?|base|no-context)(?:/(?:\d+k?|base|no-context))*", re.IGNORECASE)


@dataclass(frozen=True)
class Item:
    """One parsed spec string: a name and its options, still text."""

    name: str
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        texts = (f"{k}={v}" if k != BARE else v.replace("/", ",") for k, v in self.options)
        return self.name + ("@" + ",".join(texts) if self.options else "")


def check_name(kind: str, name: Any) -> None:
    """Raises UsageError for a name that no spec string could hold. ``kind``: "method" or "task"."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        said = repr(name) if isinstance(name, str) else getattr(name, "__name__", type(name).__name__)
        raise UsageError(
            f"{said} cannot be the name of a {kind}.",
            f'Write it as text in lower case, words joined by -: @register_{kind}("my-{kind}", …).',
        )


def param(
    default: Any,
    doc: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[Any, ...] | None = None,
    bare: bool = False,
) -> Any:
    """A dataclass field that is a user option.

    Args:
        default: its default; None means "not set" for fields typed ``X | None``.
        doc: one line for `lcbench list`, with the unit.
        minimum, maximum: inclusive bounds for numbers (of every element, for tuples).
        choices: the only values allowed.
        bare: the option is a length and is written without its name: ``task@16k``. At most one of a class.
    """
    return dataclasses.field(
        default=default,
        metadata={"doc": doc, "minimum": minimum, "maximum": maximum, "choices": choices, "bare": bare},
    )


def split_items(text: str) -> list[str]:
    """Split ``a,b@k=v,l=w,c`` at the commas between items: a piece holding ``=`` but no ``@`` continues the last, and
    so does a bare length (``16k``, ``base``) after an item that has options: ``a@8k,16k,b``."""
    items: list[str] = []
    for piece in (p.strip() for p in text.split(",")):
        if not piece:
            continue
        starts_option = "=" in piece and "@" not in piece.split("=", 1)[0] and ":" not in piece.split("=", 1)[0]
        more_lengths = bool(items) and _cut_name(items[-1])[1] != "" and _LENGTH.fullmatch(piece) is not None
        if (starts_option or more_lengths) and items:
            items[-1] += "," + piece
        else:
            items.append(piece)
    return items


def split_parts(text: str) -> list[str]:
    """Split the composition ``snapkv@budget=0.25+kivi@bits=2`` at the ``+`` before a name; ``1e+05`` stays whole."""
    return [part.strip() for part in re.split(r"\+(?![0-9])", text)]


def parse_item(text: str, kind: str) -> Item:
    """Parse one spec string. Raises UsageError naming ``kind`` when an option is not ``key=value``."""
    name, sep, rest = _cut_name(text.strip())
    if not name:
        raise UsageError(f"Empty {kind} name in '{text}'.", f"Write the {kind} name first, e.g. name@key=value.")
    options: list[tuple[str, str]] = []
    lengths: list[str] = []
    for piece in rest.split(",") if sep else []:
        if _LENGTH.fullmatch(piece.strip()):
            lengths.append(piece.strip().lower())
            continue
        key, eq, value = piece.partition("=") if piece.strip() not in PRESETS else (PRESET, "=", piece)
        if not eq or not key.strip() or not value.strip():
            raise _stray(name, kind, options, piece.strip())
        if key.strip() in dict(options):
            raise UsageError(f"Option '{key.strip()}' of {kind} '{name}' is given twice.", "Give it once.")
        options.append((key.strip(), value.strip()))
    return Item(name, (((BARE, "/".join(lengths)),) if lengths else ()) + tuple(options))


def _stray(name: str, kind: str, options: Sequence[tuple[str, str]], piece: str) -> UsageError:
    """The error of an option without a key: a preset that does not exist, or a further value of the one before it."""
    if piece[:-1].replace(".", "", 1).isdecimal() and piece.endswith("x"):
        return UsageError(f"There is no preset '{piece}' of {kind} '{name}'.", f"Presets are {', '.join(PRESETS)}.")
    step = f"Write {name}@key=value,key=value."
    if options and piece:
        key, value = options[-1]
        step += f" Several values of one option are joined by /: {key}={value}/{piece}."
    return UsageError(f"Option '{piece}' of {kind} '{name}' is not key=value.", step)


def _cut_name(text: str) -> tuple[str, str, str]:
    cuts = [i for i in (text.find("@"), text.find(":")) if i >= 0]
    if not cuts:
        return text, "", ""
    return text[: min(cuts)], text[min(cuts)], text[min(cuts) + 1 :]


def build(cls: type[T], item: Item, kind: str) -> T:
    """Make ``cls`` (a dataclass whose fields are `param`) from an item's text options.

    Raises:
        UnknownName: an option that ``cls`` does not have.
        BadValue: a value of the wrong type, out of range, or refused by ``cls.__post_init__``.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    bare = next((name for name, f in fields.items() if f.metadata.get("bare")), None)
    values: dict[str, Any] = {}
    for key, text in item.options:
        if key == BARE and bare is None:
            raise _stray(item.name, kind, item.options[1:], text)
        key = bare if key == BARE and bare is not None else key
        if key not in fields:
            if key == PRESET:  # nobody wrote this word: it stands for a bare 4x
                step = f"Its parameters: {', '.join(fields) or 'none'}."
                raise UsageError(f"The {kind} '{item.name}' has no presets such as {text}.", step)
            raise UnknownName("parameter", key, fields, where=f" of {kind} '{item.name}'")
        where = f"{item.name}@{key}"
        value = _convert(text, hints[key], where)
        _check(value, fields[key].metadata, where)
        values[key] = value
    instance = cls(**values)
    object.__setattr__(instance, _GIVEN, frozenset(values))
    return instance


def _convert(text: str, hint: Any, where: str) -> Any:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        arms = typing.get_args(hint)
        if type(None) in arms and text.lower() in ("none", "null"):
            return None
        return _convert(text, next(a for a in arms if a is not type(None)), where)
    if typing.get_origin(hint) is tuple:
        element = typing.get_args(hint)[0]
        try:
            return tuple(_convert(part, element, where) for part in text.replace(" ", "/").split("/") if part)
        except BadValue as error:
            example = {int: "384/1152", float: "0.1/0.5"}.get(element, "a/b")
            step = f"{error.next_step} Several are joined by /, e.g. {where.rpartition('@')[2]}={example}."
            raise BadValue(error.message, step) from None
    if typing.get_origin(hint) is typing.Literal:
        allowed = {str(c): c for c in typing.get_args(hint)}
        if text not in allowed:
            raise UnknownName("value", text, allowed, where=f" for {where}")
        return allowed[text]
    if hint is bool:
        if text.lower() in ("true", "yes", "on", "1"):
            return True
        if text.lower() in ("false", "no", "off", "0"):
            return False
        raise BadValue(f"{where}={text} is not true or false.", f"Write {where}=true or {where}=false.")
    try:
        if hint is int:
            return int(text)
        if hint is float:
            number = float(text)
            if not math.isfinite(number):
                raise ValueError
            return number
        if hint is Budget:
            return Budget.parse(text)
    except (ValueError, OverflowError):
        noun = {int: "a whole number", float: "a number"}.get(hint, "a budget such as 0.25 or 512")
        raise BadValue(f"{where}={text} is not {noun}.", f"Give {noun}.") from None
    return text


def _check(value: Any, metadata: Mapping[str, Any], where: str) -> None:
    low, high, choices = metadata.get("minimum"), metadata.get("maximum"), metadata.get("choices")
    for element in value if isinstance(value, tuple) else (value,):
        if element is None:
            continue
        if choices is not None and element not in choices:
            allowed = ", ".join(str(c) for c in choices)
            raise BadValue(f"{where}={format_value(element)} is not one of {allowed}.", f"Choose {allowed}.")
        if isinstance(element, int | float) and not isinstance(element, bool):
            if low is not None and element < low:
                raise BadValue(
                    f"{where}={format_value(element)} is below the least value {low:g}.",
                    f"Use {low:g} or more.",
                )
            if high is not None and element > high:
                raise BadValue(
                    f"{where}={format_value(element)} is above the greatest value {high:g}.",
                    f"Use {high:g} or less.",
                )


def format_value(value: Any) -> str:
    """Canonical text of an option value; `build` reads it back to an equal value."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, tuple):
        return "/".join(format_value(v) for v in value)
    return str(value)


def options_of(instance: Any, *, only_changed: bool = False) -> dict[str, str]:
    """Option name to canonical text, in field order; ``only_changed`` leaves out defaults that nobody wrote."""
    result = {}
    given: frozenset[str] = getattr(instance, _GIVEN, frozenset())
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if only_changed and value == field.default and field.name not in given:
            continue
        result[field.name] = format_value(value)
    return result


def identifier(name: str, instance: Any) -> str:
    """``name`` or ``name@k=v,k=v`` with the options that were written or differ from their defaults."""
    changed = options_of(instance, only_changed=True)
    bare = {f.name for f in dataclasses.fields(instance) if f.metadata.get("bare")}
    return str(Item(name, tuple((BARE if key in bare else key, value) for key, value in changed.items())))


def apply_settings(items: Iterable[Item], settings: Mapping[str, str], fields_of: Mapping[str, set[str]]) -> list[Item]:
    """Add ``--set key=value`` to every item that has the option and does not set it itself.

    Args:
        fields_of: item name to the set of its option names.

    Raises:
        UnknownName: a setting that no item has.
    """
    items = list(items)
    known = {key for item in items for key in fields_of.get(item.name, set())}
    for key in settings:
        if key not in known:
            raise UnknownName("parameter", key, known, where=" (no chosen method has it)")
    return [
        Item(
            item.name,
            item.options
            + tuple(
                (k, v)
                for k, v in settings.items()
                if k in fields_of.get(item.name, set()) and k not in dict(item.options)
            ),
        )
        for item in items
    ]


def with_budgets(
    specs: Sequence[list[Item]], budgets: Sequence[str], fields_of: Mapping[str, set[str]]
) -> list[list[Item]]:
    """Every method that takes a budget and does not set it, once a budget; the others as they are.

    Args:
        specs: parts of each method. fields_of: method name to the names of its parameters.

    Raises:
        UnknownName: budgets, and no method that takes them.
    """
    if not budgets:
        return list(specs)
    found: list[list[Item]] = []
    taken = False
    for items in specs:
        takers = [BUDGET in fields_of.get(item.name, set()) for item in items]
        settled = any(key in (BUDGET, PRESET) for item in items for key, _ in item.options)
        if settled or not any(takers):
            found.append(items)
            continue
        taken = True
        for budget in budgets:
            found.append(
                [
                    Item(item.name, (*item.options, (BUDGET, budget))) if takes else item
                    for item, takes in zip(items, takers, strict=True)
                ]
            )
    if not taken:
        known = {key for items in specs for item in items for key in fields_of.get(item.name, set())} - {BUDGET}
        raise UnknownName("parameter", BUDGET, known, where=" (no chosen method has it, or each sets it)")
    return found
