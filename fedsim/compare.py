"""Many strategies and seeds on common random numbers, so that a difference between two runs is the strategies' doing.

All runs of a seed share the partition, the first model, who is present when and every client's minibatches. Runs
advance in lockstep (`fedsim.lockstep`), as many side by side as memory allows: the numbers are those of one by one.

    for event in compare(experiment.load("experiment.toml")):
        match event:
            case Measured(strategy, seed, round, metrics): ...
            case Clients(strategy, seed, table): ...
            case Finished(strategy, seed, rounds, final, final_mean): ...
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from fedsim.events import (
    Absent,
    Began,
    Clients,
    Event,
    Failed,
    Finished,
    Heard,
    Measured,
    Planned,
    Played,
    Stand,
    Timed,
)
from fedsim.lockstep import Together, Turn, advance, own_turn
from fedsim.playing import Run, World, owns_its_loop, start, trains_alone
from fedsim.standing import fingerprint

if TYPE_CHECKING:
    from fedsim.data import Dataset
    from fedsim.engine import Engine
    from fedsim.experiment import Entry, Experiment
    from fedsim.standing import Saved

__all__ = [
    "Absent", "Began", "Clients", "Event", "Failed", "Finished", "Heard", "Measured", "Planned", "Played", "Stand",
    "Timed", "World", "as_result", "compare", "load_data", "make_world", "plan", "prepared",
    "settle", "trains_alone",
]  # fmt: skip


def compare(
    experiment: Experiment, engine: Callable[[World, Entry], Engine] | None = None, since: Saved | None = None
) -> Iterator[Event]:
    """Runs every strategy with every seed and says what happens as it happens.

    `engine` makes the engine of a run, as when the clients are behind a Flower Grid, and then runs go one by one; left
    out, run.engine says it. From where it `Stand`s between two rounds a comparison can go on: `since` is what
    `fedsim.standing` saved of it, and what comes then is what would have come, bit for bit but for times. A run that
    was not saved, as of a strategy that owns its loop, begins anew; `Planned` and `Began` are said again.

    Nothing is yielded before the first seed's world and every strategy in it are made, so what can be wrong with the
    data, the model or the settings is raised (ValueError, FileNotFoundError) before there is anything to record. A run
    that fails later ends with `Failed`, and the others go on. Where everybody trains alone (mixing = "alone") goes
    first, so that every other strategy can be held against it.
    """
    from fedsim.engine import Loop, Stacked

    if experiment.tuning is not None:
        raise ValueError(
            "the experiment has a table [tune]: fedsim run tunes first; or use the file of fedsim tune --out FOLDER"
        )
    experiment = settle(experiment)
    dataset = load_data(experiment)
    entries = sorted(experiment.entries, key=lambda entry: not trains_alone(entry))
    apart = [entry for entry in entries if owns_its_loop(entry)]
    alone: dict[int, Clients] = {} if since is None else since.alone()
    stand = Stand({}, [] if since is None else since.over, alone, {})
    later: list[Callable[[], Run]] = []
    wave: list[Run] = []
    first: World | None = None
    ours: Engine = Loop()
    most = 1 if experiment.run.engine == "loop" else experiment.run.together
    for seed in experiment.run.seeds:
        world = make_world(experiment, dataset, seed, first)
        strategies = [prepared(entry, world, experiment.task.init) for entry in entries]
        if first is None:
            first, experiment = world, plan(experiment, world)
            if experiment.run.engine == "stacked":
                ours = Stacked(experiment.run.chunk or 1)
            yield Planned(experiment, tuple(entry.label for entry in apart), rounding(experiment, world))
        stand.worlds[seed] = fingerprint(world.task, world.schedule)
        if since is not None:
            since.check(seed, stand.worlds[seed])
        yield Began(seed, world.schedule, world.task.moved)
        for entry, strategy in zip(entries, strategies, strict=True):
            begin = functools.partial(start, experiment, world, entry, strategy, alone)
            if engine is not None:
                made = engine(world, entry)
                yield from _play([begin(made)], made, experiment)
            elif entry in apart:
                if (entry.label, seed) not in stand.over:
                    later.append(functools.partial(begin, ours))
            else:
                run = begin(ours, since)  # also of one that is over: it had its place in a wave
                if sum(other.bytes for other in (*wave, run)) > experiment.run.bytes:
                    yield from _play(wave, ours, experiment, stand)
                    wave = []
                wave.append(run)
                if len(wave) == most:
                    yield from _play(wave, ours, experiment, stand)
                    wave = []
    yield from _play(wave, ours, experiment, stand)
    for last in later:
        yield from _play([last()], ours, experiment, stand)


def _play(wave: Sequence[Run], engine: Engine, experiment: Experiment, stand: Stand | None = None) -> Iterator[Event]:
    """What happens in runs that advance side by side, round by round, in their order, but for those that are over by
    `stand`; and after each round where they stand, what is over by then included."""
    over = [] if stand is None else stand.over
    live = {i: run for i, run in enumerate(wave) if run.name not in over}
    if not live:
        return
    together = Together(list({id(run.world): run.world.task for run in wave}.values()))
    for run in live.values():
        yield from _heard(run, None)
    while live:
        runs = {i: run.turns for i, run in live.items()}
        turns: Iterator[tuple[int, Turn]]
        if wave[0].progress is None:
            turns = ((i, own_turn(run)) for i, run in runs.items())
        else:
            turns = advance(runs, engine, together, experiment.run.bytes)
        for i, turn in turns:
            last = isinstance(turn.step, Exception) or turn.step.t + 1 == experiment.run.rounds
            yield from _heard(live[i], turn)
            del turn
            if last:
                over.append(live.pop(i).name)
        under_way = {run.name: run.progress for run in live.values() if run.progress is not None}
        if stand is not None and len(under_way) == len(live):
            yield stand._replace(under_way=under_way)


def _heard(run: Run, turn: Turn | None) -> Iterator[Event]:
    """What a run says of its turn, until it waits for the next."""
    try:
        event = run.telling.send(turn)
        while event is not None:
            yield event
            event = next(run.telling)
    except StopIteration:
        return


def settle(experiment: Experiment) -> Experiment:
    """The experiment with its device and threads decided, threads and precision set. Raises ValueError for a device
    that is not there."""
    import torch

    from fedsim.engine import precision

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
    precision.use(experiment.run.products)
    return experiment.settled(device=device, threads=torch.get_num_threads())


def plan(experiment: Experiment, world: World) -> Experiment:
    """The experiment with its chunk decided: one for all strategies and seeds, so that each run's numbers are those it
    has alone with that chunk. The stacked engine's own choice for all cohorts of a round together, of the first seed's
    world."""
    from fedsim.engine import common, fastest

    run = experiment.run
    ours = [entry for entry in experiment.entries if not owns_its_loop(entry)] or list(experiment.entries)
    if run.engine != "stacked" or run.chunk is not None:
        return experiment
    beside = len(ours) * len(run.seeds) if run.together is None else min(run.together, len(ours) * len(run.seeds))
    cohort = float(world.rates.sum()) * beside
    found = fastest if run.measure_chunk else common
    return experiment.settled(chunk=found(world.task, (entry.local for entry in ours), cohort, run.bytes).chunk)


def rounding(experiment: Experiment, world: World) -> float | None:
    """How far off gradients are for products that are not computed in float32; None: they are."""
    from fedsim.engine import precision

    products = experiment.run.products
    if products == "float32" or experiment.run.dtype != "float32":
        return None
    return precision.off(world.task, (entry.local for entry in experiment.entries), products)


def load_data(experiment: Experiment) -> Dataset:
    """The data set of [task]."""
    from fedsim import data
    from fedsim.experiment.settings import Custom

    source = experiment.task.data
    if isinstance(source, Custom):
        return data.load(source.make, experiment.task.data_dir, **source.settings)
    return data.load(source, experiment.task.data_dir)


def make_world(experiment: Experiment, dataset: Dataset, seed: int, like: World | None = None) -> World:
    """Who holds what, where all start and who is present when, for a seed; on the experiment's device. Another seed's
    world (`like`) of the same experiment lends its examples and model, so that they are there once."""
    import torch

    from fedsim import data, measure, models
    from fedsim.experiment.settings import Custom
    from fedsim.task import make_task, regroup

    task, run = experiment.task, experiment.run
    model, settings = task.model, {}
    if isinstance(model, Custom):
        model, settings = model.make, dict(model.settings)
    shape = tuple(dataset.inputs.shape[1:])

    def module() -> torch.nn.Module:
        return models.build(model, shape, dataset.classes, **settings)

    parts = data.split(dataset, task.partition, task.clients, seed)
    if like is None:
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
    else:
        made = regroup(like.task, parts, holdout=task.holdout, seed=seed)
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


def as_result(run: Finished) -> dict[str, Any]:
    """A finished run as result.json holds it."""
    return {name: value for name, value in run._asdict().items() if value is not None}
