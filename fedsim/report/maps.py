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
CELL = 0.64  # inches, its width at least
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
    for name, base in (("values", None), ("differences", against)):
        every = panels(grid, base)
        for page, start in enumerate(range(0, len(every), PANELS)):
            yield f"{name}-{page + 1}" if page else name, _maps(grid, every[start : start + PANELS], every, base)


def _title(grid: Grid) -> str:
    return grid.metric.replace("_", " ").capitalize()


def _caption(grid: Grid, against: str | None, shown: str) -> str:
    late = "mean over the last fifth of the rounds"
    seeds = f"{grid.seeds} seeds" if grid.seeds > 1 else "one seed"
    if against is None:
        return f"{late} and over {seeds}{shown}" if grid.seeds > 1 else f"{late}, {seeds}{shown}"
    if grid.seeds < 2:
        return f"{_title(grid).lower()}, {late}: difference of {seeds}, no interval{shown}"
    return f"{_title(grid).lower()}, {late}: difference seed by seed, mean of {seeds}{shown}"


def _below(drawn: Figure, text: str, inches: float) -> None:
    """What a figure shows, in small type below it."""
    drawn.supxlabel("\n".join(textwrap.wrap(text, int(inches * 15))), fontsize=8, color=GREY)


# ---------------------------------------------------------------------------------------------------------------------
# One axis
# ---------------------------------------------------------------------------------------------------------------------


def _lines(grid: Grid, against: str | None) -> Figure:
    """The metric, or the difference from a strategy, over the one axis."""
    drawn = figure(6.4, 3.6)
    axes = drawn.subplots()
    styles, ends = pens(grid.strategies), {}
    ((name,), (values,)) = grid.names, grid.values
    line = numeric(values) and len(values) > 1  # names have no distance: points with bars
    places = [float(v) for v in values] if line else [float(i) for i in range(len(values))]
    labels = [label for label in grid.strategies if label != against]
    for k, label in enumerate(labels):
        points = _band(grid, label, against)
        there = [i for i in range(len(values)) if i in points]
        if not there:
            continue
        mean, low, high = (np.array([points[i][j] for i in there]) for j in range(3))
        x, pen = [places[i] for i in there], styles[label]
        dash = pen.dash if line else "none"
        if line:
            axes.fill_between(x, low, high, color=pen.colour, alpha=0.13, linewidth=0)
        else:  # side by side
            x = [at + (k - (len(labels) - 1) / 2) * min(0.12, 0.7 / len(labels)) for at in x]
            axes.vlines(x, low, high, color=pen.colour, alpha=0.35, linewidth=2.2)
        axes.plot(
            x,
            mean,
            "o",
            color=pen.colour,
            linestyle=dash,
            markersize=4.5,
            mec="white",
            mew=0.7,
            clip_on=False,
            zorder=3,
        )
        ends[label] = (x[-1], float(mean[-1]))
    axes.set_title(_title(grid) if against is None else f"{_title(grid)}: difference from {against}")
    if against is not None:
        axes.axhline(0, color=GREY, linewidth=0.9)
    _along(axes, name, values, places, line)
    axes.margins(y=0.08)
    axes.set_ylim(axes.get_ylim())
    if ends:
        label_ends(axes, ends, styles)
    shape = "band" if line else "bar"
    band = f"; {shape}: lowest to highest seed" if against is None else f"; {shape}: 95 % interval (Student t)"
    _below(drawn, _caption(grid, against, band if grid.seeds > 1 else ""), 6.4)
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


def _along(axes: Axes, name: str, values: Sequence[Any], places: Sequence[float], line: bool) -> None:
    """The axis below: a tick at every value, logarithmic where the values are geometric."""
    from matplotlib.ticker import NullLocator

    log = line and geometric(values)
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    words = [word(value) for value in values]
    axes.set_xticks(places, words)
    axes.set_xlabel(f"{name}, log scale" if log else name)
    axes.set_xlim(*((places[0], places[-1]) if line else (-0.5, len(places) - 0.5)))
    _tilt(axes, words, 5.0)


