"""What tuning has tried: the validation value against every key of every strategy's grid, from tune.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import TYPE_CHECKING, Any

from fedsim.report.style import figure, logarithmic, pens

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHADES = (0.25, 1.0)  # of a trial that was out first, and of one that was among the last
FAR = 4  # a loss of so many times the median is off the scale


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
    for every, each in zip(panels, rows, strict=True):
        own, colour = keys[each["label"]], styles[each["label"]].colour
        for axes in every[len(own) :]:
            axes.set_axis_off()
        for axes, key in zip(every, own, strict=False):
            values = each["grid"][key]
            _panel(axes, each, key, found["budget"], colour)
            axes.set_xticks(range(len(values)), [show(value, 14).strip('"') for value in values])
            axes.set_xlim(-0.5, len(values) - 0.5)
            axes.set_xlabel(key + (", best at the edge" if key in each["edge"] else ""))
            axes.set_title("")
            axes.set_ylim(every[0].get_ylim())
        scale = ", log scale" if every[0].get_yscale() == "log" else ""
        every[0].set_title(f"{each['label']}{scale}", color=colour)
        every[0].set_ylabel(f"Validation {found['budget']['metric']}")
    how = "ring: the winner; paler: out after fewer rounds; triangle: off the scale; cross: diverged"
    drawn.supxlabel(how, fontsize=8, color="#666666")
    return drawn


def _panel(axes: Axes, each: Mapping[str, Any], key: str, budget: Mapping[str, Any], colour: str) -> None:
    """The trials of a strategy by one key; those with the same value side by side."""
    heights = [trial["value"] for trial in each["trials"] if trial["failed"] is None]
    middle = median(heights)
    top = FAR * middle if budget["metric"] == "loss" and middle > 0 else max(heights)
    logarithmic(axes, [height for height in heights if height <= top], "y")
    stages = [rung["rounds"] for rung in budget["rungs"]]
    above: dict[str, Any] = {
        "color": colour,
        "markersize": 5,
        "mew": 1,
        "transform": axes.get_xaxis_transform(),
        "clip_on": False,
    }
    for at, value in enumerate(each["grid"][key]):
        here = [trial for trial in each["trials"] if trial["settings"][key] == value]
        for place, trial in enumerate(here):
            x = at + 0.5 * ((place + 0.5) / len(here) - 0.5)
            if trial["failed"] is not None or trial["value"] > top:
                axes.plot(x, 1.0, "^" if trial["failed"] is None else "x", **above)
                continue
            stage = stages.index(trial["rounds"]) / max(len(stages) - 1, 1)
            alpha = SHADES[0] + (SHADES[1] - SHADES[0]) * stage
            axes.plot(x, trial["value"], "o", color=colour, alpha=alpha, markersize=5, mew=0)
            if trial["settings"] == each["winner"]:
                axes.plot(x, trial["value"], "o", color="none", markersize=11, mec="#222222", mew=1.2)
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.15)
