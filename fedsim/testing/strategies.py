"""The laws of strategies, carried out on one of them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from fedsim.strategy import Strategy
from fedsim.testing.devices import stays_on_its_device
from fedsim.testing.known import OWN
from fedsim.testing.laws import SINGLE_TOO, STRATEGY_LAWS, Law
from fedsim.testing.parity import flower_gives_the_same
from fedsim.testing.reductions import said, stated
from fedsim.testing.report import Outcome, Report, attempt, check_names, settle, size
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
    own = OWN.get(type(strategy).__name__, {}) if type(strategy).__module__.startswith("fedsim.strategies.") else {}
    given = dict(getattr(type(strategy), "waives", {})) | dict(waived or {})
    check_names(given, (*NAMES, *(one.claim for one in claims)), "strategy")
    double = fitting(strategy)
    single = dataclasses.replace(double, dtype=torch.float32)
    laws = [(law.__name__, law, (double, single) if law in SINGLE_TOO else (double,)) for law in LAWS]
    laws += [(one.claim, one.check, (double,)) for one in claims]
    outcomes: list[Outcome] = []
    for name, law, stages in laws:
        stage, error = _tried(law, strategy, stages, name not in own | given)
        outcomes.append(settle(name, error, size(stage), own | given, name in own and name not in given))
    return Report(said(strategy), tuple(outcomes))


def fitting(strategy: Any) -> Stage:
    """The full stage, on a tree where the strategy will not have the usual graph."""
    for stage in (Stage(), Stage(tree=True)):
        if attempt(lambda stage=stage: stage.ready(strategy).init(stage.start(strategy), stage.p)) is None:
            return stage
    return Stage()


def _tried(law: Law, strategy: Any, stages: tuple[Stage, ...], shrink: bool) -> tuple[Stage, Exception | None]:
    """What a law raises on the first of the stages on which it raises anything, and the smallest stage on which it does
    if that is wanted."""

    def carried_out(stage: Stage) -> None:
        law(stage.ready(copy.deepcopy(strategy)), stage)  # a copy: it may hide something that the next law would meet

    for stage in stages:
        error = attempt(carried_out, stage)
        if error is not None:
            return (
                smallest(carried_out, stage, error)
                if shrink and not isinstance(error, Inapplicable)
                else (stage, error)
            )
    return stages[0], None
