"""One strategy with one seed in a comparison: its rounds evaluated, booked and told of."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from fedsim.events import Absent, Clients, Event, Failed, Finished, Measured, Played, Timed
from fedsim.lockstep import Turn, exhausted
from fedsim.standing import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.engine import Engine
    from fedsim.engine.plan import Job
    from fedsim.experiment import Entry, Experiment
    from fedsim.ledger import Book
    from fedsim.measure import PerClient
    from fedsim.optimum import Optimum
    from fedsim.participation import Schedule
    from fedsim.participation.checks import Floats
    from fedsim.standing import Saved
    from fedsim.task import Task


class World(NamedTuple):
    """All that the runs of a seed have in common."""

    seed: int
    task: Task
    schedule: Schedule
    p: Tensor  # [n]  weights of the objective
    nodes: Tensor  # [m]  who is tested in gossip
    rates: Floats  # [n]  the share of the rounds in which each client takes part
    minima: dict[float, Optimum]  # by weight decay: the minimum of the objective, once it has been asked for


Telling = Generator[Event | None, Turn | None, None]


class Run(NamedTuple):
    """A run that has not begun, or is under way."""

    world: World
    turns: Any  # its rounds: `simulation.Turns`, or, of a strategy that owns its loop, an iterator of steps
    telling: Telling  # what happens; None where it waits for its next Turn
    bytes: int  # that its state may come to
    name: tuple[str, int]  # its strategy's label, and its seed
    progress: Progress | None  # how far it is; None for a strategy that owns its loop


def start(
    experiment: Experiment, world: World, entry: Entry, strategy: Any, alone: dict[int, Clients], engine: Engine,
    since: Saved | None = None,
) -> Run:  # fmt: skip
    """A run at its first model, or where it was when it was saved. `alone` holds, by seed, how the clients fare by
    themselves, as far as that is known; `engine` is for a strategy that owns its loop."""
    from fedsim import keyed, ledger
    from fedsim.simulation import begin, dropping, first_model, rounds

    seed = world.seed
    if owns_its_loop(entry):
        steps = own_steps(experiment, world, entry, strategy, engine)
        first = first_model(world.task, seed)
        return Run(world, steps, tell(experiment, world, entry, None, first, alone), 0, (entry.label, seed), None)
    progress = Progress(begin(strategy, world.task, seed=seed, p=world.p, init=experiment.task.init))
    bytes = weight(progress.state, int((world.rates > 0).sum()))
    if experiment.run.ledger and strategy.twin().linear:
        progress.book = ledger.Book(strategy, world.p, world.rates, keyed.seed(seed, "strategy"))
    if since is not None:
        since.restore(entry.label, seed, progress)
    turns = rounds(
        world.task, strategy, world.schedule, entry.local, seed=seed, p=world.p, state=progress.state, t=progress.done
    )
    lost: list[Absent] = []

    def note(job: Job, client: int) -> None:
        lost.append(Absent(entry.label, seed, job.t + 1, client, "its update is not finite (NaN or infinity)"))

    if experiment.run.on_divergence == "drop":
        turns = dropping(turns, note)
    telling = tell(experiment, world, entry, strategy, strategy.model(progress.state), alone, progress, lost)
    return Run(world, turns, telling, bytes, (entry.label, seed), progress)


def owns_its_loop(entry: Entry) -> bool:
    """Whether an entry is a strategy of Flower, which keeps its own state and calls the engine itself."""
    from fedsim.experiment.bundled import Bundled

    return isinstance(entry.strategy, Bundled)


def own_steps(experiment: Experiment, world: World, entry: Entry, strategy: Any, engine: Engine) -> Iterator[Any]:
    """The steps of a strategy that owns its loop, with the clients' examples in their curriculum's order."""
    from fedsim import curricula
    from fedsim.flower import stock

    task = curricula.arranged(world.task, entry.local.curriculum, world.seed)
    objective = experiment.task.objective
    return stock.steps(strategy, task, world.schedule, entry.local, seed=world.seed, engine=engine, objective=objective)


def weight(state: Any, seen: int) -> int:
    """Bytes of a state's tensors, tables of clients counted with the rows of the `seen` clients who ever come."""
    import torch

    from fedsim.rows import Rows

    if isinstance(state, Rows):
        return seen * state.data.shape[1] * state.data.element_size()
    if isinstance(state, torch.Tensor):
        return state.untyped_storage().nbytes()
    return sum(weight(part, seen) for part in state) if isinstance(state, (tuple, list)) else 0


