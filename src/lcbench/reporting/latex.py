"""The report as a LaTeX table for a paper: booktabs, best bold, second underlined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lcbench.reporting.best import Rank, ranks
from lcbench.reporting.efficiency import efficiency_notes
from lcbench.reporting.efficiency_table import cells_of, columns_of
from lcbench.reporting.longscore import tables as longscore
from lcbench.reporting.table import Cell, Column, Line, Report
from lcbench.reporting.words import bytes_text, clean, explained, ratio_text, score_text, short_names

EXTRAS = ("n", "interval")

_WIDE = 3  # from so many columns of scores on the table is scaled down where it is wider than the text
_SHRUNK = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
_UPRIGHT = 8  # from so many on their headings stand upright
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

    Its first line names the packages it needs. It compiles with pdflatex: letters that no standard font has are written
    as their code points.
    """
    lines, wide = list(report.lines), len(report.lines) >= _WIDE
    more = _more(report)
    columns = "l" + "r" * (len(lines) + 2)
    packages = f"% \\usepackage{{booktabs{',graphicx' if wide or more else ''}}}"
    if not lines:  # a folder of the bench alone
        return "\n".join([packages, *more]) + "\n"
    body = [
        packages,
        r"\begin{table}[t]",
        r"\centering",
        f"\\caption{{{_caption(report, extras)}}}",
        r"\label{tab:lcbench}",
        *([_SHRUNK] if wide else []),
        f"\\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _heading(report, lines),
        r"\midrule",
    ]
    if "n" in extras:
        counts = [_text(report.samples(line)) for line in lines]
        body += [_row(["$n$", *counts, "", ""]), r"\midrule"]
    places = ranks(report)
    models = list(dict.fromkeys(column.model for column in report.columns))
    for number, model in enumerate(models):
        if number:
            body.append(r"\midrule")
        if len(models) > 1:
            body.append(f"\\multicolumn{{{len(lines) + 3}}}{{l}}{{\\textit{{{_text(model)}}}}} \\\\")
        for column in report.columns:
            if column.model == model:
                body += _method(report, lines, column, places, "interval" in extras)
    body += [r"\bottomrule", r"\end{tabular}" + ("}" if wide else ""), r"\end{table}"]
    names = short_names(line.name for line in lines if line.kind == "task")
    body += [f"% {_comment(note)}" for note in (*explained(names), *report.notes)]
    return "\n".join([*body, *more]) + "\n"


def _more(report: Report) -> list[str]:
    """LongScores, scores over length, and what the bench measured."""
    found: list[str] = []
    view = report.longscore
    if view is not None:
        for number, grid in enumerate([*longscore.grids(view), *longscore.length_grids(view)]):
            found += _plain(grid.title, [grid.header, *grid.rows], grid.left, f"tab:lcbench-longscore-{number + 1}")
        found += [f"% {_comment(note)}" for note in dict.fromkeys([*longscore.notes(view), *longscore.legend(view)])]
    if report.efficiency:
        names = columns_of(report.efficiency)
        rows = [names, *(cells_of(row, names) for row in report.efficiency)]
        found += _plain("Speed and memory, each method alone.", rows, 1, "tab:lcbench-speed")
        found += [f"% {_comment(note)}" for note in efficiency_notes(report.efficiency)]
    return found


def _plain(title: str, rows: Sequence[Sequence[str]], left: int, label: str) -> list[str]:
    """A table of texts as it is, scaled down where it is wider than the page; the first row is its heading."""
    head, *body = [_row([_text(cell) for cell in row]) for row in rows]
    return [
        r"\begin{table}[t]",
        r"\centering",
        f"\\caption{{{_text(title)}}}",
        f"\\label{{{label}}}",
        _SHRUNK,
        f"\\begin{{tabular}}{{{'l' * left + 'r' * (len(rows[0]) - left)}}}",
        r"\toprule",
        head,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]


def _heading(report: Report, lines: Sequence[Line]) -> str:
    names = short_names(line.name for line in lines if line.kind == "task")
    cells = []
    for line in lines:
        name = names.get(line.name, line.name)
        text = _text(f"{name} {line.length}" if line.kind == "length" else name)
        text = f"\\textit{{{text}}}" if line.kind == "mean" else text
        cells.append(f"\\rotatebox{{90}}{{{text}}}" if len(lines) >= _UPRIGHT else text)
    return _row(["Method", *cells, "KV cache", "Ratio"])


def _method(
    report: Report, lines: Sequence[Line], column: Column, places: Mapping[tuple[Line, Column], Rank], interval: bool
) -> list[str]:
    cells = {line: report.cells.get((line, column)) for line in lines}
    whole = [cell for line, cell in cells.items() if line.kind == "task" and cell is not None and cell.kv_bytes]
    size = sum(cell.kv_bytes or 0 for cell in whole) / len(whole) if whole else None
    full = sum(cell.kv_bytes_full or 0 for cell in whole) / len(whole) if whole else None
    ratio = full / size if full and size else None
    star = r"$^{*}$" if any(cell.memory == "simulated" for cell in whole) else ""
    name = column.method + (f" ({column.run})" if column.run else "")
    scores = [_score(cells[line], places.get((line, column))) for line in lines]
    saved = [_text(bytes_text(size)), _text(ratio_text(ratio)).replace("x", r"$\times$") + star]
    rows = [_row([_text(name), *scores, *saved])]
    if interval:
        rows.append(_row(["", *(_interval(cells[line]) for line in lines), "", ""]))
    unscored = [_unscored(cells[line]) for line in lines]
    if any(unscored):
        rows.append(_row(["", *unscored, "", ""]))
    return rows


def _score(cell: Cell | None, rank: Rank | None) -> str:
    if cell is None or cell.score is None:
        return "--"
    text = score_text(cell.score)
    if rank == "best":
        return f"\\textbf{{{text}}}"
    return f"\\underline{{{text}}}" if rank == "second" else text


def _interval(cell: Cell | None) -> str:
    if cell is None or cell.low is None or cell.high is None:
        return ""
    return f"{{\\scriptsize {cell.low:.1f}--{cell.high:.1f}}}"


def _unscored(cell: Cell | None) -> str:
    """Samples that are not in the score, by what became of them; one below the other, so that columns stay narrow."""
    if cell is None:
        return ""
    fates = {"failed": cell.errors, "filtered": cell.filtered, "skipped": cell.skipped}
    said = [f"{number} {fate}" for fate, number in fates.items() if number]
    below = r" \\ ".join(said)
    return rf"{{\scriptsize\begin{{tabular}}[t]{{@{{}}r@{{}}}}{below}\end{{tabular}}}}" if said else ""


def _caption(report: Report, extras: Sequence[str]) -> str:
    words = "Scores (0 to 100) and KV cache a sample; best in bold, second best underlined."
    if "interval" in extras:
        words += r" Small: 95\,\% bootstrap interval."
    if any(cell.errors or cell.filtered or cell.skipped for cell in report.cells.values()):
        words += " Samples that failed, or were filtered or skipped, are counted below a score and are not in it."
    if any(cell.memory == "simulated" for cell in report.cells.values()):
        words += " $^{*}$: simulated, these bytes only count as dropped."
    models = list(dict.fromkeys(column.model for column in report.columns))
    return words if len(models) > 1 else f"{_text(models[0])}. {words}" if models else words


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


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
