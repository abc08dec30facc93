"""Many strategies and seeds on common random numbers, so that a difference between two runs is the strategies' doing.

All runs of a seed share the partition, the first model, who is present when and every client's minibatches.

    for event in compare(experiment.load("experiment.toml")):
        match event:
            case Measured(strategy, seed, round, metrics): ...
            case Clients(strategy, seed, table): ...
            case Finished(strategy, seed, rounds, final, final_mean): ...
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.clients import Table
    from fedsim.data import Dataset
    from fedsim.engine import Engine
    from fedsim.experiment import Entry, Experiment
    from fedsim.ledger import Book
    from fedsim.local import LocalSGD
    from fedsim.measure import PerClient
    from fedsim.optimum import Optimum
    from fedsim.participation import Schedule
    from fedsim.participation.checks import Floats
    from fedsim.task import Task


class Began(NamedTuple):
    """A seed's world is made; its runs follow."""

    seed: int
    schedule: Schedule  # who is present when
    moved: int  # examples given to clients the partition had left empty


class Played(NamedTuple):
    """A round is over."""

    strategy: str  # the label
    seed: int
    round: int  # 1, 2, ...: how many are over


class Measured(NamedTuple):
    """An evaluation."""

    strategy: str
    seed: int
    round: int  # how many rounds are over: 0 is the first model
    metrics: dict[str, float]


class Clients(NamedTuple):
    """How every client fares with the last model of a run that is about to finish: see `fedsim.clients.table`."""

    strategy: str
    seed: int
    table: Table  # columns [n]: client, examples, held_out, rate, ..., loss, accuracy


class Finished(NamedTuple):
    """A run is over."""

    strategy: str
    seed: int
    rounds: int
    final: dict[str, float]  # the last evaluation
    final_mean: dict[str, float]  # mean over the evaluations of the last fifth of the rounds
    seconds: float  # evaluations included
    client_trainings_per_second: float  # evaluations left out
    clients: dict[str, Any] | None = None  # `fedsim.clients.summary`, and "harm"; None: clients were not measured
    error: dict[str, Any] | None = None  # `fedsim.optimum.Split`, or how far from the minimum and why no more is known


class Failed(NamedTuple):
    """A run ended early: it diverged, or its settings turned out not to go together."""

    strategy: str
    seed: int
    round: int
    reason: str


class Absent(NamedTuple):
    """Somebody was asked to train, and did not answer with anything usable. Only remote clients do that."""

    strategy: str
    seed: int
    round: int  # 1, 2, ...
    client: int
    reason: str


class Heard(NamedTuple):
    """What remote clients reported beside their models in a round."""

    strategy: str
    seed: int
    round: int  # 1, 2, ...
    replies: dict[int, dict[str, float]]  # client -> metric -> value


Event = Began | Played | Measured | Clients | Finished | Failed | Absent | Heard


class World(NamedTuple):
    """All that the runs of a seed have in common."""

    seed: int
    task: Task
    schedule: Schedule
    p: Tensor  # [n]  weights of the objective
    nodes: Tensor  # [m]  who is tested in gossip
    rates: Floats  # [n]  the share of the rounds in which each client takes part
    minima: dict[float, Optimum]  # by weight decay: the minimum of the objective, once it has been asked for


