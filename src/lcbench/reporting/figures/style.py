"""How figures look: colours that colour-blind readers tell apart, little ink, the same file for the same data."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcbench.errors import CannotWrite, UsageError
from lcbench.reporting import words
from lcbench.store.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Three inks that the HTML report swaps for its own, so that figures follow light and dark.
INK = "#1a1a1b"
MUTED = "#6b6b6c"
PAPER = "#fffffe"
GRID = "#e2e2e3"

# Okabe and Ito's palette without its yellow, which is too faint on white. Markers say the same once more.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
BETTER, WORSE = "#0072B2", "#D55E00"

MISSING = "Figures need matplotlib, which is not installed."

FORMATS = ("svg", "pdf", "png")
MINUS = "−"

_RC: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "legend.frameon": False,
    "hatch.linewidth": 0.5,
    "svg.fonttype": "path",
    "svg.hashsalt": "lcbench",
    "pdf.fonttype": 42,
    "text.parse_math": False,  # method ids are text, whatever signs they hold
    "axes.unicode_minus": True,
}


# Fonts with the letters that DejaVu lacks; the first that is installed of each kind is enough, more do no harm.
_FALLBACKS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei", "Droid Sans Fallback", "Microsoft YaHei", "PingFang SC", "Hiragino Sans GB", "SimHei",
    "Arial Unicode MS", "Unifont", "Noto Emoji", "Symbola", "Segoe UI Symbol",
)  # fmt: skip


@functools.cache
def _families() -> tuple[str, ...]:
    """DejaVu Sans, which comes with matplotlib, and what is installed of the others."""
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    return ("DejaVu Sans", *(name for name in _FALLBACKS if name in installed))


@functools.cache
def _letters() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    files = [findfont(FontProperties(family=[name])) for name in _families()]
    return frozenset(code for file in files for code in get_font(file).get_charmap())


def drawable(text: str) -> str:
    """``text`` on one line; letters that no font here has stand as their code points, as in the LaTeX table."""
    shown = words.clean(text)
    if shown.isascii():
        return shown
    return "".join(sign if ord(sign) in _letters() else f"U+{ord(sign):04X} " for sign in shown).strip()


def has_matplotlib() -> bool:
    """Whether figures can be drawn here."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def require_matplotlib() -> None:
    """Raises UsageError, with the command that mends it, where matplotlib is not installed."""
    if not has_matplotlib():
        raise UsageError(MISSING, "Install it: pip install matplotlib")


@contextmanager
def styled() -> Iterator[None]:
    """Draw inside of this: no display, our looks, and nobody else's settings changed."""
    require_matplotlib()
    import matplotlib

    with matplotlib.rc_context(
        {**matplotlib.rcParamsDefault, **_RC, "font.family": list(_families()), "backend": "agg"}
    ):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of the given inches; not registered with pyplot, so nothing keeps it alive."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def svg_text(figure: Figure) -> str:
    """The figure as SVG text, the same for the same figure."""
    import io

    buffer = io.StringIO()
    with styled():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = re.sub(r"\n +", "\n", buffer.getvalue())
    return _PLACES.sub(lambda found: _LONG.sub(_shorter, found.group()), text)


_PLACES = re.compile(r'\b(?:d|x|y|points)="[^"]*"|translate\([^)]*\)')
_LONG = re.compile(r"-?\d+\.\d{3,}")


def _shorter(number: re.Match[str]) -> str:
    """A place in a drawing to a hundredth of a point, which no eye can tell from more."""
    return f"{float(number.group()):.2f}".rstrip("0").rstrip(".")


def save(figure: Figure, path: Path) -> None:
    """Write the figure in the format of the path's suffix, without the time in it. Raises CannotWrite."""
    suffix = path.suffix[1:]
    if suffix == "svg":
        write_text(path, svg_text(figure))
        return
    empty: dict[str, dict[str, None]] = {
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
        "png": {"Software": None},
    }
    try:
        with styled():
            figure.savefig(path, format=suffix, dpi=200, metadata=empty[suffix])
    except OSError as error:
        raise CannotWrite(
            f"Cannot write {path}: {error.strerror or error}.", "Choose another --figures folder."
        ) from None


def _is_full(label: str) -> bool:
    """Also "full (run)" and "full, 2 of 6 rows"."""
    return re.match(r"full($|[ ,])", label) is not None


def looks(methods: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Method id to (colour, marker); full is black.

    A few methods have a colour each. Of more, settings of one method share a colour and differ in the marker.
    """
    others = [method for method in methods if not _is_full(method)]
    if len(others) <= len(COLOURS):
        each = zip(others, zip(COLOURS, MARKERS, strict=False), strict=False)
        return {"full": (INK, "*"), **{method: (INK, "*") for method in methods if _is_full(method)}, **dict(each)}
    colours: dict[str, str] = {}
    counts: dict[str, int] = {}
    result = {}
    for method in methods:
        name = method.partition("@")[0]
        if _is_full(method):
            result[method] = (INK, "*")
            continue
        colour = colours.setdefault(name, COLOURS[len(colours) % len(COLOURS)])
        # The seventh method has the colour of the first: then it starts at another marker.
        start = 3 * (list(colours).index(name) // len(COLOURS))
        marker = MARKERS[(start + counts.get(name, 0)) % len(MARKERS)]
        counts[name] = counts.get(name, 0) + 1
        result[method] = (colour, marker)
    return result


def grid_shape(count: int, most_columns: int = 4) -> tuple[int, int]:
    """Rows and columns for ``count`` panels, as even as can be."""
    columns = min(count, most_columns)
    rows = -(-count // columns)
    return rows, -(-count // rows)


def shorten(text: str, longest: int = 26) -> str:
    """A label that fits: its begin, an ellipsis, and its end, in letters that can be drawn."""
    return words.shorten(drawable(text), longest)


def fit(text: str, inches: float, size: float, *, bold: bool = False) -> str:
    """``text`` shortened in its middle until it is no wider than ``inches`` at ``size`` points."""
    shown = drawable(text)
    if _inches(shown, size, bold) <= inches:
        return shown
    for longest in range(len(shown) - 1, 3, -1):
        shorter = shorten(shown, longest)
        if _inches(shorter, size, bold) <= inches:
            return shorter
    return shorten(shown, 4)


def wrap(text: str, inches: float, size: float = 10, *, bold: bool = True) -> str:
    """``text`` broken at blanks into lines of at most ``inches``: a title as wide as its figure."""
    lines = [""]
    for word in drawable(text).split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if _inches(longer, size, bold) <= inches or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(fit(line, inches, size, bold=bold) for line in lines)


def head(figure: Figure, title: str) -> None:
    """The figure's title, bold at its left, on as many lines as its width asks for."""
    text = wrap(title, figure.get_figwidth() - 0.25)
    figure.suptitle(text, x=0.01, ha="left", fontweight="bold", fontsize=10)


def _inches(text: str, size: float, bold: bool) -> float:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=list(_families()), size=size, weight="bold" if bold else "normal")
    return float(text_to_path.get_text_width_height_descent(text, font, False)[0]) / 72
