"""The figures of a run folder, drawn from its files alone, so that they can be drawn again at any time.

curves         test accuracy and test loss against the round
final          each strategy's mean over the last fifth of the rounds, every seed a point
participation  who was present when, and how often
gossip         how far the nodes are apart (where there are nodes)
clients        how well clients are served, by participation and by data size (where they are measured)
harm           how many are worse off than training alone (where a strategy is that)
weights        with what weight clients' updates entered the model, by participation
bias           how much of the weight lies with the wrong clients, and how far it is to the minimum, against the round
error          what keeps the last models from the minimum (where that was asked for)
tuning         what was tried before, and how it did (where settings were tuned)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim import reread
from fedsim.record import Measurement, read_metrics, read_result, read_tuning
from fedsim.report.clients import clients, harm
from fedsim.report.ledger import error, weights
from fedsim.report.participation import participation
from fedsim.report.style import RC, Pen, dots, figure, label_ends, logarithmic, pens, save
from fedsim.report.tuning import tuning

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {
    "test_accuracy": "Test accuracy",
    "test_loss": "Test loss",
    "consensus_distance": "Distance to the mean model",
    "mean_model_test_accuracy": "Test accuracy of the mean model",
    "weight_distance": "Share of the weight that lies with the wrong clients",
    "suboptimality": "Objective above its minimum",
}
LOGARITHMIC = ("test_loss", "suboptimality")


def write_figures(folder: str | Path) -> list[str]:
    """Draw all figures of a run folder into it and return their names; those without data are left out."""
    import matplotlib

    from fedsim.participation import Schedule

    folder = Path(folder)
    measurements, runs = read_metrics(folder), read_result(folder)
    labels = list(dict.fromkeys(m.strategy for m in measurements))
    schedules = sorted(folder.glob("schedule-seed*.npz"))
    with matplotlib.rc_context(RC):
        drawn = {
            "curves": curves(measurements, ("test_accuracy", "test_loss"), pens(labels)),
            "final": final(runs, pens(labels)),
            "gossip": curves(measurements, ("consensus_distance", "mean_model_test_accuracy"), pens(labels)),
            "clients": clients(runs, pens(labels)),
            "harm": harm(runs, pens(labels)),
            "weights": weights(runs, pens(labels)),
            "bias": curves(measurements, ("weight_distance", "suboptimality"), pens(labels)),
            "error": error(runs),
            "tuning": tried(folder),
            "participation": participation(Schedule.load(schedules[0]), schedules[0].stem.removeprefix("schedule-seed"))
            if schedules
            else None,
        }
        for name, one in drawn.items():
            if one is not None:
                save(one, folder, name)
    return [name for name, one in drawn.items() if one is not None]


def tried(folder: Path) -> Figure | None:
    """What tuning has tried. Raises ValueError where tune.json does not fit itself."""
    found = read_tuning(folder)
    try:
        return None if found is None else tuning(found)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise reread.spoilt(folder / "tune.json", f"budget, grid and trials do not go together ({error})") from error


def curves(measurements: Sequence[Measurement], metrics: Sequence[str], styles: Mapping[str, Pen]) -> Figure | None:
    """Metrics against the round: a line for the mean over the seeds, a band from the lowest to the highest seed."""
    metrics = [metric for metric in metrics if any(m.metric == metric for m in measurements)]
    if not metrics:
        return None
    drawn = figure(5.3 * len(metrics), 3.6)
    for axes, metric in zip(drawn.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        axes.set_title(TITLES[metric])
        _curve(axes, [m for m in measurements if m.metric == metric], styles)
        axes.set_xlabel("Round")
    seeds = len({m.seed for m in measurements})
    if seeds > 1:
        drawn.supxlabel(f"line: mean of {seeds} seeds; band: lowest to highest seed", fontsize=8, color="#666666")
    return drawn


def _curve(axes: Axes, measurements: Sequence[Measurement], styles: Mapping[str, Pen]) -> None:
    import numpy as np

    ends: dict[str, tuple[float, float]] = {}
    tops: list[float] = []
    bottoms: list[float] = []
    starts: list[float] = []
    for label in dict.fromkeys(m.strategy for m in measurements):
        by_round: dict[int, list[float]] = {}
        for m in measurements:
            if m.strategy == label and np.isfinite(m.value):
                by_round.setdefault(m.round, []).append(m.value)
        if not by_round:
            continue
        rounds = sorted(by_round)
        mean = np.array([np.mean(by_round[t]) for t in rounds])
        low, high = (np.array([f(by_round[t]) for t in rounds]) for f in (min, max))
        pen = styles[label]
        axes.fill_between(rounds, low, high, color=pen.colour, alpha=0.13, linewidth=0)
        axes.plot(rounds, mean, color=pen.colour, linestyle=pen.dash)
        ends[label] = (rounds[-1], float(mean[-1]))
        tops.append(float(high.max()))
        bottoms.append(float(low.min()))
        starts.append(float(mean[0]))
    if not ends:
        return
    first, last = min(m.round for m in measurements), max(max(m.round for m in measurements), 1)
    axes.set_xlim(first if first < last else 0, last)
    if measurements[0].metric in LOGARITHMIC:
        logarithmic(axes, bottoms + starts, "y")
    bottom, top = axes.get_ylim()
    if measurements[0].metric == "test_loss" and max(tops) > 4 * max(starts) > 0:
        top = 2 * max(starts)  # one strategy blowing up must not flatten the others
    if measurements[0].metric.endswith("accuracy"):
        top = min(top, 1.005)
    least = 0.0 if measurements[0].metric == "weight_distance" else max(bottom, 0.0)
    axes.set_ylim(bottom if axes.get_yscale() == "log" else least, top)
    label_ends(axes, ends, styles)


def final(runs: Sequence[Mapping[str, Any]], styles: Mapping[str, Pen]) -> Figure | None:
    """Mean over the last fifth of the rounds: a small point for every seed, a large one and a bar for mean and std."""
    import numpy as np

    metrics = [
        metric for metric in ("test_accuracy", "test_loss") if any(_last(run, metric) is not None for run in runs)
    ]
    if not metrics:
        return None
    labels = list(dict.fromkeys(run["strategy"] for run in runs))
    drawn = figure(5.0 * len(metrics) + 0.8, 0.33 * len(labels) + 1.35)
    best_last = metrics[0] == "test_accuracy"  # sorted by the first metric, the best at the top
    values = {
        (label, m): [_last(run, m) for run in runs if run["strategy"] == label] for label in labels for m in metrics
    }
    finite = {at: [value for value in found if value is not None] for at, found in values.items()}
    worst = float("-inf") if best_last else float("inf")
    order = sorted(labels, key=lambda label: np.mean(finite[label, metrics[0]] or [worst]), reverse=not best_last)
    every = drawn.subplots(1, len(metrics), squeeze=False, sharey=True)[0]
    for axes, metric in zip(every, metrics, strict=True):
        dots(axes, order, {label: finite[label, metric] for label in labels}, styles, "{:.3f}")
        axes.set_title(TITLES[metric])
        if metric == "test_loss":
            logarithmic(axes, [value for label in labels for value in finite[label, metric]] or [1.0], "x")
    seeds = len({run["seed"] for run in runs})
    how = "mean over the last fifth of the rounds"
    how += f"; large: mean of {seeds} seeds, bar: ± std, small: each seed" if seeds > 1 else ""
    drawn.supxlabel(how, fontsize=8, color="#666666")
    return drawn


def _last(run: Mapping[str, Any], metric: str) -> float | None:
    value: float | None = run["final_mean"].get(metric)
    return value
