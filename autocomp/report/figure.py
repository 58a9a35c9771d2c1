"""What the pictures that are files share. matplotlib loads on use; figures are their own, never a global state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

INK, QUIET, ACCENT, BAND, BLUE = "#1d2733", "#8793a1", "#c2410c", "#dbe7f5", "#2171b5"


def new_figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, stem: Path) -> tuple[Path, Path]:
    """As PNG and SVG; the same data gives the same bytes."""
    from matplotlib import rc_context

    png, svg = stem.with_suffix(".png"), stem.with_suffix(".svg")
    with rc_context({"svg.hashsalt": "autocomp"}):
        figure.savefig(png, dpi=160)
        figure.savefig(svg, metadata={"Date": None})
    return png, svg


def plain(text: str) -> str:
    """``text`` without matplotlib's mathematics: a user's `$` is only a `$`."""
    return text.replace("$", r"\$")


def tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#e5e9ee", linewidth=0.7)
    axes.set_axisbelow(True)


def shades() -> Colormap:
    """From what is gone to what is as it was."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("kept", ["#08306b", "#2171b5", "#6baed6", "#c6dbef", "#f2f5f8"])
