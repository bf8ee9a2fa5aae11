"""The report as a LaTeX table for a paper: booktabs, best bold, second underlined (`best.ranks`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lcbench.reporting.best import Rank, ranks
from lcbench.reporting.efficiency import efficiency_notes
from lcbench.reporting.efficiency_table import WHICH, cells_of, columns_of
from lcbench.reporting.latex_layout import EMPTY, Block, Entry, Sheet, breakable, lines_of
from lcbench.reporting.longscore import tables as longscore
from lcbench.reporting.table import Cell, Column, Line, Report
from lcbench.reporting.words import bytes_text, clean, explained, ratio_text, score_text, short_names

EXTRAS = ("n", "interval")

_SMALL = 7.0  # points of \scriptsize in a 10-point document
_SIGNS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"{\char34}",
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    "-": "{-}",  # two in a row would become a dash
    "[": "{[}",  # at the begin of a row, [ and * would belong to the \\\\ of the row before
    "]": "{]}",
    "*": "{*}",
    "–": "--",
    "—": "---",
    "−": "$-$",
    "…": r"\dots{}",
    "·": r"\textperiodcentered{}",
    "×": r"$\times$",
    "↓": r"$\downarrow$",
    "▲": r"$\triangle$",
    "▼": r"$\nabla$",
    "†": r"\textdagger{}",
}


def render(report: Report, extras: Sequence[str] = ()) -> str:
    """A ``table`` with methods down and tasks across, as papers print them, then LongScores and speeds where the report
    has them, each a ``table`` of its own; ends in a newline.

    Args:
        extras: "n" (a row with the number of samples) and "interval" (95 % interval under each score).

    What is wider than a page of the standard classes goes on in tabulars below (`latex_layout`). Its first line names
    the packages it needs. It compiles with pdflatex: letters that no standard font has stand as their code points.
    """
    sheets = [_scores(report, extras)] if report.lines else []  # none: a folder of the bench alone
    comments = []
    if report.lines:
        names = short_names(line.name for line in report.lines if line.kind == "task")
        comments = [f"% {_comment(note)}" for note in (*explained(names), *report.notes)]
    body = [*(line for sheet in sheets for line in lines_of(sheet)), *comments, *_more(report)]
    turned = any("\\rotatebox" in line for line in body)
    return "\n".join([f"% \\usepackage{{booktabs{',graphicx' if turned else ''}}}", *body]) + "\n"


def _scores(report: Report, extras: Sequence[str]) -> Sheet:
    lines = list(report.lines)
    first = []
    if "n" in extras:
        counts = [_entry(report.samples(line)) for line in lines]
        first.append((Entry("$n$", "n"), *counts, EMPTY, EMPTY))
    places = ranks(report)
    models = list(dict.fromkeys(column.model for column in report.columns))
    blocks = []
    for model in models:
        title = _entry(model) if len(models) > 1 else EMPTY
        for column in report.columns:
            if column.model == model:
                blocks.append(Block(tuple(_method(report, lines, column, places, "interval" in extras)), title))
                title = EMPTY
    heading = (_entry("Method"), *_heading(lines), _entry("KV cache"), _entry("Ratio"))
    return Sheet(
        _caption(report, extras), "tab:lcbench", heading, tuple(blocks), first=tuple(first), tail=2, turned=True
    )


def _more(report: Report) -> list[str]:
    """LongScores, scores over length, and what the bench measured."""
    found: list[str] = []
    view = report.longscore
    if view is not None:
        for number, grid in enumerate([*longscore.grids(view), *longscore.length_grids(view)]):
            found += _plain(
                grid.title, [grid.header, *grid.rows], grid.left, grid.left, f"tab:lcbench-longscore-{number + 1}"
            )
        found += [f"% {_comment(note)}" for note in dict.fromkeys([*longscore.notes(view), *longscore.legend(view)])]
    if report.efficiency:
        names = columns_of(report.efficiency)
        keys = sum(name in WHICH for name in names)
        rows = [names, *(cells_of(row, names) for row in report.efficiency)]
        found += _plain("Speed and memory, each method alone.", rows, 1, keys, "tab:lcbench-speed")
        found += [f"% {_comment(note)}" for note in efficiency_notes(report.efficiency)]
    return found


def _plain(title: str, rows: Sequence[Sequence[str]], left: int, keys: int, label: str) -> list[str]:
    """A table of texts as it is, without columns that are empty in all rows; the first row is its heading, the first
    ``keys`` columns tell its rows apart."""
    told = [i for i in range(len(rows[0])) if i < keys or any(row[i] for row in rows[1:])]
    head, *body = [tuple(_entry(row[i]) for i in told) for row in rows]
    return lines_of(Sheet(breakable(_text(title)), label, head, tuple(Block((row,)) for row in body), keys, left))


def _entry(text: str) -> Entry:
    return Entry(_text(text), clean(text))


def _heading(lines: Sequence[Line]) -> list[Entry]:
    names = short_names(line.name for line in lines if line.kind == "task")
    found = []
    for line in lines:
        name = names.get(line.name, line.name)
        plain = f"{name} {line.length}" if line.kind == "length" else name
        tex = f"\\textit{{{_text(plain)}}}" if line.kind == "mean" else _text(plain)
        found.append(Entry(tex, clean(plain)))
    return found


def _method(
    report: Report, lines: Sequence[Line], column: Column, places: Mapping[tuple[Line, Column], Rank], interval: bool
) -> list[tuple[Entry, ...]]:
    cells = {line: report.cells.get((line, column)) for line in lines}
    whole = [cell for line, cell in cells.items() if line.kind == "task" and cell is not None and cell.kv_bytes]
    size = sum(cell.kv_bytes or 0 for cell in whole) / len(whole) if whole else None
    full = sum(cell.kv_bytes_full or 0 for cell in whole) / len(whole) if whole else None
    ratio = ratio_text(full / size if full and size else None)
    star = r"$^{*}$" if any(cell.memory == "simulated" for cell in whole) else ""
    name = column.method + (f" ({column.run})" if column.run else "")
    scores = [_score(cells[line], places.get((line, column))) for line in lines]
    times = Entry(_text(ratio).replace("x", r"$\times$") + star, f"{ratio}**" if star else f"{ratio}*")
    rows = [(_entry(name), *scores, _entry(bytes_text(size)), times)]
    if interval:
        rows.append((EMPTY, *(_interval(cells[line]) for line in lines), EMPTY, EMPTY))
    unscored = [_unscored(cells[line], report.part_of(line, column)) for line in lines]
    if any(entry.tex for entry in unscored):
        rows.append((EMPTY, *unscored, EMPTY, EMPTY))
    return rows


def _score(cell: Cell | None, rank: Rank | None) -> Entry:
    if cell is None or cell.score is None:
        return Entry("--", "-")
    text = score_text(cell.score)
    tex = {"best": f"\\textbf{{{text}}}", "second": f"\\underline{{{text}}}"}
    return Entry(tex[rank] if rank else text, text + "0" * (rank == "best"))


def _interval(cell: Cell | None) -> Entry:
    if cell is None or cell.low is None or cell.high is None:
        return EMPTY
    text = f"{cell.low:.1f}--{cell.high:.1f}"
    return Entry(f"{{\\scriptsize {text}}}", text, _SMALL)


def _unscored(cell: Cell | None, part: str) -> Entry:
    """Samples that are not in the score, by what became of them, and ``part`` of the rows that are in it.

    One below the other, so that columns stay narrow.
    """
    if cell is None:
        return EMPTY
    fates = {"failed": cell.errors, "filtered": cell.filtered, "skipped": cell.skipped}
    said = [*([part] if part else []), *(f"{number} {fate}" for fate, number in fates.items() if number)]
    if not said:
        return EMPTY
    below = r" \\ ".join(said)
    return Entry(rf"{{\scriptsize\begin{{tabular}}[t]{{@{{}}r@{{}}}}{below}\end{{tabular}}}}", "\n".join(said), _SMALL)


def _caption(report: Report, extras: Sequence[str]) -> str:
    words = "Scores (0 to 100) and KV cache a sample; best in bold, second best underlined."
    if "interval" in extras:
        words += r" Small: 95\,\% bootstrap interval."
    if any(cell.errors or cell.filtered or cell.skipped for cell in report.cells.values()):
        words += " Samples that failed, or were filtered or skipped, are counted below a score and are not in it."
    if any(cell.memory == "simulated" for cell in report.cells.values()):
        words += " $^{*}$: simulated, these bytes only count as dropped."
    if any(report.part_of(line, column) for line, column in report.cells):
        words += " A score of a part of the rows that others have is marked, and neither best nor second."
    models = list(dict.fromkeys(column.model for column in report.columns))
    return words if len(models) > 1 else f"{breakable(_text(models[0]))}. {words}" if models else words


def _text(text: str) -> str:
    """``text`` so that LaTeX prints it as it is."""
    return "".join(_sign(sign) for sign in clean(text))


def _sign(sign: str) -> str:
    if sign in _SIGNS:
        return _SIGNS[sign]
    # pdflatex knows Western European letters whatever the encoding of its fonts, and stops at others.
    return sign if " " <= sign <= "~" or ("À" <= sign <= "ÿ" and sign not in "×÷ÐðÞþ") else f"U+{ord(sign):04X}"


def _comment(text: str) -> str:
    return clean(text, 1000).replace("\\", "/")
