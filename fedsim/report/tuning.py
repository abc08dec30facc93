"""What tuning has tried: the validation value against every key of every strategy's grid, from tune.json alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedsim.report.style import figure, logarithmic, pens

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHADES = (0.25, 1.0)  # of a trial that was out first, and of one that was among the last


def tuning(found: Mapping[str, Any]) -> Figure | None:
    """A row for each strategy that was tuned, a panel for each key with several values; None without any. A dot is a
    trial at what it was last judged at, the winner has a ring, trials that failed are crosses above."""
    from fedsim.experiment.settings import show

    styles = pens([each["label"] for each in found["strategies"]])
    rows = [each for each in found["strategies"] if each["trials"]]
    if not rows:
        return None
    keys = {each["label"]: [key for key, values in each["grid"].items() if len(values) > 1] for each in rows}
    columns = max(len(own) for own in keys.values())
    drawn = figure(max(2.9 * columns, 4.2) + 0.5, 2.15 * len(rows) + 0.5)
    panels = drawn.subplots(len(rows), columns, squeeze=False)
    name = f"Validation {found['budget']['metric']}"
    for every, each in zip(panels, rows, strict=True):
        limits: tuple[float, float] | None = None
        for axes, key in zip(every, keys[each["label"]], strict=False):
            values = each["grid"][key]
            _panel(axes, each, key, values, found["budget"]["rungs"], styles[each["label"]].colour)
            axes.set_xticks(range(len(values)), [show(value, 14).strip('"') for value in values])
            axes.set_xlim(-0.5, len(values) - 0.5)
            axes.set_xlabel(key + (", best at the edge" if key in each["edge"] else ""))
            limits = axes.get_ylim() if limits is None else limits
            axes.set_ylim(limits)
        every[0].set_ylabel(name)
        title = every[0].get_title(loc="left")  # ", log scale", or nothing
        for axes in every[: len(keys[each["label"]])]:
            axes.set_title("")
        every[0].set_title(each["label"] + title, color=styles[each["label"]].colour)
        for axes in every[len(keys[each["label"]]) :]:
            axes.set_axis_off()
    drawn.supxlabel("paler: out after fewer rounds; ring: the winner; cross: diverged", fontsize=8, color="#666666")
    return drawn


def _panel(
    axes: Axes, each: Mapping[str, Any], key: str, values: Sequence[Any], rungs: Sequence[Any], colour: str
) -> None:
    """The trials of a strategy by one key; those with the same value side by side."""
    trials = each["trials"]
    height = [trial["value"] for trial in trials if trial["failed"] is None]
    if all(value is not None and math.isfinite(value) for value in height):
        logarithmic(axes, height, "y")
    stages = {rung["rounds"]: place for place, rung in enumerate(rungs)}
    for at, value in enumerate(values):
        here = [trial for trial in trials if trial["settings"][key] == value]
        for place, trial in enumerate(here):
            x = at + 0.5 * ((place + 0.5) / len(here) - 0.5)
            if trial["failed"] is not None:
                axes.plot(x, 0.97, "x", color=colour, markersize=5, transform=axes.get_xaxis_transform(), clip_on=False)
                continue
            stage = stages.get(trial["rounds"], 0) / max(len(rungs) - 1, 1)
            alpha = SHADES[0] + (SHADES[1] - SHADES[0]) * stage
            axes.plot(x, trial["value"], "o", color=colour, alpha=alpha, markersize=5, mew=0)
            if trial["settings"] == each["winner"]:
                axes.plot(x, trial["value"], "o", color="none", markersize=11, mec="#222222", mew=1.2)
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.15)
