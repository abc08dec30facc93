"""The story's numbers as the page needs them: by strategy and seed, as curves, and how a number is written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedsim import merit, paired
from fedsim.report.page.gather import Story
from fedsim.report.page.svg import Floats, Line, Pen
from fedsim.report.style import COLOURS, pens

FIRST = ("personal_accuracy", "personal_loss", "test_accuracy", "test_loss", "train_objective", "client_accuracy",
         "client_loss", "mean_model_test_loss")  # fmt: skip
TITLES = {
    "test_accuracy": "Test accuracy",
    "test_loss": "Test loss",
    "train_objective": "Training objective",
    "worst_class_accuracy": "Accuracy on the worst class",
    "worst_decile_accuracy": "Accuracy of the worst-off tenth of the clients",
    "least_decile_accuracy": "Accuracy of the tenth that takes part least",
    "worst_decile_loss": "Loss of the worst-off tenth of the clients",
    "client_accuracy": "Accuracy on clients' own data",
    "client_loss": "Loss on clients' own data",
    "personal_accuracy": "Accuracy of clients' own models on their own data",
    "personal_loss": "Loss of clients' own models on their own data",
    "tuned_client_accuracy": "Accuracy on clients' own data, fine-tuned",
    "tuned_client_loss": "Loss on clients' own data, fine-tuned",
    "client_accuracy_gini": "Inequality of clients' accuracy (Gini)",
    "consensus_distance": "Distance of the nodes to their mean",
    "mean_model_test_accuracy": "Test accuracy of the nodes' mean model",
    "mean_model_test_loss": "Test loss of the nodes' mean model",
    "weight_distance": "Weight that lies with the wrong clients",
    "implied_objective": "The objective that is really minimised",
    "suboptimality": "Objective above its minimum",
    "distance_to_optimum": "Distance to the minimum",
    "local_loss": "Loss during local training",
    "present": "Clients present",
}
LOGARITHMIC = ("test_loss", "suboptimality", "consensus_distance", "distance_to_optimum", "mean_model_test_loss")


class Unit(NamedTuple):
    """How a metric is written."""

    scale: float = 1.0
    decimals: int = 3
    after: str = ""  # the unit
    apart: str = ""  # the unit of a difference


def unit(metric: str) -> Unit:
    """Accuracies and shares in percent, their differences in points; everything else as it is."""
    if ("accuracy" in metric and "gini" not in metric) or metric == "weight_distance":
        return Unit(100.0, 1, " %", " points")
    return Unit()


def title(metric: str) -> str:
    """What a metric is called in a heading."""
    return TITLES.get(metric, metric.replace("_", " ").capitalize())


def called(metric: str) -> str:
    """What it is called inside a sentence."""
    name = title(metric)
    return name[0].lower() + name[1:]


def value(metric: str, number: float, bare: bool = False) -> str:
    """A number of the metric with its unit."""
    if not math.isfinite(number):
        return "–"
    how = unit(metric)
    scaled = how.scale * number
    text = f"{scaled:.{how.decimals}f}" if 1e-3 <= abs(scaled) < 1e5 or scaled == 0 else f"{scaled:.2e}"
    return (text if bare else text + how.after).replace("-", "−")


def gap(metric: str, number: float, bare: bool = False) -> str:
    """A difference of the metric, with its sign and unit."""
    if not math.isfinite(number):
        return "–"
    how = unit(metric)
    scaled = how.scale * number
    decimals = how.decimals + (how.scale != 1)
    small = 0 < abs(scaled) < 0.5 * 10**-decimals
    text = f"{scaled:+.1e}" if small else f"{scaled:+.{decimals}f}"
    return (text if bare else text + how.apart).replace("-", "−")


def several(count: int, what: str) -> str:
    """3 seeds, 1 seed."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def listed(words: Sequence[str]) -> str:
    """a, b and c; a name that would not be seen to be one is set in quotes."""
    words = [_quoted(word) for word in words]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def _quoted(word: str) -> str:
    name, bracket, rest = word.partition(" (")
    return f"“{name}”{bracket}{rest}" if "," in name or " and " in name else word


