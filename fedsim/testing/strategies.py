"""The laws of strategies, carried out on one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from fedsim.strategy import Strategy
from fedsim.testing.devices import stays_on_its_device
from fedsim.testing.laws import SINGLE_TOO, STRATEGY_LAWS, Law
from fedsim.testing.parity import flower_gives_the_same
from fedsim.testing.reductions import Reduction, said, stated
from fedsim.testing.report import Outcome, Report, attempt, check_names, settle
from fedsim.testing.shrinking import smallest
from fedsim.testing.stage import Stage
from fedsim.testing.states import Inapplicable

LAWS: tuple[Law, ...] = (*STRATEGY_LAWS, stays_on_its_device, flower_gives_the_same)
NAMES = tuple(law.__name__ for law in LAWS)


def examine(strategy: Any, reduces_to: Any = (), waived: Mapping[str, str] | None = None) -> Report:
    """What holds of a strategy; see `fedsim.testing.check_strategy`.

    Raises ValueError for what is no strategy of fedsim's, a waiver of no law, and a reduction that is none.
    """
    if not isinstance(strategy, Strategy):
        name = strategy.__name__ if isinstance(strategy, type) else type(strategy).__name__
        hint = f"; give an object, {name}()" if isinstance(strategy, type) and issubclass(strategy, Strategy) else ""
        raise ValueError(f"{name} is no strategy{hint or ': derive it from ServerStrategy, Averaging or Wrapper'}")
    claims = stated(strategy, reduces_to)
    waived = dict(getattr(type(strategy), "waives", {})) | dict(waived or {})
    check_names(waived, (*NAMES, *(one.claim for one in claims)), "strategy")
    double = fitting(strategy)
    single = dataclasses.replace(double, dtype=torch.float32)
    outcomes = [
        _outcome(law.__name__, law, strategy, (double, single) if law in SINGLE_TOO else (double,), waived)
        for law in LAWS
    ]
    outcomes += [_outcome(one.claim, _claim(one), strategy, (double,), waived) for one in claims]
    return Report(said(strategy) if dataclasses.is_dataclass(strategy) else type(strategy).__name__, tuple(outcomes))


def fitting(strategy: Any) -> Stage:
    """The full stage, on a tree where the strategy will not have the usual graph."""
    for stage in (Stage(), Stage(tree=True)):
        if attempt(lambda stage=stage: stage.ready(strategy).init(stage.start(strategy), stage.p)) is None:
            return stage
    return Stage()


def _claim(one: Reduction) -> Law:
    """A reduction as a law: it completes what it changes itself."""

    def law(strategy: Any, stage: Stage) -> None:
        one.check(strategy, stage)

    law.raw = True  # type: ignore[attr-defined]
    return law


def _outcome(name: str, law: Law, strategy: Any, stages: tuple[Stage, ...], waived: Mapping[str, str]) -> Outcome:
    """What comes of a law on the stages, the first failure in its smallest example."""

    def carried_out(stage: Stage) -> None:
        law(strategy if hasattr(law, "raw") else stage.ready(strategy), stage)

    for stage in stages:
        error = attempt(carried_out, stage)
        if error is None:
            continue
        if not isinstance(error, Inapplicable) and name not in waived:
            stage, error = smallest(carried_out, stage, error)
        return settle(name, error, stage, waived)
    return settle(name, None, None, waived)