def tell(
    experiment: Experiment, world: World, entry: Entry, strategy: Any, model: Tensor, alone: dict[int, Clients],
    progress: Progress | None = None, lost: list[Absent] | None = None,
) -> Telling:  # fmt: skip
    """What happens in a run, from its first model or a later one on. `strategy` is None for one that owns its loop.
    Whoever was `lost` in a round is told of when it is over."""

    from fedsim import clients, hashes, speed

    every, seed = experiment.run.eval_every, world.seed
    rounds = experiment.run.rounds
    so_far = Progress(None) if progress is None else progress
    spent, book = so_far.spent, so_far.book
    meter = speed.Meter(world.task, entry.local, world.schedule)
    meter.steps, meter.examples = so_far.steps, so_far.examples
    goes_on = so_far.done > 0  # from what was recorded then
    k = 0
    step: Any = None
    losses: Any = None  # of the last round
    try:
        clock = time.perf_counter()
        while True:
            done = so_far.done
            due = (done % every == 0 or done == rounds) and not goes_on
            if due:
                whose = own(strategy, so_far.state, model)
                metrics, figures, tuned = evaluate(experiment, world, entry, model, book, done, whose, strategy)
                if done:
                    if k:
                        metrics["local_loss"] = float(losses.double().mean())
                    metrics |= {"present": float(k), "bytes_up": so_far.up / 8, "bytes_down": so_far.down / 8}
                    metrics |= getattr(step, "metrics", {})
                if done > 0.8 * rounds:
                    so_far.late.add(metrics)
                digest = hashes.of_model(model)
            if not goes_on:
                spent["evaluation"] += time.perf_counter() - clock  # keeping the book included
            clock = time.perf_counter()  # whoever listens writes it down before the next word
            if due:
                yield Measured(entry.label, seed, done, metrics, digest)
                yield Timed(entry.label, seed, done, sum(spent.values()))
            if done and not goes_on:
                yield Played(entry.label, seed, done, k)
            goes_on = False
            so_far.recording += time.perf_counter() - clock
            if done == rounds:
                break
            turn = yield None
            clock = time.perf_counter()
            assert turn is not None
            while lost:
                yield lost.pop(0)
            spent["training"] += turn.training
            spent["aggregation"] += turn.own
            if isinstance(turn.step, Exception):
                raise turn.step
            step = turn.step
            k, model, so_far.state = len(step.round.who), step.model, step.state
            so_far.done, so_far.trainings = step.t + 1, so_far.trainings + k
            so_far.up, so_far.down = so_far.up + step.traffic.up, so_far.down + step.traffic.down
            if book is not None:
                book.enter(step.round)
            meter.played(step.t, step.round.who)
            so_far.steps, so_far.examples = meter.steps, meter.examples
            losses = step.round.loss
            step = step._replace(round=None)  # clients' moves are let go of: many runs may wait for each other
            del turn
        clock = time.perf_counter()
        left = error(world, entry, strategy, step, metrics, book) if experiment.run.optimum else None
        spent["evaluation"] += time.perf_counter() - clock
    except ValueError as fault:
        yield Failed(entry.label, seed, so_far.done, str(fault))
        return
    except (RuntimeError, MemoryError) as fault:
        if not exhausted(fault):
            raise
        yield Failed(entry.label, seed, so_far.done, no_room(experiment, str(fault)))
        return
    summary = None
    if figures is not None:
        shares = None if book is None else book.shares()
        table = clients.table(world.task, world.schedule, figures, world.p, shares, tuned)
        said = Clients(entry.label, seed, table)
        clock = time.perf_counter()
        yield said
        so_far.recording += time.perf_counter() - clock
        summary = clients.summary(table)
        if seed in alone:
            summary["harm"] = {"against": alone[seed].strategy, **clients.harm(table, alone[seed].table)}
        elif trains_alone(entry):
            alone[seed] = said
    yield Finished(
        entry.label,
        seed,
        rounds,
        metrics,
        so_far.late.mean(),
        sum(spent.values()),
        so_far.trainings / max(spent["training"], 1e-9),
        summary,
        spent | {"recording": so_far.recording},
        left,
        meter.told(spent["training"]),
    )


