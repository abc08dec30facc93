"""What run folders hold, ready to be compared: the curves of the runs that finished, and what became of the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedsim import merit, record, reread, resolve
from fedsim.merit import Curve
from fedsim.record import Measurement
from fedsim.record.contents import read_whole_result

Run = tuple[str, int]  # strategy, seed

# What a comparison is about, the first that was measured; personal: where clients of some strategy have own models.
PRIMARY = ("personal_accuracy", "personal_loss", "test_accuracy", "test_loss", "train_objective")
# Settings that the runs of a seed have to share to be a pair.
SHARED = ("task", "participation", "run.rounds", "run.eval-every")


class Results(NamedTuple):
    """Runs of one experiment, in one folder or several."""

    labels: list[str]  # strategies in order of appearance
    rounds: dict[Run, int]  # of the runs that finished
    measurements: list[Measurement]  # of these
    lost: dict[Run, str]  # the others, and why
    seconds: dict[Run, Curve]  # how long a run had taken by each evaluation; empty where a folder does not tell


def gather(*sources: str | Path | Results) -> Results:
    """The results of run folders together, given as folders or gathered before.

    Raises ValueError where folders hold the same run twice or do not go together: in one table the runs of a seed are
    pairs, so data, presence and length have to be the same.
    """
    if len(sources) == 1 and isinstance(sources[0], Results):
        return sources[0]
    folders = [Path(source) for source in sources if not isinstance(source, Results)]
    parts = [source if isinstance(source, Results) else _read(Path(source)) for source in sources]
    if not parts:
        raise ValueError("there is no run folder to read; give one or more")
    _check_alike(folders)
    out = Results([], {}, [], {}, {})
    for part in parts:
        for run in (*part.rounds, *part.lost):
            if run in out.rounds or run in out.lost:
                raise ValueError(f"{run[0]}, seed {run[1]} is in two of the run folders; leave one out")
        out.labels.extend(label for label in part.labels if label not in out.labels)
        out.rounds.update(part.rounds)
        out.measurements.extend(part.measurements)
        out.lost.update(part.lost)
        out.seconds.update(part.seconds)
    return out


def _read(folder: Path) -> Results:
    if not (folder / "metrics.csv").is_file():
        raise ValueError(f"{folder} is no run folder: there is no metrics.csv in it")
    measurements = record.read_metrics(folder)
    document = _document(folder)
    result = read_whole_result(folder)
    rounds = {(run["strategy"], run["seed"]): run.get("rounds", 0) for run in result["runs"]}
    lost = {
        (run["strategy"], run["seed"]): f"failed after {run['round']} rounds: {run['reason']}"
        for run in result.get("failed", [])
    }
    entries = [entry["label"] for entry in document.get("strategy", []) if "label" in entry]
    expected = [(label, seed) for seed in document.get("run", {}).get("seeds", []) for label in entries]
    for run in [*dict.fromkeys((m.strategy, m.seed) for m in measurements), *expected]:
        if run not in rounds and run not in lost:
            lost[run] = "not finished"
    labels = list(dict.fromkeys([*(m.strategy for m in measurements), *entries]))
    spent: dict[Run, dict[int, float]] = {}
    for (strategy, seed, round), seconds in record.read_times(folder).items():
        spent.setdefault((strategy, seed), {})[round] = seconds
    clocks = {
        run: Curve(np.array(sorted(points), dtype=np.int64), np.array([points[t] for t in sorted(points)]))
        for run, points in spent.items()
    }
    return Results(labels, rounds, [m for m in measurements if (m.strategy, m.seed) in rounds], lost, clocks)


def _document(folder: Path) -> dict[str, Any]:
    from fedsim.record.shapes import Resolved

    path = folder / "experiment.toml"
    return reread.shaped(path, reread.toml(path), Resolved) if path.is_file() else {}


def _check_alike(folders: Sequence[Path]) -> None:
    documents = [_document(folder) for folder in folders]
    for folder, document in zip(folders[1:], documents[1:], strict=True):
        for key in SHARED:
            one, other = (_at(each, key) for each in (documents[0], document))
            if one != other:
                raise ValueError(
                    f"{folders[0]} and {folder} differ in {_where(key, one, other)}, so their runs are no pairs; "
                    f"report on them one by one"
                )


def _at(document: Mapping[str, Any], key: str) -> Any:
    """What a dotted key leads to; None: nothing. Where data files lie here says nothing of what they hold."""
    value: Any = document
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return {k: v for k, v in value.items() if k != "data-dir"} if isinstance(value, Mapping) else value


def _where(key: str, one: Any, other: Any) -> str:
    """The first setting of a table that differs."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return next(f"[{key}] {name}" for name in {**one, **other} if one.get(name) != other.get(name))
    table, _, name = key.partition(".")
    return f"[{table}] {name}".strip()


