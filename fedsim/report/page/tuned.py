"""The page's section about tuning: what every strategy was allowed, what it tried, and what came out.

It renders what tune.json holds: trials are tables of settings and values, whatever those are called.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedsim.report.folders import flat
from fedsim.report.page.blocks import Block, Fold, Grid, Name, Section, Words
from fedsim.report.page.gather import Story
from fedsim.report.page.measures import pen, several

KNOWN = {"value": "Validation", "rounds": "Rounds", "failed": "Failed", "out_at": "Out after"}


def tuning(story: Story) -> Section | None:
    """Budget, warnings, winners, and every trial folded away."""
    blocks: list[Block] = []
    for folder in story.folders:
        if not folder.tune:
            continue
        blocks.append(Words(_budget(folder.tune.get("budget"))))
        blocks += [Words(f"Warning: {_said(warning)}") for warning in folder.tune.get("warnings", ())]
        every = [one for one in folder.tune.get("strategies", ()) if isinstance(one, Mapping)]
        if every:
            blocks.append(_winners(story, every))
        blocks += [_trials(one) for one in every if one.get("trials")]
    return Section("tuning", "Tuning", blocks) if blocks else None


def _budget(budget: Any) -> str:
    text = "Every strategy was tuned with the same budget before it was compared"
    if not isinstance(budget, Mapping):
        return text + (f": {_said(budget)}." if budget else ".")
    if {"allowed", "unit", "trials", "metric", "on"} <= budget.keys():
        text += f": {budget['allowed']:,} {budget['unit']}, at most {several(int(budget['trials']), 'trial')} each"
        if "eta" in budget:
            text += f", the best one in {budget['eta']} going on after each stage"
        text += f", judged by {budget['metric']} on {budget['on']} examples" if budget["on"] == "held-out" else (
            f", judged by {budget['metric']} on {budget['on']}"
        )  # fmt: skip
        seeds = budget.get("seeds")
        return text + (f". Seeds of the trials: {_said(seeds)}." if seeds else ".")
    return f"{text}: {_said(budget)}."


def _winners(story: Story, every: Sequence[Mapping[str, Any]]) -> Grid:
    rows: list[list[str | Name]] = []
    for one in every:
        label = str(one.get("label", "a strategy"))
        rows.append(
            [
                Name(label, pen(story, label)) if label in story.entries else label,
                _said(one["winner"]) if one.get("winner") else "as given",
                _said(one["value"]) if one.get("value") is not None else "–",
                f"{len(one.get('trials') or ()):,}",
                _said(one["edge"]) if one.get("edge") else "–",
            ]
        )
    columns = ["Strategy", "Best settings", "Validation", "Trials", "At the edge of the grid"]
    return Grid("What did best, and is compared above", columns, rows, (1, 4))


def _trials(one: Mapping[str, Any]) -> Fold:
    """Every trial of a strategy, the best first."""
    trials = [flat(trial) for trial in one["trials"] if isinstance(trial, Mapping)]
    falls = _falls(one, trials)
    ordered = sorted(trials, key=lambda trial: _worth(trial, falls))
    columns = [key for key in dict.fromkeys(key for trial in trials for key in trial)
               if any(trial.get(key) is not None for trial in trials)]  # fmt: skip
    heads = [KNOWN.get(key, key.removeprefix("settings.").replace("values.", "after rounds: ")) for key in columns]
    rows = [["–" if trial.get(key) is None else _said(trial[key]) for key in columns] for trial in ordered]
    label = str(one.get("label", "a strategy"))
    return Fold(f"{label}: {several(len(rows), 'trial')}", [Grid(f"What was tried for {label}", heads, rows)])


def _falls(one: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a lower value is better: whether the winner's is the lowest."""
    values = [float(trial["value"]) for trial in trials if isinstance(trial.get("value"), (int, float))]
    best = one.get("value")
    return not values or best is None or abs(float(best) - min(values)) <= abs(float(best) - max(values))


def _worth(trial: Mapping[str, Any], falls: bool) -> tuple[float, float]:
    """Those that came further first, then by value; those without one last."""
    found, rounds = trial.get("value"), trial.get("rounds")
    far = -float(rounds) if isinstance(rounds, (int, float)) else 0.0
    if not isinstance(found, (int, float)) or not math.isfinite(found):
        return (math.inf, 0.0)
    return (far, float(found) if falls else -float(found))


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_said(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_said(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
