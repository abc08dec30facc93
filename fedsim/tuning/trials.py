"""The trials: every strategy's points by successive halving. A trial that goes on continues, it never starts again.

A strategy's trials advance in lockstep, their cohorts of all seeds trained in one engine call a round.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fedsim.lockstep import Together, Turn, advance, own_turn
from fedsim.playing import own_steps, owns_its_loop
from fedsim.tuning import budget
from fedsim.tuning.judging import Court, court

if TYPE_CHECKING:
    from fedsim.engine import Engine
    from fedsim.experiment import Entry, Experiment
    from fedsim.experiment.tuning import Grid, Point


class Played(NamedTuple):
    """A round of a trial is over."""

    strategy: str  # the label
    trial: int  # which of its points
    seed: int
    round: int  # 1, 2, ...: how many are over


class Tried(NamedTuple):
    """What became of a trial."""

    settings: dict[str, Any]  # dotted key -> value
    rounds: int  # that it ran, with each seed; of one that failed, with the seed it failed with
    value: float | None  # what it was last judged at, mean over the seeds and `budget.looks`; None: it never was
    out_at: int | None  # the round after which others went on; None: it was among the last, or failed
    failed: str | None  # why it ended by itself: it diverged
    values: dict[int, float]  # after each rung: round -> value


class Tuned(NamedTuple):
    """A strategy's tuning is over."""

    strategy: str
    grid: dict[str, list[Any]]
    size: int  # points of the grid
    trials: list[Tried]  # none where there was nothing to choose
    winner: int | None  # which trial; None: the strategy stays as it is
    edge: dict[str, str]  # keys whose best value is the "lowest" or "highest" that was tried
    limit: list[str]  # keys whose best value is the first or last that is possible: no edge
    used: int  # rounds, over all trials and seeds
    allowed: int  # the same for all strategies
    trainings: int  # of clients, in the rounds used


Event = Played | Tuned


def tune(experiment: Experiment) -> Iterator[Event]:
    """Tries every strategy's points as its table [tune] says, and says what happens as it happens.

    Nothing is yielded before the worlds of all tuning seeds are made and every point is tried on the first model, so
    what can be wrong with data, model or settings is raised first (ValueError, FileNotFoundError). Raises ValueError
    where all trials of a strategy diverge: there is nothing to run it with.
    """
    from fedsim import compare

    experiment = compare.settle(experiment)
    tuning = experiment.tuning
    if tuning is None:
        raise ValueError("the experiment has no table [tune]; add one, with a [tune.grid]")
    dataset = compare.load_data(experiment)
    courts: list[Court] = []
    for seed in tuning.table.seeds:
        like = courts[0] if courts else None
        courts.append(court(experiment, tuning.table, dataset, tuning.rounds, seed, like))
    for grid in tuning.grids:
        for point in grid.points if grid.tried else ():
            with _named(grid.label, point):
                compare.prepared(point.entry, courts[0].world, experiment.task.init)
    rungs = budget.rungs(tuning.table.trials, tuning.rounds, tuning.table.eta)
    for grid in tuning.grids:
        yield from _halve(experiment, grid, courts, rungs)


class _named:
    """A block whose ValueError names the point it is about."""

    def __init__(self, label: str, point: Point) -> None:
        self.what = f"{label} with {told(point.settings)}"

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: object) -> None:
        if isinstance(error, ValueError):
            raise ValueError(f"{self.what}: {error}") from error


def told(settings: Mapping[str, Any]) -> str:
    """A point in words: "local.lr = 0.1, beta = 0.5"."""
    from fedsim.experiment.settings import show

    return ", ".join(f"{key} = {show(value)}" for key, value in settings.items())


class Trial:
    """A point at work: a run for each tuning seed, waiting where it was told to stop."""

    def __init__(self, index: int, point: Point, runs: Sequence[Any]) -> None:
        self.index, self.point, self.runs = index, point, runs
        self.models: list[Any] = [None] * len(runs)
        self.rounds = 0
        self.spent = 0  # rounds over all seeds
        self.trainings = 0
        self.looks: list[float] = []  # since the last rung
        self.values: dict[int, float] = {}
        self.out_at: int | None = None
        self.failed: str | None = None

    def hear(self, place: int, round: int, step: Any) -> None:
        """What came of a round with one of the seeds: a step, or the exception that ended it."""
        self.rounds, self.spent = round, self.spent + 1
        if isinstance(step, ValueError):
            self.failed = self.failed or str(step)
        elif isinstance(step, Exception):
            raise ValueError("the device is out of memory while tuning; lower run.memory or tune.trials") from step
        else:
            self.trainings += len(step.round.who)
            self.models[place] = step.model

    def look(self, courts: Sequence[Court]) -> None:
        """Note the value now, mean over the seeds."""
        found = [each.value(model) for each, model in zip(courts, self.models, strict=True)]
        value = sum(found) / len(found)
        self.looks.append(value)
        if not math.isfinite(value):
            self.failed = f"round {self.rounds}: the validation {courts[0].metric} is not finite (NaN or infinity)"

    def judge(self) -> None:
        """The rung is over: its value is the mean of the looks."""
        self.values[self.rounds] = sum(self.looks) / len(self.looks)
        self.looks = []

    @property
    def value(self) -> float | None:
        """What it was last judged at."""
        return self.values[max(self.values)] if self.values else None

    def close(self) -> None:
        """Let go of its models and memories."""
        self.runs, self.models = (), []

    def tried(self) -> Tried:
        """What became of it."""
        settings = dict(self.point.settings)
        return Tried(settings, self.rounds, self.value, self.out_at, self.failed, dict(self.values))


