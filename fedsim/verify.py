"""Whether a run folder says what its experiment does: first against itself, then against the experiment run again.

    book(folder)                 the first number that was changed after it was recorded, in words; "" where all fits
    for found in again(folder):  every evaluation, computed anew and held against what was recorded
        ...

Here, with the same engine, chunk and threads, an evaluation has the same model bit for bit, or something differs. On
another machine, engine or chunk sums are rounded otherwise. One round then differs by about 100 roundings of the
precision (rtol 1e-5 in float32, tests/test_engine.py), and rounds add up: `tolerance` allows 100 eps (1 + t), which
is 1.2e-5 (1 + t) in float32 and 2.2e-14 (1 + t) in float64, of a metric's size. An accuracy, being a share of m
examples or of a few clients, moves by jumps where an example lies on the border: it may differ by `JUMP` beside. What
is counted and not computed, rounds, who was present and bytes, has to be equal everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedsim import hashes, record
from fedsim.record.contents import read_whole_result
from fedsim.record.reading import metric_lines

if TYPE_CHECKING:
    from fedsim.experiment import Experiment

EPS = {"float32": 2.0**-23, "float64": 2.0**-52}
ROUNDINGS = 100
JUMP = 0.02  # of an accuracy, or a Gini coefficient of accuracies: a fiftieth
EXACT = ("present", "bytes_up", "bytes_down")
Where = tuple[str, int, int]  # strategy, seed, round


class Differs(ValueError):
    """What was recorded and what the experiment does are not of one shape."""


class Found(NamedTuple):
    """An evaluation, computed anew."""

    where: Where
    same: bool  # the model is the same, bit for bit, and so are all metrics
    worst: float  # the largest difference of a metric, in tolerances: up to 1 is within
    metric: str  # which it is; "" where all are the same
    was: float
    is_now: float


def tolerance(metric: str, size: float, round: int, dtype: str) -> float:
    """By how much a metric of that size may differ after so many rounds where sums are rounded otherwise."""
    if metric in EXACT:
        return 0.0
    jump = JUMP if "accuracy" in metric else 0.0
    return jump + ROUNDINGS * EPS[dtype] * (1 + round) * size


def difference(was: Mapping[str, float], now: Mapping[str, float], round: int, dtype: str) -> tuple[float, str]:
    """The metric that differs most, in tolerances, and by how many; infinitely where only one has it."""
    worst, name = 0.0, ""
    for metric in dict.fromkeys([*was, *now]):
        a, b = was.get(metric), now.get(metric)
        if a is None or b is None:
            return math.inf, metric
        if a == b or (math.isnan(a) and math.isnan(b)):
            continue
        allowed = tolerance(metric, max(abs(a), abs(b), 1e-3), round, dtype)
        off = abs(a - b) / allowed if allowed and math.isfinite(a - b) else math.inf
        if off > worst:
            worst, name = off, metric
    return worst, name


def book(folder: Path) -> str:
    """What in a folder does not fit the rest of it, in words: lines of metrics.csv that were changed, taken out or put
    in after they were recorded, results that are not those of the metrics, another schedule. "" where all fits."""
    record.check_format(folder)
    lines = metric_lines(folder)
    links = hashes.read(folder)
    result = read_whole_result(folder)
    runs = {(run["strategy"], run["seed"]): run for run in result["runs"]}
    if links:
        cut = [where for where in list(lines)[-1:] if where[:2] not in runs]  # killed between two writes
        known = {(one.strategy, one.seed, one.round) for one in links}
        wrong = hashes.broken(links, {w: text for w, text in lines.items() if w not in cut or w in known})
        if wrong is not None:
            return f"metrics.csv was changed after it was recorded: {say(wrong)}"
    metrics = recorded(folder)
    for (strategy, seed), run in runs.items():
        last = metrics.get((strategy, seed, run["rounds"]), {})
        final, late_mean = run.get("final", {}), run.get("final_mean", {})
        for name in dict.fromkeys([*last, *final]):
            if name not in last or name not in final or not _equal(last[name], final[name]):
                return f"result.json was changed after it was recorded: {strategy}, seed {seed}, {name}"
        late = [found for where, found in metrics.items()
                if where[:2] == (strategy, seed) and where[2] > 0.8 * run["rounds"]]  # fmt: skip
        shared = [name for name in last if all(name in found for found in late)]
        for name in dict.fromkeys([*shared, *late_mean]):
            mean = sum(found.get(name, math.nan) for found in late) / max(1, len(late))
            if name not in late_mean or not _equal(mean, late_mean[name], 1e-12):
                return f"result.json was changed after it was recorded: {strategy}, seed {seed}, mean {name}"
    return ""


def _equal(a: float, b: float | None, within: float = 0.0) -> bool:
    """Whether two numbers are equal, null standing for what JSON has no word for."""
    if b is None or not math.isfinite(a):
        return b is None and not math.isfinite(a)
    return abs(a - b) <= within * max(abs(a), abs(b))


def recorded(folder: Path) -> dict[Where, dict[str, float]]:
    """The metrics of every evaluation in metrics.csv."""
    found: dict[Where, dict[str, float]] = {}
    for m in record.read_metrics(folder):
        found.setdefault((m.strategy, m.seed, m.round), {})[m.metric] = m.value
    return found


def say(where: Where) -> str:
    """Where something is, in words."""
    strategy, seed, round = where
    return f"{strategy}, seed {seed}, round {round}"


def again(experiment: Experiment, folder: Path, until: int | None = None) -> Iterator[Found]:
    """Every evaluation that was recorded, up to round `until`, with the experiment run again. Raises `Differs` where
    a run that was recorded comes to nothing, or an evaluation is not recorded that should be."""
    from fedsim import compare
    from fedsim.participation import Schedule

    was = recorded(folder)
    models = {(one.strategy, one.seed, one.round): one.model for one in hashes.read(folder)}
    ends = {where[:2]: where[2] for where in was}  # the last round recorded of each
    if until is not None:
        ends = {name: min(end, until) for name, end in ends.items()}
    left = {where for where in was if where[2] <= ends[where[:2]]}
    for event in compare.compare(experiment):
        if isinstance(event, compare.Began):
            path = folder / f"schedule-seed{event.seed}.npz"
            if path.exists() and Schedule.load(path).digest() != event.schedule.digest():
                raise Differs(f"{path} is not the schedule that the experiment draws")
        if not isinstance(event, compare.Measured):
            continue
        where = (event.strategy, event.seed, event.round)
        if where not in left:
            if event.round < ends.get(where[:2], -1):
                raise Differs(f"metrics.csv lacks {say(where)}")
            continue
        left.remove(where)
        metrics = {name: float(value) for name, value in event.metrics.items()}
        worst, name = difference(was[where], metrics, event.round, experiment.run.dtype)
        same = not name and models.get(where, event.model) == event.model
        yield Found(where, same, worst, name, was[where].get(name, math.nan), metrics.get(name, math.nan))
        if not left:
            return
    if left:
        raise Differs(f"the experiment does not come to {say(min(left, key=lambda where: where[2]))}")


def summary(found: Iterable[Found]) -> dict[str, Any]:
    """How many evaluations were the same, how many within tolerance; the largest difference there was, and the first
    that is beyond it."""
    out: dict[str, Any] = {"same": 0, "within": 0, "worst": None, "differs": None}
    for one in found:
        if one.same:
            out["same"] += 1
        elif one.worst <= 1 and out["differs"] is None:
            out["within"] += 1
            if out["worst"] is None or one.worst > out["worst"].worst:
                out["worst"] = one
        elif one.worst > 1:
            out["differs"] = one
            break
    return out