def no_room(experiment: Experiment, said: str) -> str:
    """That memory did not suffice, with what is known of how much there was, and what to do."""
    import torch

    run = experiment.run
    tried = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", said)
    parts = [f"tried to allocate {tried[1]}"] if tried else []
    if run.device.startswith("cuda"):
        free, whole = torch.cuda.mem_get_info(torch.device(run.device))
        parts.append(f"{free / 2**30:.1f} of {whole / 2**30:.1f} GiB are free")
    parts.append(f"run.memory is {run.memory}")
    advice = "lower run.memory"
    if run.engine == "stacked" and run.chunk is not None:
        parts.append(f"run.chunk is {run.chunk}")
        advice += f", or set run.chunk = {run.chunk // 2}" if run.chunk > 1 else ""
    return f"{run.device} is out of memory ({', '.join(parts)}); {advice}"


def trains_alone(entry: Entry) -> bool:
    """Whether an entry is every client training by itself."""
    from fedsim.mixing import Alone
    from fedsim.strategy import core

    return isinstance(getattr(core(entry.strategy), "mixing", None), Alone)


def own(strategy: Any, state: Any, model: Tensor) -> Callable[[Tensor], Tensor]:
    """The clients' own models: from who [k] to theirs [k, P]."""
    if strategy is not None:
        return functools.partial(strategy.own, state)
    return lambda who: model.expand(len(who), -1)


def evaluate(
    experiment: Experiment, world: World, entry: Entry, model: Tensor, book: Book | None, done: int,
    whose: Callable[[Tensor], Tensor], strategy: Any,
) -> tuple[dict[str, float], PerClient | None, PerClient | None]:  # fmt: skip
    """All metrics of a model after `done` rounds, and how every client fares, as it is and fine-tuned, where that is
    measured. Clients with models of their own are measured, and the objective is found, with these."""
    from fedsim import clients, finetune, measure
    from fedsim.engine import Loop, Stacked

    metrics = measure.evaluate(world.task, model, world.nodes)
    figures: PerClient | None = None
    tuned: PerClient | None = None
    personal = strategy is not None and strategy.personal
    used = whose if personal else model
    off = None if book is None else book.distance()
    if off is not None:
        metrics["weight_distance"] = off
    if experiment.run.eval_train:
        figures, losses = measure.per_client_and_training(world.task, used)
        metrics["train_objective"] = float(world.p @ losses)
        shares = None if book is None else book.shares()
        if shares is not None:
            metrics["implied_objective"] = float(shares @ losses)
        if experiment.run.optimum:
            if personal:
                raise ValueError("the minimum is of one model for all, and here clients have their own; unset optimum")
            best, x = minimum(world, entry.local.weight_decay), one(model)
            value = metrics["train_objective"] + entry.local.weight_decay / 2 * float(x @ x)
            metrics["suboptimality"] = value - best.value
            metrics["distance_to_optimum"] = float((x - best.x).norm())
    elif world.task.held is not None or experiment.finetune is not None or experiment.personal:
        figures = measure.per_client(world.task, used)
    if figures is not None:
        metrics |= clients.metrics(figures, world.p.cpu().numpy(), world.rates)
        if experiment.personal:  # what there is to compare then: of a common model as of own ones
            metrics |= {
                f"personal_{n}": metrics[f"client_{n}"] for n in ("accuracy", "loss") if f"client_{n}" in metrics
            }
    if experiment.finetune is not None:
        engine = Loop() if experiment.run.engine == "loop" else Stacked(experiment.run.chunk or 1)
        rule, task = experiment.finetune, world.task
        after = finetune.tuned(task, whose, rule, entry.local, engine, seed=world.seed, t=done)
        tuned = measure.per_client(task, after)
        found = clients.metrics(tuned, world.p.cpu().numpy(), world.rates)
        metrics |= {f"tuned_{name}": value for name, value in found.items()}
    return metrics, figures, tuned


def one(model: Tensor) -> Tensor:
    """The model [P] in float64, of nodes their mean."""
    return (model.mean(0) if model.ndim == 2 else model).double()


def minimum(world: World, decay: float) -> Optimum:
    """The minimum of the objective, found once for a world."""
    from fedsim import optimum

    if decay not in world.minima:
        world.minima[decay] = optimum.minimise(world.task, world.p, decay)
    return world.minima[decay]


def error(
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
    best = minimum(world, entry.local.weight_decay)
    x = one(step.model)
    return optimum.split(world.task, entry.local, strategy, step.state, x, world.p, shares, best)._asdict()