def compare(experiment: Experiment, engine: Callable[[World, Entry], Engine] | None = None) -> Iterator[Event]:
    """Runs every strategy with every seed, seed after seed, and says what happens as it happens.

    `engine` makes the engine of a run, as when the clients are behind a Flower Grid; left out, run.engine says it.

    Nothing is yielded before the first seed's world and every strategy in it are made, so what can be wrong with the
    data, the model or the settings is raised (ValueError, FileNotFoundError) before there is anything to record. A run
    that fails later ends with `Failed`, and the others go on. Where everybody trains alone (mixing = "alone") goes
    first, so that every other strategy can be held against it.
    """
    if experiment.tuning is not None:
        raise ValueError("the experiment has a table [tune]: run it with fedsim run, or take fedsim.tuning's winners")
    experiment = settle(experiment)
    dataset = load_data(experiment)
    entries = sorted(experiment.entries, key=lambda entry: not trains_alone(entry))
    for seed in experiment.run.seeds:
        world = make_world(experiment, dataset, seed)
        strategies = [prepared(entry, world, experiment.task.init) for entry in entries]
        yield Began(seed, world.schedule, world.task.moved)
        alone: Clients | None = None
        for entry, strategy in zip(entries, strategies, strict=True):
            for event in _run(experiment, world, entry, strategy, engine, alone):
                if alone is None and isinstance(event, Clients) and trains_alone(entry):
                    alone = event
                yield event


def trains_alone(entry: Entry) -> bool:
    """Whether an entry is every client training by itself."""
    from fedsim.mixing import Alone
    from fedsim.strategy import core

    return isinstance(getattr(core(entry.strategy), "mixing", None), Alone)


def settle(experiment: Experiment) -> Experiment:
    """The experiment with its device and threads decided, the threads set. Raises ValueError for a device not there."""
    import torch

    device = experiment.run.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        number = int(device.partition(":")[2] or 0)
        if number >= count:
            has = f"{count} CUDA devices" if count else "no CUDA device"
            raise ValueError(f'device "{device}" is not there: torch {torch.__version__} finds {has}; use --device cpu')
    if experiment.run.threads is not None:
        torch.set_num_threads(experiment.run.threads)
    return experiment.settled(device=device, threads=torch.get_num_threads())


def load_data(experiment: Experiment) -> Dataset:
    """The data set of [task]."""
    from fedsim import data
    from fedsim.experiment.settings import Custom

    source = experiment.task.data
    if isinstance(source, Custom):
        return data.load(source.make, experiment.task.data_dir, **source.settings)
    return data.load(source, experiment.task.data_dir)


def make_world(experiment: Experiment, dataset: Dataset, seed: int) -> World:
    """Who holds what, where all start and who is present when, for a seed; on the experiment's device."""
    import torch

    from fedsim import data, measure, models
    from fedsim.experiment.settings import Custom
    from fedsim.task import make_task

    task, run = experiment.task, experiment.run
    model, settings = task.model, {}
    if isinstance(model, Custom):
        model, settings = model.make, dict(model.settings)
    shape = tuple(dataset.inputs.shape[1:])

    def module() -> torch.nn.Module:
        return models.build(model, shape, dataset.classes, **settings)

    parts = data.split(dataset, task.partition, task.clients, seed)
    made = make_task(
        dataset,
        parts,
        module(),
        seed_module=lambda key: models.fresh(module, key),
        device=run.device,
        dtype=getattr(torch, run.dtype),
        holdout=task.holdout,
        seed=seed,
    )
    schedule = experiment.participation.draw(  # of all that clients have: the same whether something is held out or not
        made.n, run.rounds, seed, histogram=made.histogram() if dataset.classes else None, sizes=parts.size
    )
    p, nodes = made.weights(task.objective), measure.sample(made.n, run.eval_nodes, seed)
    return World(seed, made, schedule, p, nodes, schedule.rates(), {})


def prepared(entry: Entry, world: World, init: str) -> Any:
    """An entry's strategy with everything it left out filled in, tried on the first model; or one of Flower, made."""
    from fedsim.experiment.bundled import Bundled
    from fedsim.simulation import begin, prepare

    try:
        if isinstance(entry.strategy, Bundled):
            from fedsim.flower import stock

            return stock.made(entry.strategy, world.task.n)
        strategy = prepare(entry.ready(world.task.n, world.seed), world.task, world.schedule)
        begin(strategy, world.task, seed=world.seed, p=world.p, init=init)
    except ValueError as error:
        raise ValueError(f"{entry.label}: {error}") from error
    return strategy


