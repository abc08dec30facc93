"""Door 2: the loop with its clients behind a Grid is the loop with them here."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fedsim
from fedsim.engine import Answer, Loop
from fedsim.mixing import Metropolis
from fedsim.participation import Schedule
from fedsim.strategies import (
    DPSGD,
    MIFA,
    SCAFFOLD,
    FedAU,
    FedAvg,
    FedDyn,
    FedProx,
    FedRep,
    FedStale,
    FedVARP,
    GradientTracking,
    Mime,
    MimeLite,
    Personal,
    VarianceCorrection,
)
from fedsim.strategy import Strategy, Work
from fedsim.task import Task
from tests.helpers import contents

with warnings.catch_warnings():
    # typer, which flwr imports, uses a name that click 8.5 has renamed
    warnings.filterwarnings("ignore", message="'click.utils", category=DeprecationWarning)
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

    from fedsim.flower import InProcessGrid, client_app, over, wire, with_query

N, T, SEED = 6, 6, 3
PLAIN = fedsim.LocalSGD(lr=0.2, steps=3, batch=8)
HEAVY = fedsim.LocalSGD(lr=0.1, steps=3, batch=8, momentum=0.9)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def task() -> Task:
    return fedsim.federate("clusters", clients=N, model="logistic", seed=1)


@pytest.fixture(scope="module")
def schedule() -> Schedule:
    """Half of the clients, an empty round in the middle, and some that do a third of their work or drop out."""
    rng = np.random.default_rng(0)
    table = rng.random((T, N)) < 0.6
    table[2] = False
    effort = rng.choice([1.0, 1.0, 0.34, 0.0], size=(T, N))
    return Schedule.from_matrix(table, effort=effort, probabilities=np.full(N, 0.5))


class Post(InProcessGrid):
    """Node ids as random as Flower's, content serialised on its way, replies in any order; `loses(t, i)` are lost."""

    def __init__(
        self, app: ClientApp, n: int, loses: Callable[[int, int], bool] = lambda t, i: False, seed: int = 7
    ) -> None:
        self.rng = random.Random(seed)
        super().__init__(app, n, node_ids=[self.rng.getrandbits(63) for _ in range(n)])
        self.loses, self.seen, self.gone = loses, list[tuple[int, int]](), set[int]()
        self.queries = 0

    def get_node_ids(self) -> Iterable[int]:
        return {node for i, node in enumerate(self.node_ids) if i not in self.gone}

    def deliver(self, message: Message) -> Message | None:
        i = self.node_ids.index(message.metadata.dst_node_id)
        message.content = recorddict_from_proto(recorddict_to_proto(message.content))
        if message.metadata.message_type == MessageType.TRAIN:
            t = int(str(message.content.config_records["config"]["server-round"])) - 1
            self.seen.append((t, i))
            if self.loses(t, i):
                return None
        else:
            self.queries += 1
        reply = super().deliver(message)
        if reply is not None and reply.has_content():
            reply.content = recorddict_from_proto(recorddict_to_proto(reply.content))
        return reply

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        assert timeout is not None  # never an infinite wait
        replies = list(super().send_and_receive(messages, timeout=timeout))
        self.rng.shuffle(replies)
        return replies


def steps(
    task: Task, strategy: Strategy, schedule: Schedule, local: fedsim.LocalSGD, engine: Any
) -> list[dict[str, Any]]:
    """All that a round gave and left behind, round after round."""
    found = []
    for step in fedsim.simulate(task, strategy, schedule, local, seed=SEED, engine=engine):
        round = step.round
        found.append(
            contents(step.state, "state")
            | {name: contents(getattr(round, name)) for name in ("who", "start", "delta", "span", "loss", "lr")}
            | {"told": {name: value.clone() for name, value in round.told.items()}}
        )
    return found


def equal(one: Any, other: Any) -> None:
    """Bit for bit, whatever is in what."""
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for name in one:
            equal(one[name], other[name])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            equal(a, b)
    else:
        assert one == other


def ring() -> Metropolis:
    import networkx

    return Metropolis(graph=networkx.cycle_graph(N))


