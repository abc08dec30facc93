"""What holds for every process that draws who is there when, tried on the smallest schedules first."""

from __future__ import annotations

import copy
import random
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedsim.participation import Participation, Schedule
from fedsim.testing.report import Outcome, Report, attempt, check_names, settle
from fedsim.testing.states import Broken, Inapplicable

SIZES = (1, 2, 3, 6, 20, 100)  # clients; those that `check` refuses are passed over
ROUNDS = (0, 1, 2, 5, 20)
SEEDS, LONG = 12, 2000  # for the rates


class Draw(NamedTuple):
    """How many clients and rounds, and the seed."""

    n: int
    rounds: int
    seed: int = 1


def drawn(process: Participation, draw: Draw) -> Schedule:
    """The schedule, of clients who hold something: ten examples each, in two classes."""
    histogram = np.array([[i % 11, 10 - i % 11] for i in range(draw.n)])
    found = process.draw(draw.n, draw.rounds, draw.seed, histogram=histogram, sizes=histogram.sum(1))
    if not isinstance(found, Schedule):
        raise Broken(f"draw gives a {type(found).__name__} where a Schedule is wanted")
    return found


def is_a_frozen_dataclass(process: Any, draw: Draw) -> None:
    """Its settings are all there is to it."""
    params = getattr(type(process), "__dataclass_params__", None)
    if params is None or not params.frozen:
        raise Broken(f"{type(process).__name__} is not a frozen dataclass: write @dataclass(frozen=True) above it")


def it_draws_what_it_is_asked(process: Participation, draw: Draw) -> None:
    """A schedule of n clients and so many rounds, every round of it within them, ascending, with effort in 0 to 1."""
    found = drawn(process, draw)
    if (found.n, len(found)) != (draw.n, draw.rounds):
        raise Broken(f"it draws {found.n} clients and {len(found)} rounds")
    for t in range(len(found)):
        row = found[t]
        stray = set(row.chosen.tolist()) - set(row.available.tolist())
        if stray:
            raise Broken(f"client {min(stray)} is chosen and not available", t)


def a_seed_decides(process: Participation, draw: Draw) -> None:
    """The same seed gives the same schedule: in a copy, after other draws, whatever the global generators say; and
    these are left alone."""
    first = drawn(process, draw).digest()
    numpy, python = np.random.get_state(), random.getstate()

    def states() -> tuple[str, object]:
        return str(np.random.get_state(legacy=False)), random.getstate()

    try:
        np.random.seed(12345)
        random.seed(12345)
        before = states()
        drawn(process, draw._replace(seed=draw.seed + 1))
        again = drawn(copy.deepcopy(process), draw)
        moved = before != states()
    finally:
        np.random.set_state(numpy)
        random.setstate(python)
    if again.digest() != first:
        raise Broken(f"seed {draw.seed} gives another schedule when it is drawn again")
    if moved:
        raise Broken("it draws from a global generator, which everybody shares; make one from the seed")


def a_longer_schedule_begins_with_the_shorter(process: Participation, draw: Draw) -> None:
    """So that a run may be made longer: the rounds there are already stay as they are."""
    short, long = drawn(process, draw), drawn(process, draw._replace(rounds=2 * draw.rounds + 1))
    for t in range(draw.rounds):
        a, b = (each[t].chosen.tolist() for each in (short, long))
        if a != b:
            raise Broken(f"{a} are chosen, and {b} where {2 * draw.rounds + 1} rounds are drawn", t)


def it_is_saved_and_loaded(process: Participation, draw: Draw) -> None:
    """Written to a file and read back it is the same schedule."""
    found = drawn(process, draw)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "schedule.npz"
        found.save(path)
        if Schedule.load(path).digest() != found.digest():
            raise Broken("loaded from its file it is another schedule")


def its_probabilities_are_its_rates(process: Participation, draw: Draw) -> None:
    """Where it says how likely each client is to take part, that is how often they do, over 12 seeds of 2000 rounds."""
    if draw.rounds != ROUNDS[-1]:
        return
    runs = [drawn(process, Draw(draw.n, LONG, 1000 + seed)) for seed in range(SEEDS)]
    told = [run.probabilities for run in runs if run.probabilities is not None]
    if len(told) < len(runs):
        raise Inapplicable("it does not say how likely clients are")
    off = np.array([run.rates() - p for run, p in zip(runs, told, strict=True)])  # [seeds, n]
    error = off.std(0, ddof=1) / SEEDS**0.5
    wrong = np.flatnonzero(np.abs(off.mean(0)) > 7 * error + 0.02)
    if len(wrong):
        i = int(wrong[0])
        said, found = (
            float(np.mean([p[i] for p in told if p is not None])),
            float(np.mean([r.rates()[i] for r in runs])),
        )
        raise Broken(
            f"client {i} is said to take part with probability {said:.3g}, and does in {found:.3g} of {LONG} rounds"
        )


LAWS = (
    is_a_frozen_dataclass,
    it_draws_what_it_is_asked,
    a_seed_decides,
    a_longer_schedule_begins_with_the_shorter,
    it_is_saved_and_loaded,
    its_probabilities_are_its_rates,
)
NAMES = tuple(law.__name__ for law in LAWS)


def examine(process: Any, waived: Mapping[str, str] | None = None, clients: int | None = None) -> Report:
    """What holds of a process; see `fedsim.testing.check_participation`. Raises ValueError for what is none."""
    name = process.__name__ if isinstance(process, type) else type(process).__name__
    if not isinstance(process, Participation):
        raise ValueError(f"{name} is no participation: give an object of a class derived from Participation")
    waived = dict(waived or {})
    check_names(waived, NAMES, "participation")
    sizes = [n for n in SIZES if attempt(process.check, n) is None] if clients is None else [clients]
    if not sizes:
        reason = attempt(process.check, SIZES[-1])
        raise ValueError(f"{name} refuses {', '.join(map(str, SIZES))} clients; say how many it is for ({reason})")
    draws = [Draw(n, rounds) for n in sizes[:4] for rounds in ROUNDS]
    outcomes: list[Outcome] = []
    for law in LAWS:
        for draw in draws:
            error = attempt(law, process, draw)
            if error is not None:
                break
        size = f"{draw.n} client{'s' * (draw.n > 1)}, {draw.rounds} round{'s' * (draw.rounds != 1)}"
        outcomes.append(settle(law.__name__, error, size, waived))
    return Report(name, tuple(outcomes))