def _engine(experiment: Experiment, world: World, local: LocalSGD) -> Engine:
    from fedsim.engine import Loop
    from fedsim.simulation import default_engine

    if experiment.run.engine == "loop":
        return Loop()
    return default_engine(world.task, local, world.schedule, experiment.run.bytes)


def _run(
    experiment: Experiment, world: World, entry: Entry, strategy: Any,
    make: Callable[[World, Entry], Engine] | None, alone: Clients | None,
) -> Iterator[Event]:  # fmt: skip
    """One strategy with one seed; `alone` is how the clients fare by themselves, where that is known."""
    import torch

    from fedsim import clients, keyed, ledger
    from fedsim.experiment.bundled import Bundled
    from fedsim.simulation import begin, first_model, simulate

    rounds, every, seed = experiment.run.rounds, experiment.run.eval_every, world.seed
    started = time.perf_counter()
    training, trainings, up, down, done = 0.0, 0, 0, 0, 0
    history: dict[int, dict[str, float]] = {}
    try:
        theirs = isinstance(entry.strategy, Bundled)  # of Flower, which keeps its own state
        state = None if theirs else begin(strategy, world.task, seed=seed, p=world.p, init=experiment.task.init)
        first = first_model(world.task, seed) if theirs else strategy.model(state)
        book = None
        if experiment.run.ledger and not theirs and strategy.linear:
            book = ledger.Book(strategy, world.p, world.rates, keyed.seed(seed, "strategy"))
        history[0], figures = _evaluate(experiment, world, entry, first, book)
        yield Measured(entry.label, seed, 0, history[0])
        engine = _engine(experiment, world, entry.local) if make is None else make(world, entry)
        steps: Iterator[Any]
        if theirs:
            from fedsim.flower import stock

            steps = stock.steps(
                strategy, world.task, world.schedule, entry.local, seed=seed, engine=engine,
                objective=experiment.task.objective,
            )  # fmt: skip
        else:
            steps = simulate(
                world.task, strategy, world.schedule, entry.local, seed=seed, engine=engine, p=world.p, state=state
            )
        while done < rounds:
            clock = time.perf_counter()
            step: Any = next(steps)
            training += time.perf_counter() - clock
            done, k = step.t + 1, len(step.round.who)
            trainings, up, down = trainings + k, up + step.traffic.up, down + step.traffic.down
            if book is not None:
                book.enter(step.round)
            if done % every == 0 or done == rounds:
                metrics, figures = _evaluate(experiment, world, entry, step.model, book)
                if k:
                    metrics["local_loss"] = float(step.round.loss.double().mean())
                metrics |= {"present": float(k), "bytes_up": up / 8, "bytes_down": down / 8}
                metrics |= getattr(step, "metrics", {})
                history[done] = metrics
                yield Measured(entry.label, seed, done, metrics)
            yield Played(entry.label, seed, done)
        left = _error(world, entry, strategy, step, history[rounds], book) if experiment.run.optimum else None
    except ValueError as error:
        yield Failed(entry.label, seed, done, str(error))
        return
    except torch.OutOfMemoryError:
        reason = f"{experiment.run.device} is out of memory; lower run.memory (now {experiment.run.memory})"
        yield Failed(entry.label, seed, done, reason)
        return
    late = [metrics for round, metrics in history.items() if round > 0.8 * rounds]
    summary = None
    if figures is not None:
        table = clients.table(world.task, world.schedule, figures, world.p, None if book is None else book.shares())
        yield Clients(entry.label, seed, table)
        summary = clients.summary(table)
        if alone is not None:
            summary["harm"] = {"against": alone.strategy, **clients.harm(table, alone.table)}
    yield Finished(
        entry.label,
        seed,
        rounds,
        history[rounds],
        mean(late),
        time.perf_counter() - started,
        trainings / max(training, 1e-9),
        summary,
        left,
    )