CASES: list[tuple[Strategy, fedsim.LocalSGD]] = [
    (FedAvg(), PLAIN),
    (FedAU(cutoff=3), PLAIN),
    (FedStale(), PLAIN),
    (FedVARP(), PLAIN),
    (MIFA(), PLAIN),
    (SCAFFOLD(), PLAIN),
    (FedProx(mu=0.3), HEAVY),
    (FedDyn(alpha=0.3, by_weight=True), HEAVY),
    (MimeLite(base="adam"), PLAIN),
    (Mime(), PLAIN),
    (FedRep(Personal(SCAFFOLD(), keep=("1.bias",)), head=0.5), PLAIN),
    (FedRep(Personal(MIFA(), keep=("1.bias",)), head=0.5), HEAVY),
    (Mime(base="adam"), PLAIN),
    (DPSGD(mixing=ring()), PLAIN),
    (DPSGD(mixing=ring(), order="atc"), HEAVY),
    (VarianceCorrection(inner=DPSGD(mixing=ring(), order="atc"), min_ndim=1), PLAIN),
    (GradientTracking(mixing=ring()), PLAIN),
]
NAMES = [f"{type(strategy).__name__}-{getattr(strategy, 'base', local.momentum)}" for strategy, local in CASES]


@pytest.mark.parametrize(("strategy", "local"), CASES, ids=NAMES)
def test_equals_the_native_loop_bit_for_bit(
    task: Task, schedule: Schedule, strategy: Strategy, local: fedsim.LocalSGD
) -> None:
    native = steps(task, strategy, schedule, local, Loop())
    grid = Post(client_app(task, local), N)
    equal(steps(task, strategy, schedule, local, over(grid)), native)
    asked = [(t, i) for t in range(T) for i, e in zip(*(x.tolist() for x in schedule[t][1:3]), strict=True) if e > 0]
    calls = 2 if isinstance(strategy, Mime) else 1  # Mime has a question first
    expected = [call for t in range(T) for call in [one for one in asked if one[0] == t] * calls]
    assert grid.seen == expected  # one call per client and round, in order, and nobody in the empty round
    assert {t for t, _ in asked} == {0, 1, 3, 4, 5}
    assert grid.queries == N  # who is who is asked once


def test_double_precision_and_clipping(schedule: Schedule) -> None:
    task = fedsim.federate("clusters", clients=N, model="logistic", seed=1, dtype=torch.float64)
    local = fedsim.LocalSGD(lr=0.2, steps=3, batch=8, clip=0.1)
    native = steps(task, MIFA(), schedule, local, Loop())
    equal(steps(task, MIFA(), schedule, local, over(Post(client_app(task, local), N))), native)
    assert native[0]["span"] == {"": None}


def test_the_stacked_engine_agrees_to_rounding(task: Task, schedule: Schedule) -> None:
    native = steps(task, SCAFFOLD(), schedule, PLAIN, fedsim.Stacked(chunk=4))
    remote = steps(task, SCAFFOLD(), schedule, PLAIN, over(Post(client_app(task, PLAIN), N)))
    torch.testing.assert_close(remote[-1]["state.x"], native[-1]["state.x"], rtol=1e-5, atol=1e-6)


def test_replies_as_models_agree_to_rounding(task: Task, schedule: Schedule) -> None:
    native = steps(task, FedVARP(), schedule, PLAIN, Loop())
    remote = steps(task, FedVARP(), schedule, PLAIN, over(Post(client_app(task, PLAIN), N), replies="arrays"))
    torch.testing.assert_close(remote[-1]["state.x"], native[-1]["state.x"], rtol=1e-5, atol=1e-6)


# Who does not answer usefully was absent ------------------------------------------------------------------------------


def spoilt(task: Task, spoil: Callable[[RecordDict], RecordDict], local: fedsim.LocalSGD = PLAIN) -> ClientApp:
    """Our clients, but client 4's reply in round 1 is changed."""
    good, app = client_app(task, local), ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        reply = good(message, context)
        if (message.content.config_records["config"]["server-round"], context.node_config["partition-id"]) == (2, 4):
            reply.content = spoil(reply.content)
        return reply

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return good(message, context)

    return app


def raises(content: RecordDict) -> RecordDict:
    raise RuntimeError("the disk of this client is full")


def changed(name: str, change: Callable[[np.ndarray[Any, Any]], Any]) -> Callable[[RecordDict], RecordDict]:
    def spoil(content: RecordDict) -> RecordDict:
        record = content.array_records[name]
        first = next(iter(record))
        record[first] = Array(np.ascontiguousarray(change(record[first].numpy().copy())))
        return content

    return spoil


def without(name: str) -> Callable[[RecordDict], RecordDict]:
    return lambda content: RecordDict({key: record for key, record in content.items() if key != name})


