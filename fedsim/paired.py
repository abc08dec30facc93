"""Paired comparisons: what can be said of the difference between strategies, and how surely.

Strategies of an experiment that share a seed share data, first model, presence and minibatches, so they are lucky and
unlucky together. The difference of a pair is taken seed by seed; what the two had in common is gone from it, and a few
seeds say as much as many independent ones: `Difference.worth` says how many.

Intervals are Student's t on the differences. That assumes that the seeds are independent draws and that the differences
are roughly normal, which cannot be checked with a handful of seeds. Beside it stands the percentile bootstrap, which
assumes no shape but is too narrow for few seeds: of nominal 95 % it covers about 84 % with 5 and 90 % with 10. What is
said here of one pair is said at the level given; over many pairs some will be called clear by chance: see `holm`.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedsim import keyed

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESAMPLES = 10_000


class Difference(NamedTuple):
    """A pair of strategies: first minus second, over the seeds for which both have a finite value."""

    first: str
    second: str
    metric: str
    seeds: tuple[int, ...]
    mean: float  # NaN without a seed
    low: float  # Student t interval; NaN below 2 seeds, as are all but the mean
    high: float
    boot_low: float  # percentile bootstrap interval
    boot_high: float
    correlation: float  # of the two strategies' values over the seeds; NaN below 3 seeds, or where one never varies
    worth: float  # how many independent seeds each would take for as narrow an interval; NaN below 3 seeds
    clear: bool  # the t interval leaves 0 out
    p: float  # of the paired t test, two-sided


class Standing(NamedTuple):
    """A strategy among the others."""

    strategy: str
    seeds: int  # with a finite value
    mean: float  # NaN without one
    low: float  # its own t interval, not of any difference; NaN below 2 seeds
    high: float
    best: int  # its place lies between these: 1 + how many are clearly better,
    worst: int  # and how many are not clearly worse, itself included


def interval(values: NDArray[np.float64], level: float = 0.95) -> tuple[Any, Any, Any]:
    """Mean and Student t interval (mean, low, high), each [...], of m draws [..., m]; NaN bounds for one draw."""
    from scipy import stats

    _check(level)
    m = values.shape[-1]
    mean = values.mean(-1)
    if m < 2:
        return mean, mean * math.nan, mean * math.nan
    half = stats.t.ppf((1 + level) / 2, m - 1) * values.std(-1, ddof=1) / math.sqrt(m)
    return mean, mean - half, mean + half


def bootstrap(values: NDArray[np.float64], level: float = 0.95) -> tuple[Any, Any]:
    """Percentile bootstrap interval (low, high), each [...], of the mean of m draws [..., m]; NaN for one draw.

    The 10,000 resamples depend on m alone, so the same differences have the same interval.
    """
    _check(level)
    if values.shape[-1] < 2:
        return values.mean(-1) * math.nan, values.mean(-1) * math.nan
    means = values @ _resamples(values.shape[-1])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=-1)
    return low, high


@functools.lru_cache(maxsize=32)
def _resamples(m: int) -> NDArray[np.float64]:
    """[m, RESAMPLES]: which share of each resample every draw makes up."""
    counts = np.random.default_rng(keyed.seed(0, "bootstrap", m)).multinomial(m, np.full(m, 1 / m), RESAMPLES)
    return np.ascontiguousarray(counts.T / m)


def difference(
    first: str, second: str, metric: str, a: Mapping[int, float], b: Mapping[int, float], level: float = 0.95
) -> Difference:
    """What the values a and b by seed say of first minus second. A seed that one of them lacks, or has no finite value
    for, is left out; below two common seeds nothing is clear."""
    from scipy import stats

    seeds = tuple(seed for seed in a if seed in b and math.isfinite(a[seed]) and math.isfinite(b[seed]))
    x, y = (np.array([each[seed] for seed in seeds], dtype=np.float64) for each in (a, b))
    m, gap = len(seeds), x - y
    mean = low = high = boot_low = boot_high = math.nan
    if m:
        mean, low, high = map(float, interval(gap, level))
        boot_low, boot_high = map(float, bootstrap(gap, level))
    correlation = worth = p = math.nan
    if m >= 2:
        error = float(gap.std(ddof=1)) / math.sqrt(m)
        p = 2 * float(stats.t.sf(abs(mean) / error, m - 1)) if error > 0 else float(mean == 0)
    if m >= 3:
        together, apart = float(gap.var(ddof=1)), float(x.var(ddof=1) + y.var(ddof=1))
        if x.std() > 0 and y.std() > 0:
            correlation = float(np.corrcoef(x, y)[0, 1])
        if together > 0:
            worth = m * apart / together
        elif apart > 0:
            worth = math.inf
    clear = low > 0 or high < 0
    return Difference(first, second, metric, seeds, mean, low, high, boot_low, boot_high, correlation, worth, clear, p)


def differences(values: Mapping[str, Mapping[int, float]], metric: str, level: float = 0.95) -> list[Difference]:
    """Every pair, in order of the labels."""
    return [
        difference(first, second, metric, values[first], values[second], level)
        for first, second in itertools.combinations(values, 2)
    ]


def standings(
    values: Mapping[str, Mapping[int, float]], metric: str, higher: bool, level: float = 0.95
) -> list[Standing]:
    """Who stands where, the best mean first. Strategies whose paired difference is not clear share places.

    A strategy without a finite value comes after all that have one.
    """
    finite = {label: np.array([v for v in each.values() if math.isfinite(v)]) for label, each in values.items()}
    valued = [label for label in values if len(finite[label])]
    better, worse = (dict.fromkeys(valued, 0) for _ in range(2))  # how many clearly are than each
    for found in differences({label: values[label] for label in valued}, metric, level):
        if found.clear:
            ahead = (found.mean > 0) == higher
            winner, loser = (found.first, found.second) if ahead else (found.second, found.first)
            worse[winner] += 1
            better[loser] += 1
    out = []
    for label in valued:
        mean, low, high = (float(v) for v in interval(finite[label], level))
        out.append(Standing(label, len(finite[label]), mean, low, high, 1 + better[label], len(valued) - worse[label]))
    out.sort(key=lambda one: -one.mean if higher else one.mean)
    nan = math.nan
    rest = [label for label in values if label not in better]
    return out + [Standing(label, 0, nan, nan, nan, len(valued) + 1, len(values)) for label in rest]


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p (Scandinavian Journal of Statistics 6, 1979): with those below 0.05 called clear, the chance
    that any pair without a difference is among them is at most 0.05. NaN stays NaN and does not count."""
    known = sorted((i for i, value in enumerate(p) if not math.isnan(value)), key=lambda i: p[i])
    out, floor = [math.nan] * len(p), 0.0
    for rank, i in enumerate(known):
        floor = max(floor, min(1.0, (len(known) - rank) * p[i]))
        out[i] = floor
    return out


def _check(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, such as 0.95, got {level}")