def _halve(
    experiment: Experiment, grid: Grid, courts: Sequence[Court], rungs: Sequence[budget.Rung]
) -> Iterator[Event]:  # fmt: skip
    """One strategy's tuning."""
    seeds, allowed = len(courts), budget.allowance(rungs) * len(courts)
    axes = {key: list(values) for key, values in grid.axes.items()}
    if not grid.tried:
        yield Tuned(grid.label, axes, grid.size, [], None, {}, [], 0, allowed, 0)
        return
    engine = engine_for(experiment, grid, courts)
    trials = [
        Trial(index, point, [_run(experiment, each, point.entry, engine) for each in courts])
        for index, point in enumerate(grid.points)
    ]
    alive = list(trials)
    for k, rung in enumerate(rungs):
        going = budget.room(rungs, k, sum(trial.spent for trial in trials), seeds)
        for trial in alive[going:]:
            trial.out_at = trial.rounds
            trial.close()
        alive = alive[:going]
        if k and len(alive) == 1:  # nobody left to compare it with
            break
        yield from _advance(experiment, grid, alive, courts, rung.rounds, engine)
        for trial in alive:
            if trial.failed is None:
                trial.judge()
            else:
                trial.close()
        alive = [trial for trial in alive if trial.failed is None]
        if not alive:
            raise ValueError(
                f"{grid.label}: all {len(trials)} trials failed, the last with {told(trials[-1].point.settings)}: "
                f"{trials[-1].failed or trials[0].failed}"
            )
        best = -1.0 if courts[0].metric == "accuracy" else 1.0  # sorted is stable: equal values keep their order
        alive.sort(key=lambda trial: best * trial.values[trial.rounds])
    winner = alive[0]
    edge, limit = edges(grid, winner.point)
    yield Tuned(
        grid.label,
        axes,
        grid.size,
        [trial.tried() for trial in trials],
        winner.index,
        edge,
        limit,
        sum(trial.spent for trial in trials),
        allowed,
        sum(trial.trainings for trial in trials),
    )


def _advance(
    experiment: Experiment, grid: Grid, trials: Sequence[Trial], courts: Sequence[Court], rounds: int, engine: Engine
) -> Iterator[Played]:
    """All runs of these trials on to that round, side by side; a run that fails ends its trial."""
    together = Together([each.world.task for each in courts])
    most = experiment.run.together or len(trials) * len(courts)
    looks = budget.looks(rounds)
    for round in range(trials[0].rounds + 1, rounds + 1):
        runs = {(trial, place): run for trial in trials if not trial.failed for place, run in enumerate(trial.runs)}
        names = list(runs)
        for begin in range(0, len(names), most):
            wave = {name: runs[name] for name in names[begin : begin + most]}
            turns: Iterator[tuple[Any, Turn]]
            if owns_its_loop(grid.points[0].entry):
                turns = ((name, own_turn(run)) for name, run in wave.items())
            else:
                turns = advance(wave, engine, together, experiment.run.bytes)
            for (trial, place), turn in turns:
                trial.hear(place, round, turn.step)
                yield Played(grid.label, trial.index, courts[place].world.seed, round)
        for trial in trials if round in looks else ():
            if trial.failed is None:
                trial.look(courts)


def engine_for(experiment: Experiment, grid: Grid, courts: Sequence[Court]) -> Engine:
    """The engine of a strategy's trials. Its chunk stays the same when trials drop out, so that those left go on bit
    for bit as they would have; it suits the cohorts of all of them together."""
    from fedsim.engine import Loop, Stacked, common

    run, world = experiment.run, courts[0].world
    if run.engine == "loop":
        return Loop()
    if run.chunk is not None:
        return Stacked(run.chunk)
    runs = len(grid.points) * len(courts)
    cohort = float(world.rates.sum()) * min(run.together or runs, runs)
    return common(world.task, (point.entry.local for point in grid.points), cohort, run.bytes)


def _run(experiment: Experiment, where: Court, entry: Entry, engine: Engine) -> Any:
    """A strategy's rounds in a tuning seed's world, for `lockstep.advance`; the steps of one that owns its loop."""
    from fedsim import compare
    from fedsim.simulation import rounds

    world, init = where.world, experiment.task.init
    strategy = compare.prepared(entry, world, init)
    if owns_its_loop(entry):
        return own_steps(experiment, world, entry, strategy, engine)
    return rounds(world.task, strategy, world.schedule, entry.local, seed=world.seed, p=world.p, init=init)


def edges(grid: Grid, point: Point) -> tuple[dict[str, str], list[str]]:
    """Of a winner: the ordered keys at the lowest or highest value that was tried, and those where that is because no
    lower or higher one is possible."""
    found: dict[str, str] = {}
    limit = []
    for key, possible in grid.limits.items():
        tried = [each.settings[key] for each in grid.points]
        for which, end, declared, last in (
            ("lowest", min(tried), min(grid.axes[key]), possible[0]),
            ("highest", max(tried), max(grid.axes[key]), possible[1]),
        ):
            if point.settings[key] != end:
                continue
            if last and end == declared:
                limit.append(key)
            else:
                found[key] = which
    return found, limit
