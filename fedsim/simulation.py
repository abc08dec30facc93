"""The loop. It knows neither servers nor graphs, and is a generator: all else is the caller's `for` body."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from fedsim import curricula, keyed
from fedsim.engine.plan import Job
from fedsim.strategy import GossipStrategy, Round, Strategy, Traffic, complete, core, scrutinise
from fedsim.weights import Scheduled

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.engine import Answer, Engine
    from fedsim.local import LocalSGD
    from fedsim.participation import Row, Schedule
    from fedsim.strategy import Work
    from fedsim.task import Task


class Step(NamedTuple):
    """A round that is over."""

    t: int  # 0, 1, ...
    state: Any  # after the round; the next round consumes it
    round: Round  # what reached the strategy
    model: Tensor  # [P], or [n, P] in gossip: what to evaluate
    traffic: Traffic  # bits sent


def first_model(task: Task, seed: int, init: str = "shared") -> Tensor:
    """Where everybody starts: one model [P] ("shared"), or one for each of the n nodes [n, P] ("independent")."""
    import torch

    if init == "independent":
        return torch.stack([task.fresh(keyed.seed(seed, "init", i)) for i in range(task.n)])
    if init != "shared":
        raise ValueError(f"init must be 'shared' or 'independent', got {init!r}")
    return task.fresh(keyed.seed(seed, "init"))


def prepare(strategy: Strategy, task: Task, schedule: Schedule) -> Strategy:
    """The strategy with what it left out filled in: layout, sizes and the number of nodes from the task, probabilities
    from the schedule."""
    finite(strategy, type(strategy).__name__)
    given = schedule.probabilities
    return complete(  # type: ignore[no-any-return]
        strategy,
        layout=task.layout,
        nodes=task.n,
        sizes=tuple(task.sizes),
        probabilities=None if given is None else Scheduled(given.tolist()),
    )


def begin(strategy: Strategy, task: Task, *, seed: int = 0, p: Tensor | None = None, init: str = "shared") -> Any:
    """The state before round 0. `init` is for gossip; a server has one model, and starts from the shared one."""
    p = task.weights() if p is None else p
    if len(p) != task.n:
        raise ValueError(f"p has {len(p)} weights but the task has {task.n} clients; give one for each")
    has_nodes = isinstance(core(strategy), GossipStrategy)
    x = first_model(task, seed, init if has_nodes or init != "independent" else "shared")
    return strategy.init(x, p, keyed.seed(seed, "strategy"))


def simulate(
    task: Task, strategy: Strategy, schedule: Schedule, local: LocalSGD, *, seed: int = 0,
    engine: Engine | None = None, p: Tensor | None = None, init: str = "shared", state: Any = None, t: int = 0,
) -> Iterator[Step]:  # fmt: skip
    """Runs the schedule's rounds t, t + 1, ... and yields each when it is over.

    Everything random follows from `seed`, the round and the client. `p` [n] are the objective's weights (default: by
    examples, see `Task.weights`). Left alone, the engine is `engine.choose`'s. To go on from a checkpoint give its
    `state` and the round `t` to run next; nothing else is needed. A yielded state is consumed by the next round: copy
    what you want to keep.

    Raises ValueError if the schedule is for another number of clients, if the strategy cannot do with the local
    training, or if training gives NaN or infinity; warns (`CombinationWarning`) of what a paper says nothing of.
    """
    scrutinise(strategy, local)
    turns = rounds(task, strategy, schedule, local, seed=seed, p=p, init=init, state=state, t=t)
    engine = default_engine(task, local, schedule) if engine is None else engine
    answer: Answer | None = None
    while (said := _next(turns, answer)) is not None:
        answer = None
        if isinstance(said, Job):
            answer = engine(*said)
        else:
            yield said


Turns = Generator[Job | Step, "Answer | None", None]


def _next(turns: Turns, answer: Answer | None) -> Job | Step | None:
    """What a run says next; None: it is over."""
    try:
        return turns.send(answer)
    except StopIteration:
        return None


def rounds(
    task: Task, strategy: Strategy, schedule: Schedule, local: LocalSGD, *, seed: int = 0, p: Tensor | None = None,
    init: str = "shared", state: Any = None, t: int = 0,
) -> Turns:  # fmt: skip
    """`simulate` without an engine: yields a `Job` wherever somebody is to be trained, is sent the engine's `Answer`,
    and yields a `Step` when a round is over. So one engine can serve many runs (`fedsim.lockstep`)."""
    if schedule.n != task.n:
        raise ValueError(f"schedule has {schedule.n} clients but the task has {task.n}; draw it with n={task.n}")
    strategy = prepare(strategy, task, schedule)
    state = begin(strategy, task, seed=seed, p=p, init=init) if state is None else state
    task = curricula.arranged(task, local.curriculum, seed)
    for now in range(t, len(schedule)):
        state, round = yield from turn(task, strategy, local, schedule[now], state, now, seed)
        model = strategy.model(state)
        sound(model, round)
        step = [Step(now, state, round, model, strategy.traffic(state, round))]
        del round, model  # many runs may wait for each other, and clients' moves are large: nothing is held meanwhile
        yield step.pop()


def dropping(turns: Turns, lost: Callable[[Job, int], None]) -> Turns:
    """The same rounds without the clients whose answers are not finite, as if they had not answered; `lost` is told
    what was asked, and of whom."""
    import torch

    answer: Answer | None = None
    while (said := _next(turns, answer)) is not None:
        answer = yield said
        if not isinstance(said, Job) or answer is None:
            continue
        sound = torch.isfinite(answer.delta).all(dim=1) & torch.isfinite(answer.loss)
        if bool(sound.all()):
            continue
        here = sound.cpu()
        for client in answer.who[~here].tolist():
            lost(said, client)
        span = None if answer.span is None else answer.span[sound]
        told = {name: value[sound] for name, value in answer.told.items()}
        answer = answer._replace(
            who=answer.who[here], delta=answer.delta[sound], span=span, loss=answer.loss[sound], told=told
        )


def play(
    task: Task, strategy: Strategy, engine: Engine, local: LocalSGD, row: Row, state: Any, t: int, seed: int
) -> tuple[Any, Round]:
    """One round by itself: the next state, and what reached the strategy."""
    asking = turn(task, strategy, local, row, state, t, seed)
    answer: Answer | None = None
    try:
        while True:
            answer = engine(*asking.send(answer))
    except StopIteration as over:
        found: tuple[Any, Round] = over.value
        return found


def turn(
    task: Task, strategy: Strategy, local: LocalSGD, row: Row, state: Any, t: int, seed: int
) -> Generator[Job, Answer | None, tuple[Any, Round]]:
    """One round: who is there -> what they are asked, if anything -> where they start -> train -> what to make of their
    moves."""
    import torch

    device = task.device
    available, chosen = row.available.to(device), row.chosen.to(device)
    picked = strategy.pick(state, available, chosen)
    who, effort, chance = row.chosen, row.effort, row.chance
    if picked is not chosen:  # the strategy's own choice: does all its work unless the schedule says otherwise
        who = picked.cpu().unique()  # ascending
        stray = set(who.tolist()) - set(row.available.tolist())
        if stray or len(who) < len(picked):
            what = f"client {min(stray)}, who is not available" if stray else "a client twice"
            raise ValueError(
                f"round {t}: {type(strategy).__name__}.pick chose {what}; pick each once, of those available"
            )
        share = dict(zip(row.chosen.tolist(), row.effort.tolist(), strict=True))
        effort = torch.tensor([share.get(i, 1.0) for i in who.tolist()])
        if chance is not None:  # known of those whom the schedule chose
            known = dict(zip(row.chosen.tolist(), chance.tolist(), strict=True))
            chance = torch.tensor([known[i] for i in who.tolist()]) if known.keys() >= set(who.tolist()) else None
    heard = effort > 0  # who drops out is never heard
    who, effort, chance = who[heard], effort[heard], None if chance is None else chance[heard].to(device)
    there = who.to(device)
    lr, keys = local.lr_at(t), keyed.fold(seed, "client", t, there)

    def reached(work: Work, answer: Answer) -> Round:
        """What reaches the strategy of an answer; who did not answer was absent."""
        round = Round(
            t, answer.who.to(device), work.start, answer.delta, answer.span, answer.loss, available, lr, None,
            answer.told, chance, None if bool((effort == 1).all()) else effort.to(device),
        )  # fmt: skip
        if len(answer.who) == len(who):
            return round
        answered = torch.isin(who, answer.who).to(device)
        return round._replace(
            start=work.start[answered],
            chance=None if chance is None else chance[answered],
            effort=None if round.effort is None else round.effort[answered],
        )

    question = strategy.survey(state, there) if len(who) else None
    if question is not None:
        answer = yield Job(task, who, question, keys, local, t, torch.zeros(len(who)))
        assert answer is not None
        state = strategy.surveyed(state, reached(question, answer))
    work = strategy.send(state, there)
    if not len(who):
        nothing = work.start.new_zeros(0)
        round = Round(t, there, work.start, work.start.clone(), nothing, nothing, available, lr, chance=chance)
        return strategy.step(state, round), round
    answer = yield Job(task, who, work, keys, local, t, effort)
    assert answer is not None
    round = reached(work, answer)
    return strategy.step(state, round), round


def finite(setting: Any, where: str) -> None:
    """Refuses NaN and infinity among the numbers of a strategy and its parts."""
    for field in fields(setting):
        value = getattr(setting, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{where}: {field.name} is {value}; give a number")
        if is_dataclass(value) and not isinstance(value, type):
            finite(value, f"{where}, {field.name}")


def sound(model: Tensor, round: Round) -> None:
    """Refuses to go on with a model that is not finite, naming whose update broke it."""
    import torch

    if bool(torch.isfinite(model.sum())) or bool(torch.isfinite(model).all()):
        return
    broken = round.who[~torch.isfinite(round.delta).all(dim=1)].tolist()
    whose = f"the update of client {broken[0]} is" if broken else "the aggregated model is"
    raise ValueError(
        f"round {round.t}: {whose} not finite (NaN or infinity); training diverged: lower the learning rate or set clip"
        + ('; on-divergence = "drop" leaves such clients out' if broken else "")
    )


def default_engine(task: Task, local: LocalSGD, schedule: Schedule, memory: int = 2**30) -> Engine:
    """The stacked engine with a chunk that suits the schedule's mean cohort and fits `memory` bytes."""
    from fedsim.engine import choose

    return choose(task, local, float(schedule.rates().sum()), memory)