def full_of(value: float) -> Callable[[np.ndarray[Any, Any]], Any]:
    return lambda array: np.full_like(array, value)


FAULTS: list[tuple[Callable[[RecordDict], RecordDict], str]] = [
    (raises, "RuntimeError: the disk of this client is full"),
    (changed(wire.DELTA, full_of(np.nan)), "the update is not finite (NaN or infinity)"),
    (changed(wire.DELTA, full_of(np.inf)), "the update is not finite (NaN or infinity)"),
    (changed(wire.DELTA, np.transpose), "has shape"),
    (changed(wire.TOLD + "velocity", full_of(np.nan)), "the update is not finite (NaN or infinity)"),
    (without(wire.DELTA), "expected one ArrayRecord, got 0"),
    (without(wire.TOLD + "velocity"), "the reply lacks 'velocity', which was asked for"),
]


def everyone_but(t: int, i: int, rounds: int = 3) -> Schedule:
    table = np.ones((rounds, N), dtype=bool)
    if t >= 0:
        table[t, i] = False
    return Schedule.from_matrix(table)


GOSSIP = DPSGD(mixing=ring(), order="atc")


@pytest.mark.parametrize(("fault", "reason"), FAULTS, ids=[reason for _, reason in FAULTS])
def test_a_faulty_client_is_absent_for_the_round(
    task: Task, fault: Callable[[RecordDict], RecordDict], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    native = steps(task, GOSSIP, everyone_but(1, 4), HEAVY, Loop())
    engine = over(Post(spoilt(task, fault, HEAVY), N))
    equal(steps(task, GOSSIP, everyone_but(-1, 0), HEAVY, engine), native)
    ((t, client, node, why),) = engine.absences
    assert (t, client, node) == (1, 4, engine.roster.node_of[4])
    assert reason in why
    assert len([record for record in caplog.records if "counts as absent" in record.message]) == 1


@pytest.mark.parametrize(("fault", "reason"), [FAULTS[0], FAULTS[1]], ids=["raises", "NaN"])
def test_or_ends_the_run(task: Task, fault: Callable[[RecordDict], RecordDict], reason: str) -> None:
    engine = over(Post(spoilt(task, fault), N), on_failure="stop")
    with pytest.raises(ValueError, match=r"^round 1: client 4 \(node \d+\) failed: .*on_failure='absent'") as raised:
        steps(task, FedAU(), everyone_but(-1, 0), PLAIN, engine)
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_reply_that_does_not_come_in_time(task: Task) -> None:
    native = steps(task, FedAU(), everyone_but(1, 4), PLAIN, Loop())
    engine = over(Post(client_app(task, PLAIN), N, loses=lambda t, i: (t, i) == (1, 4)), timeout=5)
    equal(steps(task, FedAU(), everyone_but(-1, 0), PLAIN, engine), native)
    assert [(a.t, a.client, a.reason) for a in engine.absences] == [(1, 4, "no reply within 5 s")]


def test_a_round_in_which_nobody_answers(task: Task, schedule: Schedule) -> None:
    table = np.ones((3, N), dtype=bool)
    table[1] = False
    for strategy, local in ((FedAU(), PLAIN), (GOSSIP, HEAVY), (SCAFFOLD(), PLAIN)):
        native = steps(task, strategy, Schedule.from_matrix(table), local, Loop())
        engine = over(Post(client_app(task, local), N, loses=lambda t, i: t == 1))
        remote = steps(task, strategy, everyone_but(-1, 0), local, engine)
        equal([{k: v for k, v in step.items() if "state" in k} for step in remote],
              [{k: v for k, v in step.items() if "state" in k} for step in native])  # fmt: skip
        assert len(engine.absences) == N


def test_a_node_that_leaves_and_comes_back_as_another(task: Task) -> None:
    grid = Post(client_app(task, PLAIN), N)
    engine = over(grid)
    found = []
    for step in fedsim.simulate(task, FedVARP(), everyone_but(-1, 0, 4), PLAIN, seed=SEED, engine=engine):
        found.append(step.round.who.tolist())
        if step.t == 0:
            grid.gone.add(2)
        if step.t == 1:  # the same partition, another node id
            grid.gone.clear()
            old, grid.node_ids[2] = grid.node_ids[2], 12345
            grid.contexts[12345] = grid.contexts.pop(old)
    everybody = list(range(N))
    assert found == [everybody, [0, 1, 3, 4, 5], everybody, everybody]
    assert [(a.t, a.client, a.reason) for a in engine.absences] == [(1, 2, "its node is not there")]


def test_replies_that_nobody_asked_for_are_ignored(task: Task, schedule: Schedule) -> None:
    class Chatty(Post):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
            replies = list(super().send_and_receive(messages, timeout=timeout))
            again = copy.deepcopy([reply for reply in replies if trains(reply)])
            for reply in again:
                reply.content = changed(wire.DELTA, full_of(9))(reply.content)
            return [*replies, *again]

    def trains(reply: Message) -> bool:
        return reply.metadata.message_type == MessageType.TRAIN

    native = steps(task, FedAU(), schedule, PLAIN, Loop())
    equal(steps(task, FedAU(), schedule, PLAIN, over(Chatty(client_app(task, PLAIN), N))), native)


# Nodes ---------------------------------------------------------------------------------------------------------------


def test_missing_nodes_are_named(task: Task) -> None:
    grid = Post(client_app(task, PLAIN), N)
    grid.gone = {1, 4}
    line = (
        r"^no node came for clients 1, 4 of 6 within 0.2 s: start a SuperNode with --node-config \"partition-id=1 num"
    )
    engine = over(grid, patience=0.2)
    for _ in range(2):  # the second run waits as the first
        with pytest.raises(TimeoutError, match=line):
            steps(task, FedAvg(), everyone_but(-1, 0), PLAIN, engine)
    grid.gone = set()
    assert len(steps(task, FedAvg(), everyone_but(-1, 0), PLAIN, engine)) == 3


def test_nodes_that_come_late_are_waited_for(task: Task, schedule: Schedule) -> None:
    class Slow(Post):
        calls = 0

        def get_node_ids(self) -> Iterable[int]:
            self.calls += 1
            return sorted(super().get_node_ids())[: self.calls]

    native = steps(task, FedAU(), schedule, PLAIN, Loop())
    equal(steps(task, FedAU(), schedule, PLAIN, over(Slow(client_app(task, PLAIN), N), patience=2)), native)


def test_nodes_of_another_task_are_refused(task: Task) -> None:
    other = fedsim.federate("clusters", clients=N + 2, model="logistic", seed=1)
    with pytest.raises(OSError, match="is one of 8 partitions but the task has 6 clients"):
        steps(task, FedAvg(), everyone_but(-1, 0), PLAIN, over(Post(client_app(other, PLAIN), N + 2)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timeout": 0}, "timeout must be a positive number of seconds, got 0"),
        ({"patience": float("inf")}, "patience must be a positive number of seconds, got inf"),
        ({"on_failure": "wait"}, "on_failure must be 'absent' or 'stop', got 'wait'"),
        ({"replies": "both"}, "replies must be 'delta' or 'arrays', got 'both'"),
    ],
)
def test_mistakes_are_one_line(task: Task, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        over(InProcessGrid(client_app(task, PLAIN), N), **settings)


# A ClientApp of yours ------------------------------------------------------------------------------------------------


def yours(task: Task, honours: list[str] | None = None, seen: list[Any] | None = None) -> ClientApp:
    """As in Flower's tutorials: full-batch gradient descent in numpy's hands, arrays and num-examples back."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        i = int(context.node_config["partition-id"])
        if seen is not None:
            seen.append((i, sorted(message.content)))
        config = message.content.config_records["config"]
        model = torch.cat([torch.from_numpy(a.numpy()).flatten() for a in message.content["arrays"].values()])
        plain = fedsim.LocalSGD(lr=float(str(config["lr"])), steps=2, batch=None)
        moved = Loop()(task, torch.tensor([i]), Work(model[None]), torch.tensor([0]), plain).delta[0]
        parts = (model + moved).split(task.layout.sizes)
        arrays = ArrayRecord()
        for name, part, shape in zip(task.layout.names, parts, task.layout.shapes, strict=True):
            arrays[name] = Array(part.reshape(shape).numpy())
        metrics = MetricRecord({"num-examples": task.sizes[i], "train_loss": 0.5 + i})
        reply = RecordDict({"arrays": arrays, "metrics": metrics})
        if honours is not None:
            reply["config"] = ConfigRecord({"honoured": honours})
        return Message(reply, reply_to=message)

    return app


def by_hand(task: Task) -> Any:
    def train(
        task: Task, who: Tensor, work: Work, keys: Tensor, local: Any, t: int = 0, effort: Tensor | None = None
    ) -> Answer:
        plain = fedsim.LocalSGD(lr=0.3, steps=2, batch=None)
        return Loop()(task, who, Work(work.start), keys, plain)

    return train


@pytest.mark.parametrize(
    "strategy", [FedAU(), MIFA(), FedStale(), DPSGD(mixing=ring())], ids=lambda s: type(s).__name__
)
def test_runs_under_our_schedules_and_topologies(task: Task, strategy: Strategy) -> None:
    table = np.random.default_rng(2).random((T, N)) < 0.6
    schedule, seen = Schedule.from_matrix(table), list[Any]()
    grid = Post(with_query(yours(task, seen=seen)), N)
    engine = over(grid, config={"lr": 0.3})
    remote = steps(task, strategy, schedule, PLAIN, engine)
    native = steps(task, strategy, schedule, PLAIN, by_hand(task))
    torch.testing.assert_close(remote[-1]["state.x"], native[-1]["state.x"], rtol=1e-5, atol=1e-6)
    assert grid.seen == [(t, i) for t in range(T) for i in np.flatnonzero(table[t])]  # one call per client
    assert {tuple(names) for _, names in seen} == {("arrays", "config")}  # Flower's own message and nothing else
    assert remote[0]["loss"][""].tolist() == [0.5 + i for i in np.flatnonzero(table[0])]
    assert remote[0]["span"] == {"": None}
    assert {i: metrics["num-examples"] for i, metrics in engine.heard.items()} == {
        int(i): task.sizes[i] for i in np.flatnonzero(table[-1])
    }


def test_an_app_that_answers_no_query_is_numbered_by_node_id(task: Task) -> None:
    seen: list[Any] = []
    grid = Post(yours(task, seen=seen), N)
    table = np.zeros((1, N), dtype=bool)
    table[0, 0] = True
    steps(task, FedAvg(), Schedule.from_matrix(table), PLAIN, over(grid, config={"lr": 0.3}))
    assert [i for i, _ in seen] == [int(np.argmin(grid.node_ids))]


BEYOND = [(SCAFFOLD(), "shift"), (FedProx(mu=0.3), "mu"), (GOSSIP, "ask velocity")]


@pytest.mark.parametrize(("strategy", "what"), BEYOND, ids=[what for _, what in BEYOND])
def test_work_that_it_may_have_ignored_is_refused(task: Task, strategy: Strategy, what: str) -> None:
    for app in (yours(task), yours(task, honours=["scale"])):
        engine = over(Post(with_query(app), N), config={"lr": 0.3})
        with pytest.raises(ValueError, match=rf"more than where to start \({what}\)") as raised:
            steps(task, strategy, everyone_but(-1, 0), HEAVY if strategy is GOSSIP else PLAIN, engine)
        assert "\n" not in str(raised.value)


def test_so_is_partial_effort(task: Task) -> None:
    half = Schedule.from_matrix(np.ones((1, N), dtype=bool), effort=np.full((1, N), 0.5))
    with pytest.raises(ValueError, match=r"more than where to start \(effort\)"):
        steps(task, FedAvg(), half, PLAIN, over(Post(yours(task), N), config={"lr": 0.3}))


def test_unless_its_reply_says_that_it_honoured_it_or_the_query_said_so(task: Task) -> None:
    first = []
    for app in (with_query(yours(task, honours=["mu"])), with_query(yours(task), "mu")):
        first.append(steps(task, FedProx(mu=0.3), everyone_but(-1, 0), PLAIN, over(Post(app, N), config={"lr": 0.3})))
    equal(first[0], first[1])


def test_our_clients_say_what_they_honoured(task: Task) -> None:
    """Without being asked who they are, so that only the replies can say it."""
    good, app = client_app(task, PLAIN), ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return good(message, context)

    half = Schedule.from_matrix(np.ones((2, N), dtype=bool), effort=np.full((2, N), 0.5))
    native = steps(task, SCAFFOLD(), half, PLAIN, Loop())
    equal(steps(task, SCAFFOLD(), half, PLAIN, over(Post(with_query(app), N))), native)


def test_an_app_that_fails_at_work_it_never_claimed_to_understand_is_refused(task: Task) -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise KeyError("which of the two arrays?")

    with pytest.raises(ValueError, match=r"shift.*it failed with KeyError: 'which of the two arrays\?'"):
        steps(task, SCAFFOLD(), everyone_but(-1, 0), PLAIN, over(Post(app, N)))
