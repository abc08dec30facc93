"""The figures of a sweep folder, drawn from its files alone.

values       the metric in every cell, its mean over the seeds: a line over one axis, a heat map over two, several heat
             maps where there are more axes
differences  every strategy against one of them, paired over the seeds, and where that is more than chance
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedsim import resolve
from fedsim.merit import higher_is_better
from fedsim.report.style import RC, figure, label_ends, pens, save
from fedsim.sweep.axes import geometric, numeric, word
from fedsim.sweep.grid import Grid, read

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

PANELS = 12  # heat maps in a figure
GREY = "#666666"


class Panel(NamedTuple):
    """A heat map: rows are the second axis, upwards, columns the first."""

    title: str
    numbers: NDArray[np.float64]  # [rows, columns]  NaN: nothing to show
    clear: NDArray[np.bool_]  # [rows, columns]  marked
    partly: NDArray[np.bool_]  # [rows, columns]  not all seeds are in it


def write_maps(folder: str | Path, metric: str | None = None, against: str | None = None) -> list[str]:
    """Draw the figures of a sweep folder into it and return their names.

    `metric` is test accuracy, or test loss, where none is named; `against` the first strategy. Raises ValueError for
    those that are not there.
    """
    import matplotlib

    folder = Path(folder)
    grid = read(folder, metric)
    if grid is None:
        return []
    against = grid.strategies[0] if against is None else against
    if against not in grid.strategies:
        raise ValueError(f'there is no strategy "{against}"{resolve.nearest(against, grid.strategies)}')
    with matplotlib.rc_context(RC):
        drawn = dict(figures(grid, against))
        for name, one in drawn.items():
            save(one, folder, name)
    return list(drawn)


def figures(grid: Grid, against: str) -> Iterator[tuple[str, Figure]]:
    """The figures by name."""
    others = [label for label in grid.strategies if label != against]
    if len(grid.shape) == 1:
        yield "values", _lines(grid, None)
        if others:
            yield "differences", _lines(grid, against)
        return
    for i, page in enumerate(_pages(panels(grid, None))):
        yield "values" if i == 0 else f"values-{i + 1}", _maps(grid, page, None)
    for i, page in enumerate(_pages(panels(grid, against))):
        yield "differences" if i == 0 else f"differences-{i + 1}", _maps(grid, page, against)


def _title(grid: Grid) -> str:
    return grid.metric.replace("_", " ").capitalize()


def _caption(grid: Grid, against: str | None, shown: str) -> str:
    late = "mean over the last fifth of the rounds"
    seeds = f"{grid.seeds} seeds" if grid.seeds > 1 else "one seed"
    if against is None:
        return f"{late} and over {seeds}{shown}" if grid.seeds > 1 else f"{late}, {seeds}{shown}"
    if grid.seeds < 2:
        return f"{late}, {seeds}: no interval"
    return f"{late}, difference seed by seed, mean of {seeds}{shown}"


# ---------------------------------------------------------------------------------------------------------------------
# One axis
# ---------------------------------------------------------------------------------------------------------------------


def _lines(grid: Grid, against: str | None) -> Figure:
    """The metric, or the difference from a strategy, over the one axis."""
    drawn = figure(6.4, 3.6)
    axes = drawn.subplots()
    styles, ends = pens(grid.strategies), {}
    ((name,), (values,)) = grid.names, grid.values
    places = [float(v) for v in values] if numeric(values) else [float(i) for i in range(len(values))]
    for label in grid.strategies:
        if label == against:
            continue
        points = _band(grid, label, against)
        there = [i for i in range(len(values)) if i in points]
        if not there:
            continue
        mean, low, high = (np.array([points[i][j] for i in there]) for j in range(3))
        x, pen = [places[i] for i in there], styles[label]
        axes.fill_between(x, low, high, color=pen.colour, alpha=0.13, linewidth=0)
        axes.plot(x, mean, color=pen.colour, linestyle=pen.dash, marker="o", markersize=4, mec="white", mew=0.7)
        ends[label] = (x[-1], float(mean[-1]))
    axes.set_title(_title(grid) if against is None else f"{_title(grid)}: difference from {against}")
    if against is not None:
        axes.axhline(0, color=GREY, linewidth=0.9)
    _along(axes, name, values, places)
    axes.margins(y=0.08)
    axes.set_ylim(axes.get_ylim())
    if ends:
        label_ends(axes, ends, styles)
    band = "; band: lowest to highest seed" if against is None else "; band: 95 % interval (Student t)"
    drawn.supxlabel(_caption(grid, against, band if grid.seeds > 1 else ""), fontsize=8, color=GREY)
    return drawn


def _band(grid: Grid, label: str, against: str | None) -> dict[int, tuple[float, float, float]]:
    """Middle, low and high of each value of the one axis that has any; without an interval all three are the middle."""
    if against is None:
        each = {place[0]: list(cell[label].values()) for place, cell in grid.found.items() if cell.get(label)}
        return {i: (float(np.mean(found)), min(found), max(found)) for i, found in each.items()}
    out = {}
    for place, one in grid.differences(label, against).items():
        if math.isfinite(one.mean):
            sure = math.isfinite(one.low)
            out[place[0]] = (one.mean, one.low if sure else one.mean, one.high if sure else one.mean)
    return out


def _along(axes: Axes, name: str, values: Sequence[Any], places: Sequence[float]) -> None:
    """The axis below: a tick at every value, logarithmic where the values are geometric."""
    from matplotlib.ticker import NullLocator

    if geometric(values):
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    words = [word(value) for value in values]
    axes.set_xticks(places, words)
    axes.set_xlabel(f"{name}, log scale" if geometric(values) else name)
    if len(places) > 1:
        axes.set_xlim(places[0], places[-1])
    _tilt(axes, words, 5.0)


def _tilt(axes: Axes, words: Sequence[str], inches: float) -> None:
    """Turn the words below an axis where side by side they would not fit into that many inches."""
    if sum(len(each) + 2 for each in words) * 0.072 > inches:
        axes.tick_params(axis="x", labelrotation=35)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")


# ---------------------------------------------------------------------------------------------------------------------
# Two axes and more
# ---------------------------------------------------------------------------------------------------------------------


def panels(grid: Grid, against: str | None) -> list[Panel]:
    """A heat map for each strategy and each combination of the axes past the second: values, or differences from
    `against`. The first two axes span the maps."""
    labels = [label for label in grid.strategies if label != against]
    out = []
    for rest in itertools.product(*map(range, grid.shape[2:])):
        for label in labels:
            numbers = np.full(grid.shape[:2], math.nan)
            clear, partly = np.zeros(grid.shape[:2], bool), np.zeros(grid.shape[:2], bool)
            found = {} if against is None else grid.differences(label, against)
            means = grid.means(label)
            for at in np.ndindex(*numbers.shape):
                place = (*at, *rest)
                seeds = len(grid.found.get(place, {}).get(label, {}))
                if against is None:
                    numbers[at] = means[place]
                elif place in found:
                    numbers[at], clear[at] = found[place].mean, found[place].clear
                    seeds = len(found[place].seeds)
                partly[at] = 0 < seeds < grid.seeds
            pairs = zip(grid.names[2:], grid.values[2:], rest, strict=True)
            where = [f"{name} = {word(values[i])}" for name, values, i in pairs]
            who = label if against is None else f"{label} − {against}"
            out.append(Panel(", ".join([who, *where]), numbers.T, clear.T, partly.T))
    return out


def _pages(found: Sequence[Panel]) -> list[Sequence[Panel]]:
    return [found[i : i + PANELS] for i in range(0, len(found), PANELS)]


def _maps(grid: Grid, page: Sequence[Panel], against: str | None) -> Figure:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    every = panels(grid, against)  # one scale for all pages
    finite = np.concatenate([panel.numbers[np.isfinite(panel.numbers)] for panel in every])
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    if against is not None:
        low, high = -max(abs(low), abs(high)), max(abs(low), abs(high))
    if low == high:
        low, high = low - 5e-4, high + 5e-4
    better = higher_is_better(grid.metric)
    colours = ScalarMappable(
        Normalize(low, high),
        ("cividis" if better else "cividis_r") if against is None else ("PuOr_r" if better else "PuOr"),
    )
    form = _form(low, high, against is not None)
    columns = min(len(page), 4, max(1, len(grid.strategies) - (against is not None)))
    rows = math.ceil(len(page) / columns)
    wide = max(2.1, 0.58 * grid.shape[0] + 0.25)
    drawn = figure(wide * columns + 1.6, (0.42 * grid.shape[1] + 1.0) * rows + 0.5)
    every_axes = drawn.subplots(rows, columns, squeeze=False).ravel()
    for i, axes in enumerate(every_axes):
        if i >= len(page):
            axes.set_visible(False)
            continue
        _heat(axes, grid, page[i], colours, form, int(wide * 13))
        if i % columns == 0:
            axes.set_ylabel(grid.names[1])
        else:
            axes.set_yticklabels([])
    bar = drawn.colorbar(colours, ax=list(every_axes), fraction=0.05, pad=0.02, aspect=18)
    bar.outline.set_visible(False)
    bar.ax.grid(False)
    title = _title(grid) if against is None else f"{_title(grid)}: difference"
    bar.set_label(title + ("" if better else " (low is good)"))
    drawn.supxlabel(_legend(grid, page, against), fontsize=8, color=GREY)
    return drawn


def _legend(grid: Grid, page: Sequence[Panel], against: str | None) -> str:
    shown = ""
    if against is not None and grid.seeds > 1:
        shown += "; dot: its 95 % interval (Student t) leaves 0 out,\nwhich 1 cell in 20 does by chance"
    if any(panel.partly.any() for panel in page):
        shown += "; *: not of all seeds"
    if any(np.isnan(panel.numbers).any() for panel in page):
        shown += "; hatched: no run finished"
    return _caption(grid, against, shown)


def _form(low: float, high: float, signed: bool) -> str:
    """How the numbers in the cells are written: three figures of what they range over."""
    span = high - low
    decimals = min(max(2 - math.floor(math.log10(span)), 0), 6) if span > 0 else 3
    decimals = min(decimals, 3) if span > 0.01 else decimals
    return f"{{:{'+' if signed else ''}.{decimals}f}}"


def _heat(axes: Axes, grid: Grid, panel: Panel, colours: Any, form: str, letters: int) -> None:
    """One heat map with its numbers."""
    (columns, rows), names = grid.values[:2], grid.names
    axes.imshow(panel.numbers, origin="lower", aspect="auto", cmap=colours.get_cmap(), norm=colours.norm)
    axes.set_title("\n".join(textwrap.wrap(panel.title, max(letters, 12))), fontsize=9)
    words = [word(value) for value in columns]
    axes.set_xticks(range(len(columns)), words)
    axes.set_yticks(range(len(rows)), [word(value) for value in rows])
    axes.set_xlabel(names[0])
    _tilt(axes, words, 0.58 * len(columns))
    axes.tick_params(length=0)
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for y, x in np.ndindex(*panel.numbers.shape):
        value = panel.numbers[y, x]
        if not math.isfinite(value):
            _hatch(axes, x, y)
            continue
        red, green, blue, _ = colours.to_rgba(value)
        ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
        text = form.format(value) + ("*" if panel.partly[y, x] else "")
        axes.text(x, y, text, ha="center", va="center", color=ink, fontsize=8)
        if panel.clear[y, x]:
            axes.plot(x + 0.4, y + 0.33, "o", color=ink, markersize=3.2, mew=0)


def _hatch(axes: Axes, x: int, y: int) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(
        Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor="#f2f2f2", edgecolor="#bbbbbb", hatch="////", linewidth=0)
    )
