"""What tuning leaves: the experiment with its winners' settings, tune.json, and warnings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fedsim.tuning import budget
from fedsim.tuning.trials import Tried, Tuned, told

if TYPE_CHECKING:
    from fedsim.experiment import Experiment
    from fedsim.experiment.tuning import Tuning


def winners(experiment: Experiment, results: Sequence[Tuned]) -> Experiment:
    """The experiment with what each strategy did best with, and without the table [tune]: it runs as it is."""
    tuning = _tuning(experiment)
    entries = []
    for entry, grid, result in zip(experiment.entries, tuning.grids, results, strict=True):
        point = grid.points[0 if result.winner is None else result.winner]
        entries.append(point.entry if grid.axes else entry)
    given = {key: value for key, value in experiment.given.items() if key != "tune"}
    given["strategy"] = [entry.given for entry in entries]
    return replace(experiment, entries=tuple(entries), given=given, tuning=None)


def document(experiment: Experiment, results: Sequence[Tuned]) -> dict[str, Any]:
    """What tune.json holds: the budget, what was tried of each strategy, and the warnings."""
    tuning = _tuning(experiment)
    table = tuning.table
    rungs = budget.rungs(table.trials, tuning.rounds, table.eta)
    settings = [
        result.trials[result.winner].settings if result.winner is not None else dict(grid.points[0].settings)
        for grid, result in zip(tuning.grids, results, strict=True)
    ]
    return {
        "budget": {
            "allowed": budget.allowance(rungs) * len(table.seeds),
            "unit": "rounds of each strategy, over all its trials and seeds",
            "trials": table.trials,
            "rounds": tuning.rounds,
            "eta": table.eta,
            "rungs": [rung._asdict() for rung in rungs],
            "seeds": list(table.seeds),
            "on": table.on,
            "share": table.share,
            "metric": table.metric,
            "judged": f"mean over the last fifth of a trial's rounds, {budget.LOOKS} looks at most",
        },
        "strategies": [
            {
                "label": result.strategy,
                "grid": {key: [_plain(value) for value in values] for key, values in result.grid.items()},
                "points": result.size,
                "trials": [_trial(trial) for trial in result.trials],
                "winner": _settings(best),
                "value": None if result.winner is None else result.trials[result.winner].value,
                "edge": list(result.edge),
                "limit": result.limit,
                "used": result.used,
                "allowed": result.allowed,
                "trainings": result.trainings,
            }
            for best, result in zip(settings, results, strict=True)
        ],
        "warnings": warnings(experiment, results),
    }


def _trial(trial: Tried) -> dict[str, Any]:
    """A trial as JSON has it, whose keys are text."""
    values = {str(rounds): value for rounds, value in trial.values.items()}
    return trial._asdict() | {"settings": _settings(trial.settings), "values": values}


def _settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _plain(value) for key, value in settings.items()}


def _plain(value: Any) -> Any:
    """A value of a grid as JSON has it, which knows no infinity."""
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def warnings(experiment: Experiment, results: Sequence[Tuned]) -> list[str]:
    """What a reader has to know before believing the comparison, one line each."""
    from fedsim.experiment.settings import show
    from fedsim.experiment.tuning import WORK

    tuning, found = _tuning(experiment), []
    for grid, result in zip(tuning.grids, results, strict=True):
        label = result.strategy
        if result.winner is None:
            why = "its grid has a single point" if grid.axes else "no key of the grid is one of its settings"
            found.append(f"{label} is not tuned: {why}")
            continue
        best = result.trials[result.winner].settings
        for key, which in result.edge.items():
            tried = [trial.settings[key] for trial in result.trials]
            where = f"from {show(min(tried))} to {show(max(tried))}"
            beyond = "lower" if which == "lowest" else "higher"
            found.append(
                f"{label}: {key} = {show(best[key])} is the {which} tried ({where}): the best may be {beyond}; "
                "widen the grid"
            )
        failed = [trial for trial in result.trials if trial.failed is not None]
        if failed:
            found.append(
                f"{label}: {len(failed)} of {len(result.trials)} trials diverged, such as {told(failed[0].settings)}"
            )
        work = [key for key in WORK if len(grid.axes.get(key, ())) > 1]
        if work:
            found.append(f"{label}: a round of a trial costs what its {work[0]} says; the budget counts rounds")
    return found


def _tuning(experiment: Experiment) -> Tuning:
    assert experiment.tuning is not None  # as it was when it was tuned
    return experiment.tuning