def _evaluate(
    experiment: Experiment, world: World, entry: Entry, model: Tensor, book: Book | None
) -> tuple[dict[str, float], PerClient | None]:
    """All metrics of a model, and how every client fares where it is measured."""
    from fedsim import clients, measure

    metrics = measure.evaluate(world.task, model, world.nodes)
    figures: PerClient | None = None
    off = None if book is None else book.distance()
    if off is not None:
        metrics["weight_distance"] = off
    if experiment.run.eval_train:
        figures, losses = measure.per_client_and_training(world.task, model)
        metrics["train_objective"] = float(world.p @ losses)
        shares = None if book is None else book.shares()
        if shares is not None:
            metrics["implied_objective"] = float(shares @ losses)
        if experiment.run.optimum:
            best, x = _minimum(world, entry.local.weight_decay), _one(model)
            value = metrics["train_objective"] + entry.local.weight_decay / 2 * float(x @ x)
            metrics["suboptimality"] = value - best.value
            metrics["distance_to_optimum"] = float((x - best.x).norm())
    elif world.task.held is not None:
        figures = measure.per_client(world.task, model)
    if figures is not None:
        metrics |= clients.metrics(figures, world.p.cpu().numpy(), world.rates)
    return metrics, figures


def _one(model: Tensor) -> Tensor:
    """The model [P] in float64, of nodes their mean."""
    return (model.mean(0) if model.ndim == 2 else model).double()


def _minimum(world: World, decay: float) -> Optimum:
    """The minimum of the objective, found once for a world."""
    from fedsim import optimum

    if decay not in world.minima:
        world.minima[decay] = optimum.minimise(world.task, world.p, decay)
    return world.minima[decay]


def _error(
    world: World, entry: Entry, strategy: Any, step: Any, last: Mapping[str, float], book: Book | None
) -> dict[str, Any]:
    """What keeps the last model from the minimum, as far as it can be told apart."""
    from fedsim import optimum

    shares = None if book is None else book.shares()
    if shares is None or bool((shares < 0).any()):
        why = "no update has entered the model" if book is not None else "its updates have no weights to enter"
        if shares is not None:
            why = "some clients' weight is below 0, so what was worked on is no convex objective"
        return {"suboptimality": last["suboptimality"], "distance": last["distance_to_optimum"], "not_split": why}
    best = _minimum(world, entry.local.weight_decay)
    x = _one(step.model)
    return optimum.split(world.task, entry.local, strategy, step.state, x, world.p, shares, best)._asdict()


def mean(evaluations: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric that all evaluations have."""
    shared = [name for name in evaluations[0] if all(name in metrics for metrics in evaluations)]
    return {name: sum(metrics[name] for metrics in evaluations) / len(evaluations) for name in shared}


class Summary(NamedTuple):
    """A strategy's result over its seeds."""

    strategy: str
    seeds: int
    mean: dict[str, float]  # of final_mean
    std: dict[str, float]  # sample standard deviation; NaN for one seed


def summarise(runs: Iterable[Finished]) -> list[Summary]:
    """Mean and standard deviation of `final_mean` over the seeds, strategies in the order they came."""
    grouped: dict[str, list[dict[str, float]]] = {}
    for run in runs:
        grouped.setdefault(run.strategy, []).append(run.final_mean)
    found = []
    for label, values in grouped.items():
        centre = mean(values)
        spread = {name: _std([value[name] for value in values]) for name in centre}
        found.append(Summary(label, len(values), centre, spread))
    return found


def _std(values: Sequence[float]) -> float:
    if len(values) < 2:
        return math.nan
    centre = sum(values) / len(values)
    return math.sqrt(sum((value - centre) ** 2 for value in values) / (len(values) - 1))


def as_result(run: Finished) -> dict[str, Any]:
    """A finished run as result.json holds it."""
    return {name: value for name, value in run._asdict().items() if value is not None}
