"""What all figures share: colours, type, where labels go, how a figure is saved. Without pyplot: no global state."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedsim.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's colours, told apart by colour-blind readers; their yellow is left out, it is lost on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.2, 1.2, 1.2)))

RC: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "svg.hashsalt": "fedsim",  # the same figure is the same file
}


class Pen(NamedTuple):
    """How a strategy is drawn, in every figure alike."""

    colour: str
    dash: Any


def pens(labels: Sequence[str]) -> dict[str, Pen]:
    """A pen for each label, by its place; past the last colour they start again, dashed."""
    return {
        label: Pen(COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)]) for i, label in enumerate(labels)
    }


def figure(width: float, height: float) -> Figure:
    """An empty figure in inches, drawn by Agg whatever the machine's display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(drawn)
    return drawn


def label_ends(axes: Axes, ends: Mapping[str, tuple[float, float]], styles: Mapping[str, Pen]) -> None:
    """Write each line's name beside its end (x, y), moved apart where they would overlap, in the line's colour."""
    box = axes.get_position()
    inches = axes.figure.get_size_inches()[1] * box.height  # type: ignore[union-attr]
    gap = 0.155 / inches * 0.95  # a line of type, as a share of the axes
    names = sorted(ends, key=lambda name: ends[name][1])
    within = axes.transScale + axes.transLimits  # from data to shares of the axes
    share = [min(max(float(within.transform((0.0, ends[name][1]))[1]), 0.0), 1.0) for name in names]
    places = spread(share, gap)
    shift = max(0.0, -places[0]) - max(0.0, places[-1] - 1.0)  # stay beside the axes
    for name, at, y in zip(names, places, share, strict=True):
        axes.annotate(
            name,
            xy=(1.0, y),
            xytext=(1.045, at + shift),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=styles[name].colour,
            va="center",
            ha="left",
            fontsize=8.5,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": styles[name].colour,
                "linewidth": 0.7,
                "shrinkA": 0,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )


def dots(
    axes: Axes, order: Sequence[str], values: Mapping[str, Sequence[float]], styles: Mapping[str, Pen], form: str
) -> None:
    """Strategies one above another, the first of `order` lowest: a large point at the mean of the values of each, a bar
    for ± std, a small point for every value, and the numbers (`form`) at the right."""
    import numpy as np

    for place, label in enumerate(order):
        found, colour = values[label], styles[label].colour
        if not found:
            continue
        mean = float(np.mean(found))
        text = form.format(mean)
        if len(found) > 1:
            spread = float(np.std(found, ddof=1))
            text += " ± " + form.replace("+", "").format(spread)
            axes.plot([mean - spread, mean + spread], [place, place], color=colour, linewidth=2.2, alpha=0.35)
            axes.plot(found, [place - 0.24] * len(found), "o", color=colour, markersize=2.6, alpha=0.8, mew=0)
        axes.text(1.02, place, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8, color="#444444")
        axes.plot(mean, place, "o", color=colour, markersize=6, mec="white", mew=0.8, zorder=3)
    axes.set_yticks(range(len(order)), order)
    axes.set_ylim(-0.7, len(order) - 0.4)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.08)


def logarithmic(axes: Axes, values: Sequence[float], axis: str) -> None:
    """A logarithmic axis where positive values span more than a factor of five, with plain numbers on it."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    if min(values) <= 0 or max(values) < 5 * min(values):
        return
    axes.set(**{f"{axis}scale": "log"})
    axes.set_title(f"{axes.get_title(loc='left')}, log scale")
    scale = axes.xaxis if axis == "x" else axes.yaxis
    scale.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    scale.set_major_formatter(StrMethodFormatter("{x:g}"))
    scale.set_minor_formatter(NullFormatter())


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Places at least `gap` apart, as near to those wanted (ascending) as that allows: neighbours in each other's way
    become a block around the mean of what they wanted."""
    blocks: list[list[float]] = []  # [sum of wanted minus offset, count]
    for place in wanted:
        blocks.append([place, 1])
        while len(blocks) > 1 and _start(blocks[-2], gap) + blocks[-2][1] * gap > _start(blocks[-1], gap):
            later = blocks.pop()
            blocks[-1] = [blocks[-1][0] + later[0], blocks[-1][1] + later[1]]
    places = []
    for block in blocks:
        start = _start(block, gap)
        places += [start + i * gap for i in range(int(block[1]))]
    return places


def _start(block: Sequence[float], gap: float) -> float:
    return block[0] / block[1] - gap * (block[1] - 1) / 2


def save(drawn: Figure, folder: Path, name: str) -> None:
    """Write <name>.png and <name>.svg; the same figure gives the same bytes."""
    for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        data = io.BytesIO()
        drawn.savefig(data, format=suffix, metadata=metadata)
        write_atomically(folder / f"{name}.{suffix}", data.getvalue())
