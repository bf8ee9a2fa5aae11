"""Tables that fit a page of LaTeX: columns and rows parted so that nothing is set below 7 points.

Everything is set in ``\\footnotesize``, 8 points in a 10-point document. Widths are estimated from those of Computer
Modern, a little too wide rather than too narrow: what is wider than the text of the standard classes continues in
tabulars below, and what is longer than a page in further tables.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_TEXT = 345.0  # points across a page of article at 10 points
_SIZE = 8.0  # of \footnotesize there
_GAP = 4.0  # \tabcolsep, on both sides of every column
_WIDEST = 130.0  # a column of names beyond this breaks its lines
_WIDEST_OF_TWO = 95.0  # where two of them stand side by side
_LONG_WORD = 16  # letters from which on a word may be broken, at signs of ids or else anywhere
_STRETCH = 10  # letters of an id without such a sign before it is broken all the same
_PIECE = re.compile(r"\\[A-Za-z]+(?:\{\})?|\\.|\$[^$]*\$|\{[^{}]*\}|.", re.DOTALL)
_JOINTS = (",", "@", "+", "=", "/", ".", r"\_", "{-}", ":")
_LINE = 9.5  # points from a line to the next
_MOST_ROWS = 50  # of \footnotesize that a page holds besides caption and heading
_FEWEST_ROWS = 8  # that stand on a page however tall its heading
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
    """Rows that stay together. ``title``: a line above in italics, across all columns; rows: of as many entries as the
    heading."""

    rows: tuple[tuple[Entry, ...], ...]
    title: Entry = EMPTY


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
    rows = sum(_height(sheet, block) for block in sheet.blocks) + len(sheet.first) + heading + 1.5
    together = max(1, int(_MOST_ROWS / rows))
    for begin in range(0, parts, together):
        some = list(range(begin, min(parts, begin + together)))
        for blocks in _cut(sheet, max(_FEWEST_ROWS, _MOST_ROWS - math.ceil(heading - 1) - len(sheet.first))):
            yield some, blocks


def _cut(sheet: Sheet, most: int) -> Iterator[list[Block]]:
    """The blocks on pages of ``most`` lines; one that goes on over a page repeats its title."""
    page: list[Block] = []
    used, title = 0, EMPTY
    for block in sheet.blocks:
        title = block.title if block.title.tex else title
        needed = _height(sheet, block)
        if page and used + needed > most:
            yield page
            page, used = [], 0
            block = block if block.title.tex or not title.tex else Block(block.rows, title)
            needed = _height(sheet, block)
        page.append(block)
        used += needed
    yield page


def _height(sheet: Sheet, block: Block) -> int:
    """Lines that a block takes."""
    widest, broken = _widest(sheet), _broken(sheet)
    lines = _lines(block.title.width, _TEXT) if block.title.tex else 0
    for row in block.rows:
        names = [_lines(row[i].width, widest) for i in broken]
        lines += max([1, *names, *(entry.plain.count("\n") + 1 for entry in row)])
    return lines


def _lines(width: float, room: float) -> int:
    """Lines of a text that may be broken: a fifth more than would fill them to their ends."""
    return 1 if width <= room else math.ceil(1.2 * width / room)


def _tabular(sheet: Sheet, columns: Sequence[int], blocks: Sequence[Block]) -> list[str]:
    broken, widest = _broken(sheet), _widest(sheet)
    align = "".join("l" if i < sheet.left else "r" for i in columns)
    turned = sheet.turned and _turns(sheet)
    heading = [
        f"\\rotatebox{{90}}{{{sheet.heading[i].tex}}}" if turned and i >= sheet.keys else sheet.heading[i].tex
        for i in columns
    ]
    found = [f"\\begin{{tabular}}{{{align}}}", r"\toprule", _row(heading), r"\midrule"]
    found += [_row([row[i].tex for i in columns]) for row in sheet.first]
    found += [r"\midrule"] * bool(sheet.first)
    widths = _widths(sheet)
    across = sum(widths[i] + 2 * _GAP for i in columns) - 2 * _GAP
    for number, block in enumerate(blocks):
        if block.title.tex:
            found += [r"\midrule"] * bool(number)
            title = f"\\textit{{{block.title.tex}}}"
            if block.title.width > across:
                title = _box(f"\\itshape {breakable(block.title.tex)}", min(_TEXT, max(across, _WIDEST)))
            found.append(f"\\multicolumn{{{len(columns)}}}{{l}}{{{title}}} \\\\")
        for row in block.rows:
            cells = [_box(breakable(row[i].tex), widest) if i in broken and row[i].tex else row[i].tex for i in columns]
            if any(cells):  # a row that only another part has something in
                found.append(_row(cells))
    return [*found, r"\bottomrule", r"\end{tabular}"]


def _box(tex: str, width: float) -> str:
    return f"\\parbox[t]{{{width:.4g}pt}}{{\\raggedright {tex}\\strut}}"


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
    broken = _broken(sheet)
    return [_widest(sheet) if i in broken else width for i, width in enumerate(widths)]


def _turns(sheet: Sheet) -> bool:
    """Whether upright headings save a second part."""
    rows = [sheet.heading, *_rows(sheet)]
    widths = [max((row[i].width for row in rows), default=0.0) for i in range(len(sheet.heading))]
    return sum(width + 2 * _GAP for width in widths) > _TEXT


def _broken(sheet: Sheet) -> list[int]:
    """Columns of names that are broken."""
    widest = _widest(sheet)
    return [i for i in range(sheet.left) if max((row[i].width for row in _rows(sheet)), default=0.0) > widest]


def _widest(sheet: Sheet) -> float:
    """Points that a column of names may have."""
    return _WIDEST if sheet.left == 1 else _WIDEST_OF_TWO


def breakable(tex: str) -> str:
    """Long words of a text in LaTeX with places to break them: where ids have joints, and else every few letters."""
    return " ".join(_broken_word(word) for word in tex.split(" "))


def _broken_word(word: str) -> str:
    pieces = _PIECE.findall(word)
    if len(pieces) <= _LONG_WORD:
        return word
    found, since = [], 0
    for piece in pieces:
        since += 1
        joint = piece in _JOINTS
        found.append(piece)
        if joint or since >= _STRETCH:
            found.append(r"\allowbreak{}")
            since = 0
    return "".join(found)


def _em(sign: str) -> float:
    """Width of a letter of Computer Modern in its size."""
    if sign.isdigit():
        return 0.5
    if sign in _NARROW:
        return 0.3
    if sign in _SLIM:
        return 0.4
    return 0.85 if sign in _BROAD else 0.75 if sign.isupper() or sign > "~" else 0.54
