"""The tables of a comparison: who stands where, what every pair's difference is, what a target costs.

    print(as_markdown(rank_table("runs/demo")))

Each takes one run folder or several of the same experiment (`fedsim.report.folders` says what goes together)
and gives a `Table` of plain data; `as_csv`, `as_markdown` and `as_latex` write it. Only runs that finished count. The
others and the values that are not finite are said in the notes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedsim import merit, paired, resolve
from fedsim.paired import Difference
from fedsim.report import results as of
from fedsim.report.results import Results, gather
from fedsim.report.table import Column, Table, as_csv, as_latex, as_markdown, decimals, emphasised, text

__all__ = [
    "Column", "Table", "as_csv", "as_latex", "as_markdown", "emphasised", "paired_table", "rank_table", "targets_table",
    "text",
]  # fmt: skip

TITLES = {
    "test_accuracy": "test accuracy",
    "test_loss": "test loss",
    "personal_accuracy": "own accuracy",
    "personal_loss": "own loss",
    "train_objective": "objective",
    "worst_class_accuracy": "worst class",
    "worst_decile_accuracy": "worst decile",
    "least_decile_accuracy": "least decile",
    "worst_decile_loss": "worst decile's loss",
}
# Beside what the comparison is about: whom a strategy fails. Losses only where there are no classes.
SECONDARY = ("worst_class_accuracy", "worst_decile_accuracy", "least_decile_accuracy")
WITHOUT_CLASSES = ("worst_decile_loss",)
SHORT = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
SHARES = (0.5, 0.8, 0.9, 0.95)  # of the way from the start to the best
By = Mapping[str, Mapping[int, float]]  # values by strategy and seed


def rank_table(
    *sources: str | Path | Results, metric: str | None = None, target: float | None = None, level: float = 0.95
) -> Table:
    """Who stands where, by the mean of `metric` (left out: the first of `results.PRIMARY`) over the last fifth of the
    rounds, and what else there is to ask of a strategy.

    Strategies share places where their paired difference is not clear. `target` is a level of the metric; left out it
    is `results.default_target`. The row is to be emphasised ("leads") where nobody is clearly better and somebody is
    clearly worse: never for a mean that is merely ahead. Raises ValueError for folders that do not go together, and for
    a metric that was not measured.
    """
    results = gather(*sources)
    metric = of.chosen(results, metric)
    higher = merit.higher_is_better(metric)
    values = of.late(results, metric)
    standings = paired.standings(values, metric, higher, level)
    valued = sum(1 for one in standings if one.seeds)
    rows: list[dict[str, Any]] = []
    for one in standings:
        row: dict[str, Any] = {"strategy": one.strategy, "place": _place(one.best, one.worst) if one.seeds else "-"}
        row |= {"best": one.best, "worst": one.worst, "seeds": one.seeds}
        row["leads"] = one.best == 1 and one.worst < valued
        rows.append(row)
    columns = [Column("strategy", "strategy", strong=True), Column("place", "place")]
    notes = [*_late_notes(results, metric, level), *_few(values), *_place_notes(values, metric, level)]
    columns.append(_add(rows, metric, values, metric, level)._replace(strong=True))
    default = target is None
    target = of.default_target(results, metric) if target is None else target
    if target is not None:
        columns += _targets(rows, results, metric, target)
        notes.append(_target_note(metric, target, default))
    holes: list[str] = []
    for title, figures in (("area", of.areas(results, metric)), ("drop", of.drops(results, metric))):
        columns.append(_add(rows, title, figures, metric, level, points=title == "drop"))
        holes += _holes(results, title, figures, values)
    notes += ["Area: mean height of the curve over all rounds.", "Drop: from the best evaluation to the late mean."]
    known = of.metrics(results)
    others = [name for name in (*SECONDARY, *([] if "test_accuracy" in known else WITHOUT_CLASSES)) if name in known]
    for name in others:
        if name != metric:
            figures = of.late(results, name)
            columns.append(_add(rows, name, figures, name, level))
            holes += _holes(results, title_of(name), figures, values)
    notes += [*holes, *_losses(results, metric)]
    return Table(f"Who stands where: {title_of(metric)}, late mean", columns, rows, notes)


def paired_table(
    *sources: str | Path | Results, metric: str | None = None, against: str | None = None, every: bool = False,
    level: float = 0.95,
) -> Table:  # fmt: skip
    """Differences of the late means, paired by seed: of each strategy to the one `against` (left out: the best mean),
    or of every pair. Raises ValueError as `rank_table`, and for a strategy that is not there.

    Intervals and "clear" are not adjusted for the number of pairs. CSV also has p of the paired t test and Holm's
    adjusted p: over the pairs with `against` where that is given, else over all pairs of the comparison, of which the
    best is one choice.
    """
    results = gather(*sources)
    metric = of.chosen(results, metric)
    values = of.late(results, metric)
    everyone = paired.differences(values, metric, level)
    if against is not None and every:
        raise ValueError("give a strategy to compare with or ask for every pair, not both")
    if against is not None and against not in values:
        raise ValueError(f'there is no strategy "{against}" to compare with{resolve.nearest(against, values)}')
    named = against is not None
    if not every and against is None:
        against = paired.standings(values, metric, merit.higher_is_better(metric), level)[0].strategy
    if every:
        found = family = everyone
    else:
        assert against is not None
        order = [one.strategy for one in paired.standings(values, metric, merit.higher_is_better(metric), level)]
        found = [
            paired.difference(label, against, metric, values[label], values[against], level)
            for label in order
            if label != against
        ]
        family = found if named else everyone
    adjusted = {
        frozenset((d.first, d.second)): p for d, p in zip(family, paired.holm([d.p for d in family]), strict=True)
    }
    higher = merit.higher_is_better(metric)
    rows = [_pair(d, higher, adjusted[frozenset((d.first, d.second))]) for d in found]
    scale, unit = (100.0, "points") if _percent(metric) else (1.0, "")
    form = f"+.{_digits(rows, 'low', 'high', scale, 1 if scale > 1 else 3)}f"
    percent = f"{100 * level:g} %"
    columns = [
        Column("pair", "pair"),
        Column("mean", f"difference [{percent}]", unit, form, scale, ("low", "high"), brackets=True),
        Column("boot_low", "bootstrap", unit, form, scale, ("boot_low", "boot_high"), brackets=True),
        Column("seeds", "seeds", form=".0f"),
        Column("correlation", "correlation", form=".2f"),
        Column("worth", "worth", "seeds", ",.0f"),
        Column("better", "clearly better"),
    ]
    if not every:
        columns[0] = Column("first", f"strategy − {against}")
    notes = [
        f"Mean over the seeds of the difference of the late means, with its {percent} interval (Student t on the "
        f"paired differences) and the percentile bootstrap's, which is too narrow for few seeds.",
        "Worth: as many independent seeds of each strategy would give as narrow an interval. Correlation: of the two "
        "strategies' values over the seeds.",
        *(_few(values) or [_adjusting(_compared(found), _compared(family), level)]),
        *_losses(results, metric),
    ]  # fmt: skip
    return Table(f"Paired comparison: {title_of(metric)}, late mean", columns, rows, notes)


def targets_table(
    *sources: str | Path | Results, metric: str | None = None, targets: Sequence[float] | None = None
) -> Table:
    """Rounds, bytes and seconds to levels of the metric: to those given, else to SHARES of the way as
    `results.default_target` has it. A row for each level and strategy. Raises ValueError as `rank_table`."""
    results = gather(*sources)
    metric = of.chosen(results, metric)
    if targets is None:
        levels = [of.default_target(results, metric, share) for share in SHARES]
        targets = list(dict.fromkeys(level for level in levels if level is not None))
    rows: list[dict[str, Any]] = []
    columns: list[Column] = []
    for target in targets:
        part: list[dict[str, Any]] = [{"target": target, "strategy": label} for label in results.labels]
        columns = _targets(part, results, metric, target)
        rows += part
    scale = 100.0 if _percent(metric) else 1.0
    plain = [column._replace(title=column.title.partition(" to ")[0]) for column in columns]
    head = [Column("target", title_of(metric), "%" if scale > 1 else "", ".4g", scale), Column("strategy", "strategy")]
    notes = [
        "The first evaluation at or past the level, median over the seeds; never is later than all.",
        *_losses(results, metric),
    ]
    if not rows:
        notes = ["No mean curve gets anywhere from its start, so there is no level to reach.", *notes[1:]]
    return Table(f"What it takes to reach a level of {title_of(metric)}", [*head, *plain], rows, notes)


# Columns --------------------------------------------------------------------------------------------------------------


def title_of(metric: str) -> str:
    """A metric in words."""
    return TITLES.get(metric, metric.replace("_", " "))


def _percent(metric: str) -> bool:
    return "accuracy" in metric and merit.higher_is_better(metric)


def _add(
    rows: Sequence[dict[str, Any]], key: str, values: By, metric: str, level: float, points: bool = False
) -> Column:
    """Puts mean and t interval of values of a metric (or of differences in it: points) into the rows."""
    ends = (f"{key}_low", f"{key}_high")
    for row in rows:
        each = np.array(list(values[row["strategy"]].values()))
        row[key], row[ends[0]], row[ends[1]] = (
            map(float, paired.interval(each, level)) if len(each) else (math.nan,) * 3
        )  # fmt: skip
    scale = 100.0 if _percent(metric) else 1.0
    unit = ("points" if points else "%") if scale > 1 else ""
    digits = _digits(rows, *ends, scale, 1 if scale > 1 else 3)
    return Column(key, title_of(key), unit, f".{digits}f", scale, ends)


def _digits(rows: Sequence[Mapping[str, Any]], low: str, high: str, scale: float, default: int) -> int:
    digits = decimals([scale * (row[high] - row[low]) / 2 for row in rows], default)
    return max(digits, 1) if scale > 1 else digits


def _targets(rows: Sequence[dict[str, Any]], results: Results, metric: str, target: float) -> list[Column]:
    """Puts into the rows what it took to reach a target, and in how many seeds."""
    if not math.isfinite(target):
        raise ValueError(f"a target is a level of {title_of(metric)}, such as 0.8, got {target}")
    higher = merit.higher_is_better(metric)
    curves = merit.curves(results.measurements, metric)
    spent = of.spent(results)
    shown = _level(metric, target)

    for row in rows:
        mine = [(run, curve) for run, curve in curves.items() if run[0] == row["strategy"]]
        rounds = [merit.first_reached(curve, target, higher) for _, curve in mine]
        row["target"], row["rounds_to"] = target, _median(rounds)
        for currency, each in spent.items():
            row[f"{currency}_to"] = _median([merit.along(curve, each[run], target, higher) for run, curve in mine])
        row["reached"], row["runs"] = sum(value is not None for value in rounds), len(rounds)
        row["reached_of"] = f"{row['reached']} of {row['runs']}"
    columns = [Column("rounds_to", f"rounds to {shown}", "", ".0f")]
    if "bytes" in spent:
        most = max((row["bytes_to"] or 0.0 for row in rows), default=0.0)
        size, unit = next(((size, unit) for size, unit in SHORT if most >= size), SHORT[-1])
        digits = 0 if most / size >= 100 or size == 1 else 1
        columns.append(Column("bytes_to", f"traffic to {shown}", unit, f".{digits}f", 1 / size))
    if "seconds" in spent:
        most = max((row["seconds_to"] or 0.0 for row in rows), default=0.0)
        columns.append(Column("seconds_to", f"time to {shown}", "s", ".0f" if most >= 100 else ".1f"))
    if any(row["reached"] < row["runs"] for row in rows):
        columns.append(Column("reached_of", "got there"))
    return columns


def _median(costs: Sequence[float | None]) -> float | None:
    """The median, with never (None) later than all."""
    found = statistics.median([math.inf if cost is None else cost for cost in costs]) if costs else math.inf
    return found if math.isfinite(found) else None


def _pair(found: Difference, higher: bool, adjusted: float) -> dict[str, Any]:
    winner = found.first if (found.mean > 0) == higher else found.second
    row = found._asdict() | {"pair": f"{found.first} − {found.second}", "seeds": len(found.seeds), "p_holm": adjusted}
    return row | {"better": winner if found.clear else "-"}


def _place(best: int, worst: int) -> str:
    return str(best) if best == worst else f"{best}–{worst}"


def _level(metric: str, target: float) -> str:
    return f"{100 * target:.4g} %" if _percent(metric) else f"{target:.4g}"


# Notes ----------------------------------------------------------------------------------------------------------------


def _late_notes(results: Results, metric: str, level: float) -> list[str]:
    lengths = sorted(set(results.rounds.values()))
    rounds = f"{lengths[0]} rounds" if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]} rounds"
    seeds = len({seed for _, seed in results.rounds})
    spread = f", ± half of the {100 * level:g} % t interval over {seeds} seeds" if seeds > 1 else ", one seed"
    return [f"Late mean: over the last fifth of {rounds}{spread}."]


def _place_notes(values: By, metric: str, level: float) -> list[str]:
    pairs = paired.differences(values, metric, level)
    if not _compared(pairs):
        return []
    return [
        f"Strategies share places where the {100 * level:g} % interval of their paired difference holds 0: "
        f"{_pairs(_compared(pairs))}, not adjusted. Emphasised: nobody is clearly better, somebody is clearly worse."
    ]


def _compared(pairs: Sequence[Difference]) -> int:
    """Of how many pairs anything can be said: those with two common seeds."""
    return sum(len(pair.seeds) > 1 for pair in pairs)


def _few(values: By) -> list[str]:
    if len(values) < 2:
        return ["With one strategy there is nothing to compare."]
    if max(len(each) for each in values.values()) < 2:
        return ["With one seed nothing can be said of differences: give more in [run] seeds."]
    return []


def _pairs(count: int) -> str:
    return "1 pair" if count == 1 else f"{count} pairs"


def _adjusting(shown: int, family: int, level: float) -> str:
    """How many comparisons were made, and what chance alone makes of them."""
    return (
        f"{_pairs(shown)}, not adjusted: of pairs without a difference {100 * (1 - level):.3g} % are called clear by "
        f"chance. Holm's adjusted p, in the CSV, is over {_pairs(family)}."
    )


def _target_note(metric: str, target: float, default: bool) -> str:
    way = ", nine tenths of the way from the start to the best mean curve's best" if default else ""
    where = f"To {_level(metric, target)}{way}"
    return f"{where}: at the first evaluation there, median over the seeds (never is later than all)."


def _holes(results: Results, title: str, figures: By, values: By) -> list[str]:
    """Which strategies have a figure for fewer seeds than the late mean."""
    short = [
        f"{label} in {len(figures[label])} of {len(values[label])} seeds"
        for label in results.labels
        if len(figures[label]) < len(values[label])
    ]
    return [f"{title.capitalize()} is known for {', '.join(short)}."] if short else []


def _losses(results: Results, metric: str) -> list[str]:
    """Runs that are not in the table, one sentence each."""
    blown = [
        f"{label}, seed {seed}: not counted, its late {title_of(metric)} is not finite or was not measured."
        for label, seed in of.blown(results, metric)
    ]
    return blown + [
        f"{label}, seed {seed}: not counted, {why.rstrip('.')}." for (label, seed), why in results.lost.items()
    ]
