"""Style, save and label the report's figures, without a display."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prefdistill.storage.whole_files import atomic_path

# Safe for red-green colour blindness (Okabe and Ito 2008).
BLUE, ORANGE, GREY, BLACK = "#0072b2", "#d55e00", "#767676", "#1a1a1a"
# Text stays text in SVG, so that it can be searched. A fixed salt keeps the ids, and
# so the bytes, equal from run to run.
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "prefdistill",
    "font.size": 10,
    "axes.titlesize": 10,
    "legend.fontsize": 9,
    "axes.prop_cycle": cycler(
        color=[BLUE, ORANGE, "#009e73", "#cc79a7", BLACK],
        linestyle=["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1))],
    ),
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure atomically; equal figures give equal bytes."""
    suffix = path.suffix.removeprefix(".")
    metadata = {"Date": None} if suffix == "svg" else {"Software": None}
    with atomic_path(path) as temporary, mpl.rc_context(STYLE):
        figure.savefig(temporary, format=suffix, dpi=150, metadata=metadata)


def make_axes(
    width: float, height: float, n_columns: int = 1
) -> tuple[Figure, list[Axes]]:
    """Make an empty figure, ``width`` by ``height`` inches, with axes side by side."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, n_columns, squeeze=False)[0])


def as_words(name: str) -> str:
    """Write the name of a stage with blanks, as labels show it."""
    return name.replace("_", " ")


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Label positions 0, 1, ... of the vertical axis, the first at the top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