def primary(story: Story) -> str | None:
    """What strategies are ranked by: what was asked for, else accuracy, else loss; None where nothing suits."""
    return story.metric or next((metric for metric in FIRST if metric in story.metrics), None)


def pen(story: Story, label: str) -> Pen:
    """A strategy's colour, that of `style.pens`, and its dash: no two of 28 strategies share both."""
    place = story.labels.index(label)
    return Pen(COLOURS.index(pens(story.labels)[label].colour), place % 4)


def finals(story: Story, metric: str) -> dict[str, dict[int, float]]:
    """Label -> seed -> the mean over the last fifth of the rounds, of every finished run that measured the metric."""
    curves = merit.curves([m for m in story.measurements if m.metric == metric], metric)
    found: dict[str, dict[int, float]] = {}
    for run in story.runs:
        if (run["strategy"], run["seed"]) in curves:
            late = merit.late_mean(curves[run["strategy"], run["seed"]], run["rounds"])
            found.setdefault(run["strategy"], {})[run["seed"]] = late
    return {label: found[label] for label in story.labels if label in found}


class Bundle(NamedTuple):
    """A strategy's curves of a metric at the rounds that all its seeds were measured at."""

    rounds: Floats  # [m]
    values: Floats  # [seeds, m]
    seeds: list[int]


def bundles(story: Story, metric: str) -> dict[str, Bundle]:
    """By label, for those that measured it; runs that stopped early are cut to nothing more than they have."""
    curves = merit.curves([m for m in story.measurements if m.metric == metric], metric)
    done = {(run["strategy"], run["seed"]) for run in story.runs}
    found = {}
    for label in story.labels:
        own = {seed: curve for (name, seed), curve in curves.items() if name == label}
        whole = {seed: curve for seed, curve in own.items() if (label, seed) in done} or own
        if not whole:
            continue
        shared = sorted(set.intersection(*(set(curve.rounds.tolist()) for curve in whole.values())))
        if shared:
            keep = [curve.values[np.isin(curve.rounds, shared)] for curve in whole.values()]
            found[label] = Bundle(np.array(shared, dtype=np.float64), np.array(keep), list(whole))
    return found


def line(story: Story, metric: str, label: str, own: Bundle) -> Line:
    """The mean over the seeds and a band from the lowest to the highest."""
    scale = unit(metric).scale
    values = np.where(np.isfinite(own.values), own.values, np.nan) * scale
    some = len(own.seeds) > 1
    seen = np.isfinite(values).all(0)
    mean = np.where(seen, np.nan_to_num(values).mean(0), np.nan)
    low, high = (np.where(seen, way(np.nan_to_num(values), axis=0), np.nan) for way in (np.min, np.max))
    return Line(label, pen(story, label), own.rounds, mean, low if some else None, high if some else None)


def apart(story: Story, metric: str, label: str, reference: str, every: dict[str, Bundle]) -> Line | None:
    """A strategy minus the reference, paired by seed, with its 95 % interval; None where they share no seed."""
    own, other = every[label], every[reference]
    seeds = [seed for seed in own.seeds if seed in other.seeds]
    rounds = np.intersect1d(own.rounds, other.rounds)
    if not seeds or not len(rounds):
        return None
    a, b = (
        each.values[[each.seeds.index(seed) for seed in seeds]][:, np.isin(each.rounds, rounds)]
        for each in (own, other)
    )
    with np.errstate(invalid="ignore"):
        difference = (a - b).T * unit(metric).scale
    mean, low, high = paired.interval(np.where(np.isfinite(difference), difference, np.nan))
    some = len(seeds) > 1
    return Line(label, pen(story, label), rounds, mean, low if some else None, high if some else None)
