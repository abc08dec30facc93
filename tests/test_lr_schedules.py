"""Learning-rate schedules, held against torch's own."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as theirs

from fedsim import LocalSGD, experiment, lr_schedules, strategies
from fedsim.lr_schedules import (
    Cosine,
    CosineRestarts,
    Exponential,
    Inverse,
    Linear,
    LRSchedule,
    MultiStep,
    OneCycle,
    Polynomial,
    Step,
    WarmUp,
)

ROUNDS = 40


def warmed(optimizer: Any, then: Any) -> Any:
    first = theirs.LinearLR(optimizer, start_factor=0.1, end_factor=1.0, total_iters=7)
    return theirs.SequentialLR(optimizer, [first, then], milestones=[7])


# fedsim's, how torch spells it, up to which round torch goes on
TWINS: dict[str, tuple[LRSchedule, Any, int]] = {
    "step": (Step(every=7, rate=0.3), lambda o: theirs.StepLR(o, 7, 0.3), ROUNDS),
    "multi-step": (MultiStep(at=(0, 5, 11), rate=0.3), lambda o: theirs.MultiStepLR(o, [0, 5, 11], 0.3), ROUNDS),
    "exponential": (Exponential(0.9), lambda o: theirs.ExponentialLR(o, 0.9), ROUNDS),
    "linear": (Linear(9, 0.5, 0.2), lambda o: theirs.LinearLR(o, 0.5, 0.2, 9), ROUNDS),
    "polynomial": (Polynomial(12, 2.0), lambda o: theirs.PolynomialLR(o, 12, 2.0), ROUNDS),
    "cosine": (Cosine(15, 0.1), lambda o: theirs.CosineAnnealingLR(o, 15, 0.1), 16),  # torch's goes up again
    "cosine-restarts": (
        CosineRestarts(4, 2, 0.1), lambda o: theirs.CosineAnnealingWarmRestarts(o, 4, 2, 0.1), ROUNDS,
    ),
    "cosine-restarts alike": (CosineRestarts(6), lambda o: theirs.CosineAnnealingWarmRestarts(o, 6), ROUNDS),
    "one-cycle": (
        OneCycle(25, rise=0.4, start=0.1, end=0.1 / 50),
        lambda o: theirs.OneCycleLR(o, 1.0, 25, pct_start=0.4, div_factor=10, final_div_factor=50), 25,
    ),
    "one-cycle defaults": (OneCycle(30), lambda o: theirs.OneCycleLR(o, 1.0, 30), 30),
    "warm-up": (WarmUp(7, 0.1), lambda o: warmed(o, theirs.ConstantLR(o, 1.0, 1)), ROUNDS),
    "warm-up, then": (
        WarmUp(7, 0.1, Cosine(20)), lambda o: warmed(o, theirs.CosineAnnealingLR(o, 20)), 28,
    ),
    "inverse": (Inverse(0.3), lambda o: theirs.LambdaLR(o, lambda t: 1 / (1 + 0.3 * t)), ROUNDS),
}  # fmt: skip


@pytest.mark.parametrize("name", TWINS)
def test_equals_torch_s(name: str) -> None:
    ours, make, rounds = TWINS[name]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with warnings.catch_warnings():  # torch warns of the way SequentialLR itself steps the schedules it is made of
        warnings.filterwarnings("ignore", message="The epoch parameter in `scheduler.step")
        scheduler = make(optimizer)
        for t in range(rounds):
            assert ours.factor(t) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9), t
            optimizer.step()
            if t + 1 < rounds:
                scheduler.step()


@pytest.mark.parametrize("name", lr_schedules.SCHEDULES)
def test_a_factor_depends_on_the_round_alone(name: str) -> None:
    needed = {"step": {"every": 3}, "multi-step": {"at": (2, 4)}}
    long = {key: {"rounds": 10} for key in ("linear", "polynomial", "cosine", "cosine-restarts", "one-cycle")}
    made = lr_schedules.SCHEDULES[name](**(needed | long).get(name, {}))
    forwards = [made.factor(t) for t in range(60)]
    assert [made.factor(t) for t in reversed(range(60))] == forwards[::-1]
    assert all(0 <= factor <= 1 for factor in forwards)
    hash(made)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: MultiStep(at=()), "at must list rounds"),
        (lambda: MultiStep(at=(3, 3)), "at must list rounds"),
        (lambda: Exponential(0.0), "rate must be positive"),
        (lambda: Linear(5, start=-1.0), "start must not be negative"),
        (lambda: Polynomial(0), "rounds must be positive"),
        (lambda: CosineRestarts(5, longer=0), "longer must be"),
        (lambda: CosineRestarts(5, floor=2.0), "floor must be between 0 and 1"),
        (lambda: OneCycle(1), "rounds must be at least 2"),
        (lambda: OneCycle(5, rise=1.0), "rise must be"),
        (lambda: WarmUp(0), "rounds must be positive"),
        (lambda: WarmUp(5, start=2.0), "start must be between"),
    ],
)
def test_refuses_what_makes_no_sense(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_one_cycle_of_two_rounds_has_no_way_up() -> None:
    assert [OneCycle(2, rise=0.5, end=0.0).factor(t) for t in range(3)] == [1.0, 0.0, 0.0]


def test_an_experiment_file_spells_them() -> None:
    said = {"name": "warm-up", "rounds": 3, "then": {"name": "cosine", "rounds": 9}}
    tables = {
        "local": {"lr": 0.5, "steps": 1, "lr-schedule": said},
        "strategy": [
            {"name": "ServerLR", "schedule": {"name": "multi-step", "at": [2, 4]}, "inner": {"name": "FedAdam"}}
        ],
    }
    found = experiment.parse(tables)
    assert found.local == LocalSGD(lr=0.5, steps=1, lr_schedule=WarmUp(3, then=Cosine(9)))
    assert found.entries[0].strategy == strategies.ServerLR(strategies.FedAdam(), MultiStep((2, 4)))
    again = experiment.parse(found.document())
    assert (again.local, again.entries[0].strategy) == (found.local, found.entries[0].strategy)
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        experiment.parse(tables | {"local": {"lr": 0.5, "steps": 1, "lr-schedule": "cosin"}})