def _tilted(words: Sequence[str], inches: float) -> bool:
    """Whether words would not fit side by side below an axis of that many inches."""
    return max(len(each) + 2 for each in words) * len(words) * 0.072 > inches


def _tilt(axes: Axes, words: Sequence[str], inches: float) -> None:
    """Turn the words below an axis where they would not fit."""
    if _tilted(words, inches):
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
            out.append(Panel("\n".join([who, ", ".join(where)]).strip(), numbers.T, clear.T, partly.T))
    return out


def _maps(grid: Grid, page: Sequence[Panel], every: Sequence[Panel], against: str | None) -> Figure:
    """A page of heat maps, on the scale of every one there is."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

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
    labels = max(1, len(grid.strategies) - (against is not None))
    columns = min(len(page), labels if labels < 6 else 4)
    rows = math.ceil(len(page) / columns)
    wide = max(2.1, CELL * grid.shape[0] + 0.25)
    width = max(wide * columns + 1.6, 4.5)
    letters, words = int(wide * 12), [word(value) for value in grid.values[0]]
    heads = max(len(_wrapped(panel.title, letters)) for panel in page)
    feet = 0.055 * max(map(len, words)) if _tilted(words, CELL * len(words)) else 0.0
    drawn = figure(width, max((0.42 * grid.shape[1] + 0.75 + 0.17 * heads + feet) * rows + 0.6, 2.9))
    every_axes = drawn.subplots(rows, columns, squeeze=False).ravel()
    for i, axes in enumerate(every_axes):
        if i >= len(page):
            axes.set_visible(False)
            continue
        _heat(axes, grid, page[i], colours, form, letters)
        if i % columns == 0:
            axes.set_ylabel(grid.names[1])
        else:
            axes.set_yticklabels([])
    bar = drawn.colorbar(colours, ax=list(every_axes), fraction=0.05, pad=0.02, aspect=18)
    bar.outline.set_visible(False)
    bar.ax.grid(False)
    if against is None:
        bar.set_label(_title(grid) + ("" if better else " (low is good)"))
    else:
        bar.set_label("difference (orange: better)")
    _below(drawn, _legend(grid, page, against), width)
    return drawn


def _legend(grid: Grid, page: Sequence[Panel], against: str | None) -> str:
    shown = ""
    if against is not None and grid.seeds > 1:
        shown += "; dot: its 95 % interval (Student t) leaves 0 out, as 1 cell in 20 does by chance"
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
    edges = [np.arange(len(each) + 1) - 0.5 for each in (columns, rows)]
    masked = np.ma.masked_invalid(panel.numbers)
    axes.pcolormesh(*edges, masked, cmap=colours.get_cmap(), norm=colours.norm, edgecolors="white", linewidth=1.2)
    axes.set_title("\n".join(_wrapped(panel.title, letters)), fontsize=9)
    words = [word(value) for value in columns]
    axes.set_xticks(range(len(columns)), words)
    axes.set_yticks(range(len(rows)), [word(value) for value in rows])
    axes.set_xlabel(names[0])
    _tilt(axes, words, CELL * len(columns))
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
        text = form.format(value).replace("-", "−") + ("*" if panel.partly[y, x] else "")
        axes.text(x, y, text, ha="center", va="center", color=ink, fontsize=8)
        if panel.clear[y, x]:
            axes.plot(x + 0.4, y + 0.33, "o", color=ink, markersize=3.2, mew=0)


def _wrapped(text: str, letters: int) -> list[str]:
    return [line for part in text.splitlines() for line in textwrap.wrap(part, letters)]


def _hatch(axes: Axes, x: int, y: int) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(
        Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor="#f2f2f2", edgecolor="#bbbbbb", hatch="////", linewidth=0)
    )