# What can be asked of them --------------------------------------------------------------------------------------------


def metrics(results: Results) -> list[str]:
    """What was measured in runs that finished, in order of appearance."""
    return list(dict.fromkeys(m.metric for m in results.measurements))


def chosen(results: Results, metric: str | None = None) -> str:
    """The metric a comparison is about: the one given, else the first of PRIMARY that was measured.

    Raises ValueError for one that was not measured or has no better end.
    """
    known = metrics(results)
    if metric is None:
        metric = next((name for name in PRIMARY if name in known), None)
        if metric is None:
            raise ValueError("no run has finished with a test accuracy, test loss or objective to compare")
    elif metric not in known:
        raise ValueError(f'metric "{metric}" was not measured in any finished run{resolve.nearest(metric, known)}')
    merit.higher_is_better(metric)
    return metric


def late(results: Results, metric: str) -> dict[str, dict[int, float]]:
    """The mean over the last fifth of the rounds, by strategy and seed; runs in which that is not finite are left out,
    and `blown` names them. A strategy without such a run has an empty table."""
    return _each(results, metric, lambda curve, rounds: merit.late_mean(curve, rounds))


def areas(results: Results, metric: str) -> dict[str, dict[int, float]]:
    """`merit.area` by strategy and seed, the same way."""
    return _each(results, metric, lambda curve, _: merit.area(curve))


def drops(results: Results, metric: str) -> dict[str, dict[int, float]]:
    """`merit.drop` by strategy and seed, the same way."""
    higher = merit.higher_is_better(metric)
    return _each(results, metric, lambda curve, _: merit.drop(curve, higher))


def _each(results: Results, metric: str, figure: Any) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {label: {} for label in results.labels}
    for (label, seed), curve in merit.curves(results.measurements, metric).items():
        value = figure(curve, results.rounds[label, seed])
        if math.isfinite(value):
            found[label][seed] = value
    return found


def blown(results: Results, metric: str) -> list[Run]:
    """The finished runs that have no finite value of a metric over their last fifth."""
    values = late(results, metric)
    return [run for run in results.rounds if run[1] not in values[run[0]]]


def spent(results: Results) -> dict[str, dict[Run, Curve]]:
    """What runs cost, by currency: "bytes" (up and down) and "seconds", against the round; a currency that is not known
    at every evaluation of every finished run is left out."""
    evaluated: dict[Run, set[int]] = {run: set() for run in results.rounds}
    for m in results.measurements:
        if m.round:
            evaluated[m.strategy, m.seed].add(m.round)
    up, down = (merit.curves(results.measurements, name) for name in ("bytes_up", "bytes_down"))
    both = {run: Curve(up[run].rounds, up[run].values + down[run].values) for run in up if run in down}
    return {
        name: each
        for name, each in {"bytes": both, "seconds": results.seconds}.items()
        if evaluated and all(run in each and rounds <= set(each[run].rounds) for run, rounds in evaluated.items())
    }


def default_target(results: Results, metric: str, share: float = 0.9) -> float | None:
    """A level that is worth asking the way to: nine tenths (`share`) of the way from where the mean curves of the
    strategies start to the best of their evaluations, rounded to three digits towards the start. None: none leaves it.

    A strategy that learns little does not make it trivial, and those that come close to the best all reach it.
    """
    sign = 1.0 if merit.higher_is_better(metric) else -1.0
    by_label: dict[str, list[Curve]] = {}
    for (label, _), curve in merit.curves(results.measurements, metric).items():
        if np.isfinite(curve.values).all():
            by_label.setdefault(label, []).append(curve)
    means = [sign * merit.middle(each).values for each in by_label.values()]
    means = [values for values in means if len(values)]
    if not means:
        return None
    start, best = float(np.mean([values[0] for values in means])), max(float(values.max()) for values in means)
    level = start + share * (best - start)
    if level <= start:
        return None
    step = 10.0 ** (math.floor(math.log10(abs(level))) - 2) if level else 1.0
    return float(f"{sign * math.floor(level / step + 1e-9) * step:.3g}")
