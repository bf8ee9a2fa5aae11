"""Tables that fit a page of LaTeX: columns and rows parted so that nothing is set below 7 points.

Everything is set in ``\\footnotesize``, 8 points in a 10-point document. Widths are estimated from those of Computer
Modern, a little too wide rather than too narrow: what is wider than the text of the standard classes continues in
tabulars below, and what is longer than a page in further tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_TEXT = 345.0  # points across a page of article at 10 points
_SIZE = 8.0  # of \footnotesize there
_GAP = 4.0  # \tabcolsep, on both sides of every column
_WIDEST = 130.0  # a first column beyond this breaks its lines
_LINE = 9.5  # points from a line to the next
_MOST_ROWS = 50  # of \footnotesize that a page holds besides caption and heading
_NARROW, _SLIM, _BROAD = "iljI|!.,:;'()[]", "frst-/ ", "mwMW@%&=+"


@dataclass(frozen=True)
class Entry:
    """One cell. ``tex``: as LaTeX. ``plain``: the text that its width is estimated from; size: of it in points."""

    tex: str
    plain: str
    size: float = _SIZE

    @property
    def width(self) -> float:
        """Points across."""
        return max((sum(map(_em, line)) for line in self.plain.split("\n")), default=0.0) * self.size


EMPTY = Entry("", "")


@dataclass(frozen=True)
class Block:
    """Rows that stay together. ``title``: a line above, across all columns; rows: of as many entries as the heading."""

    rows: tuple[tuple[Entry, ...], ...]
    title: str = ""


@dataclass(frozen=True)
class Sheet:
    """A table to be set.

    Attributes:
        caption, label: as LaTeX. heading: of each column; ``turned``: by 90 degrees where they are wide.
        keys: columns that identify a row, repeated in every part. left: columns that are left-aligned.
        blocks: of rows. first: rows above them, with a rule below. tail: so many last columns stay together.
    """

    caption: str
    label: str
    heading: tuple[Entry, ...]
    blocks: tuple[Block, ...]
    keys: int = 1
    left: int = 1
    first: tuple[tuple[Entry, ...], ...] = ()
    tail: int = 0
    turned: bool = False


def lines_of(sheet: Sheet) -> list[str]:
    """The sheet as one or more ``table`` environments."""
    parts = _parts(sheet)
    pages = list(_pages(sheet, len(parts)))
    found: list[str] = []
    for number, (columns, blocks) in enumerate(pages):
        found += [
            r"\begin{table}[tp]" if len(pages) > 1 else r"\begin{table}[t]",
            r"\centering\footnotesize",
            rf"\setlength{{\tabcolsep}}{{{_GAP:g}pt}}",
        ]
        if number:
            found += [r"\addtocounter{table}{-1}", f"\\caption{{{sheet.caption} Continued.}}"]
        else:
            found += [f"\\caption{{{sheet.caption}}}", f"\\label{{{sheet.label}}}"]
        found.append(r"\par\smallskip")
        for place, part in enumerate([parts[i] for i in columns]):
            found += [r"\par\medskip"] * bool(place) + _tabular(sheet, part, blocks)
        found.append(r"\end{table}")
    return found


def _parts(sheet: Sheet) -> list[list[int]]:
    """Which columns stand in each tabular: the keys, then about as many as in the others, as few tabulars as can be."""
    widths = [width + 2 * _GAP for width in _widths(sheet)]
    keys = list(range(sheet.keys))
    end = max(sheet.keys, len(widths) - sheet.tail)
    units = [[i] for i in range(sheet.keys, end)] + [list(range(end, len(widths)))] * bool(sheet.tail)
    room = _TEXT - sum(widths[i] for i in keys)
    fewest = len(_filled(units, widths, room))
    whole = sum(widths[i] for unit in units for i in unit)
    shares = (whole / fewest + step for step in range(0, int(max(0, room - whole / fewest)) + 1, 4))
    even = next((share for share in shares if len(_filled(units, widths, share)) == fewest), room)
    return [[*keys, *part] for part in _filled(units, widths, even)]


def _filled(units: Sequence[Sequence[int]], widths: Sequence[float], room: float) -> list[list[int]]:
    """Columns, one part after the other filled; what must stay together is a unit."""
    parts: list[list[int]] = [[]]
    for unit in units:
        if parts[-1] and sum(widths[i] for i in [*parts[-1], *unit]) > room:
            parts.append([])
        parts[-1] += unit
    return parts


def _pages(sheet: Sheet, parts: int) -> Iterator[tuple[list[int], list[Block]]]:
    """(parts, blocks) of each ``table``: all rows of as many parts as a page holds, or some rows of one part."""
    turned = sheet.turned and _turns(sheet)
    heading = max(entry.width for entry in sheet.heading[sheet.keys :]) / _LINE if turned else 1
    rows = sum(len(block.rows) + bool(block.title) for block in sheet.blocks) + len(sheet.first) + heading + 1.5
    together = max(1, int(_MOST_ROWS / rows))
    for begin in range(0, parts, together):
        some = list(range(begin, min(parts, begin + together)))
        for blocks in _cut(sheet.blocks):
            yield some, blocks


def _cut(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    """The blocks on pages; one that goes on over a page repeats its title."""
    page: list[Block] = []
    used, title = 0, ""
    for block in blocks:
        title = block.title or title
        needed = len(block.rows) + bool(block.title)
        if page and used + needed > _MOST_ROWS:
            yield page
            page, used = [], 0
            block = block if block.title or not title else Block(block.rows, title)
        page.append(block)
        used += needed
    yield page


def _tabular(sheet: Sheet, columns: Sequence[int], blocks: Sequence[Block]) -> list[str]:
    broken = _broken(sheet)
    align = "".join("l" if i < sheet.left else "r" for i in columns)
    turned = sheet.turned and _turns(sheet)
    heading = [
        f"\\rotatebox{{90}}{{{sheet.heading[i].tex}}}" if turned and i >= sheet.keys else sheet.heading[i].tex
        for i in columns
    ]
    found = [f"\\begin{{tabular}}{{{align}}}", r"\toprule", _row(heading), r"\midrule"]
    found += [_row([row[i].tex for i in columns]) for row in sheet.first]
    found += [r"\midrule"] * bool(sheet.first)
    for number, block in enumerate(blocks):
        if block.title:
            found += [r"\midrule"] * bool(number)
            found.append(f"\\multicolumn{{{len(columns)}}}{{l}}{{{block.title}}} \\\\")
        for row in block.rows:
            cells = [row[i].tex for i in columns]
            if broken and row[0].tex:
                cells[0] = f"\\parbox[t]{{{_WIDEST:g}pt}}{{\\raggedright {_breakable(row[0].tex)}\\strut}}"
            if any(cells):  # a row that only another part has something in
                found.append(_row(cells))
    return [*found, r"\bottomrule", r"\end{tabular}"]


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _rows(sheet: Sheet) -> list[tuple[Entry, ...]]:
    return [*sheet.first, *(row for block in sheet.blocks for row in block.rows)]


def _widths(sheet: Sheet) -> list[float]:
    """Of each column, with its heading turned or not."""
    turned = sheet.turned and _turns(sheet)
    rows = [*_rows(sheet)] if turned else [sheet.heading, *_rows(sheet)]
    widths = [max((row[i].width for row in rows), default=0.0) for i in range(len(sheet.heading))]
    if turned:
        keys = range(sheet.keys)
        widths = [max(w, sheet.heading[i].width if i in keys else 1.2 * _SIZE) for i, w in enumerate(widths)]
    return [_WIDEST, *widths[1:]] if _broken(sheet) else widths


def _turns(sheet: Sheet) -> bool:
    """Whether upright headings save a second part."""
    rows = [sheet.heading, *_rows(sheet)]
    widths = [max((row[i].width for row in rows), default=0.0) for i in range(len(sheet.heading))]
    return sum(width + 2 * _GAP for width in widths) > _TEXT


def _broken(sheet: Sheet) -> bool:
    """Whether names in the first column are broken."""
    return max((row[0].width for row in _rows(sheet)), default=0.0) > _WIDEST


def _breakable(tex: str) -> str:
    for sign in (",", "@", "+", "="):
        tex = tex.replace(sign, sign + r"\allowbreak{}")
    return tex


def _em(sign: str) -> float:
    """Width of a letter of Computer Modern in its size."""
    if sign.isdigit():
        return 0.5
    if sign in _NARROW:
        return 0.3
    if sign in _SLIM:
        return 0.4
    return 0.85 if sign in _BROAD else 0.75 if sign.isupper() or sign > "~" else 0.54
