"""Figures of merit of whole runs: what the curve of one metric of one run amounts to.

A run is a strategy with a seed. Its curve holds what it was evaluated at, the first model (round 0) included. A value
that is not finite makes every figure that needs it NaN: a run that blew up has no mean, and whoever asks has to say so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedsim.record import Measurement

# Parts of metrics' names, the first that fits decides: a Gini coefficient of accuracies is better low.
LOWER = ("gini", "variance", "distance", "suboptimality", "loss", "objective", "bytes", "seconds")
HIGHER = ("accuracy",)


def higher_is_better(metric: str) -> bool:
    """Whether a metric is better high, by its name. Raises ValueError for one that is neither, such as "present"."""
    if any(part in metric for part in LOWER):
        return False
    if any(part in metric for part in HIGHER):
        return True
    known = ", ".join((*HIGHER, *LOWER))
    raise ValueError(
        f'of metric "{metric}" nobody knows whether it is better high or low: no part of its name is one of {known}'
    )


class Curve(NamedTuple):
    """A metric of a run against the round."""

    rounds: NDArray[np.int64]  # [m]  ascending; how many rounds were over
    values: NDArray[np.float64]  # [m]


def curves(measurements: Iterable[Measurement], metric: str) -> dict[tuple[str, int], Curve]:
    """The curve of every run in which the metric was measured, by (strategy, seed), in order of appearance.

    Raises ValueError where a run has two values for a round, as when folders with the same run are put together.
    """
    found: dict[tuple[str, int], dict[int, float]] = {}
    for m in measurements:
        if m.metric != metric:
            continue
        by_round = found.setdefault((m.strategy, m.seed), {})
        if m.round in by_round:
            raise ValueError(f"{m.strategy}, seed {m.seed} has two values of {metric} for round {m.round}")
        by_round[m.round] = m.value
    return {
        run: Curve(np.array(sorted(points), dtype=np.int64), np.array([points[t] for t in sorted(points)]))
        for run, points in found.items()
    }


def late_mean(curve: Curve, rounds: int, share: float = 0.2) -> float:
    """The mean over the evaluations of the last `share` of a run's `rounds`: its final value without the luck of the
    last round. NaN where there is no such evaluation, because the run ended before."""
    late = curve.rounds > (1 - share) * rounds
    return float(curve.values[late].mean()) if late.any() else math.nan


def first_reached(curve: Curve, target: float, higher: bool) -> float | None:
    """The round of the first evaluation that is at the target or past it; None: there is none. Nothing is interpolated,
    so it is up to a gap between evaluations late."""
    there = curve.values >= target if higher else curve.values <= target
    return float(curve.rounds[there][0]) if there.any() else None


def along(curve: Curve, rounds_to: Curve, target: float, higher: bool) -> float | None:
    """`first_reached` in another currency, bytes or seconds: `rounds_to` says how much was spent by which round, and
    nothing at round 0 unless it says otherwise. Raises ValueError where it does not know the round."""
    reached = first_reached(curve, target, higher)
    if reached is None:
        return None
    spent = rounds_to.values[rounds_to.rounds == reached]
    if len(spent):
        return float(spent[0])
    if reached == 0:
        return 0.0
    raise ValueError(f"what was spent by round {reached:.0f} is not known")


def area(curve: Curve) -> float:
    """The mean height: the area under the straight lines between evaluations, over the rounds from first to last."""
    if len(curve.rounds) == 1:
        return float(curve.values[0])
    with np.errstate(invalid="ignore"):  # ∞ − ∞ in a run that blew up
        return float(np.trapezoid(curve.values, curve.rounds) / (curve.rounds[-1] - curve.rounds[0]))


def drop(curve: Curve, higher: bool) -> float:
    """How far the mean over the last fifth of the curve lies on the wrong side of its best evaluation, from 0: how
    little there is to be had by stopping in time."""
    if not np.isfinite(curve.values).all():
        return math.nan
    if len(curve.rounds) == 1:
        return 0.0
    last = late_mean(curve, int(curve.rounds[-1]))
    best = float(curve.values.max() if higher else curve.values.min())
    return max(best - last if higher else last - best, 0.0)


def middle(each: Iterable[Curve]) -> Curve:
    """The mean of curves, over the rounds at which all of them were evaluated. Raises ValueError without a curve."""
    each = list(each)
    if not each:
        raise ValueError("there is no curve to take the mean of")
    shared = each[0].rounds
    for curve in each[1:]:
        shared = np.intersect1d(shared, curve.rounds)
    values = [curve.values[np.isin(curve.rounds, shared)] for curve in each]
    return Curve(shared, np.mean(values, axis=0))
