"""The trials: every strategy's points by successive halving. A trial that goes on continues, it never starts again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fedsim.tuning import budget
from fedsim.tuning.judging import Court, court

if TYPE_CHECKING:
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
    value: float | None  # what it was last judged at, mean over the seeds; None: it never was
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
    courts = [court(experiment, tuning.table, dataset, tuning.rounds, seed) for seed in tuning.table.seeds]
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

    def __init__(self, index: int, point: Point, runs: Sequence[Iterator[Any]]) -> None:
        self.index, self.point, self.runs = index, point, runs
        self.models: list[Any] = [None] * len(runs)
        self.rounds = 0
        self.spent = 0  # rounds over all seeds
        self.trainings = 0
        self.values: dict[int, float] = {}
        self.out_at: int | None = None
        self.failed: str | None = None

    def advance(self, rounds: int) -> Iterator[tuple[int, int]]:
        """Run on to that round with every seed; yields (seed's place, rounds over). A run that fails ends the trial."""
        import torch

        start = self.rounds
        for place, run in enumerate(self.runs):
            try:
                for done in range(start + 1, rounds + 1):
                    self.rounds = done
                    self.spent += 1
                    step = next(run)
                    self.trainings += len(step.round.who)
                    self.models[place] = step.model
                    yield place, done
            except ValueError as error:
                self.failed = str(error)
                return
            except torch.OutOfMemoryError as error:
                raise ValueError("the device is out of memory while tuning; lower run.memory or tune.trials") from error

    def judge(self, courts: Sequence[Court]) -> None:
        """Note the mean value over the seeds."""
        found = [each.value(model) for each, model in zip(courts, self.models, strict=True)]
        value = sum(found) / len(found)
        if math.isfinite(value):
            self.values[self.rounds] = value
        else:
            self.failed = f"round {self.rounds}: the validation {courts[0].metric} is not finite (NaN or infinity)"

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
    assert experiment.tuning is not None
    seeds, allowed = len(courts), budget.allowance(rungs) * len(courts)
    axes = {key: list(values) for key, values in grid.axes.items()}
    if not grid.tried:
        yield Tuned(grid.label, axes, grid.size, [], None, {}, [], 0, allowed, 0)
        return
    trials = [
        Trial(index, point, [_run(experiment, each, point.entry) for each in courts])
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
        for trial in alive:
            for place, done in trial.advance(rung.rounds):
                yield Played(grid.label, trial.index, courts[place].world.seed, done)
            if trial.failed is None:
                trial.judge(courts)
            if trial.failed is not None:
                trial.close()
        alive = [trial for trial in alive if trial.failed is None]
        if not alive:
            why = trials[-1].failed or trials[0].failed
            raise ValueError(
                f"{grid.label}: all {len(trials)} trials failed, the last with {told(trials[-1].point.settings)}: {why}"
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


def _run(experiment: Experiment, where: Court, entry: Entry) -> Iterator[Any]:
    """A strategy's rounds in a tuning seed's world: steps with a `model` and a `round`."""
    from fedsim import compare
    from fedsim.engine import Loop
    from fedsim.experiment.bundled import Bundled
    from fedsim.simulation import default_engine, simulate

    world, task = where.world, experiment.task
    strategy = compare.prepared(entry, world, task.init)
    engine: Any = Loop()
    if experiment.run.engine != "loop":
        engine = default_engine(world.task, entry.local, world.schedule, experiment.run.bytes)
    if isinstance(entry.strategy, Bundled):
        from fedsim.flower import stock

        yield from stock.steps(
            strategy, world.task, world.schedule, entry.local, seed=world.seed, engine=engine, objective=task.objective
        )
    else:
        yield from simulate(
            world.task, strategy, world.schedule, entry.local, seed=world.seed, engine=engine, p=world.p, init=task.init
        )


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
