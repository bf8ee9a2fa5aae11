"""One figure, as every kind of them is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Drawn:
    """One figure.

    Attributes:
        name: for files and anchors. title: what it shows. alt: what a reader who cannot see it should know.
        figure: as drawn.
    """

    name: str
    title: str
    alt: str
    figure: Figure
