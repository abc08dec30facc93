"""Nodes that host many clients: one message per node and round, and the numbers of `simulate` bit for bit."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from fedsim.engine import Engine, Loop, Stacked, choose
from fedsim.participation import Schedule
from fedsim.strategies import SCAFFOLD, FedAU, FedAvg, FedProx, Mime
from fedsim.strategy import EXTRAS, Phase, Strategy, Work
from fedsim.task import Task

with warnings.catch_warnings():
    # typer, which flwr imports, uses a name that click 8.5 has renamed
    warnings.filterwarnings("ignore", message="'click.utils", category=DeprecationWarning)
    from flwr.app import ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    from fedsim.flower import FlowerStrategy, InProcessGrid, app, client_app, initial_arrays, over, runtimes, wire
    from fedsim.flower.client import hosted_by, hosting
    from fedsim.flower.roster import spans_of

from fedsim import compare, experiment
from tests.test_flower_over import CASES, GOSSIP, HEAVY, NAMES, PLAIN, SEED, N, Post, T, equal, everyone_but, steps
from tests.test_flower_runtimes import NEEDS_RAY, ROOT, Federation, measured, saved, tables

CHUNK = Stacked(4)
HOSTS = ("0-2,5", "3,4")
QUICK: dict[str, Any] = {"patience": 0.2}


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
    """Half of the clients, an empty round, one without the second node, and partial efforts, some of them none."""
    rng = np.random.default_rng(0)
    table = rng.random((T, N)) < 0.6
    table[2] = False
    table[4] = [True, True, False, False, False, True]
    effort = rng.choice([1.0, 1.0, 0.34, 0.0], size=(T, N))
    return Schedule.from_matrix(table, effort=effort, probabilities=np.full(N, 0.5))


class Hosts(Post):
    """Nodes with random ids that host these clients; content is serialised, replies come in any order."""

    def __init__(
        self, app: ClientApp, clients: Sequence[Any] = HOSTS, loses: Callable[[int, int], bool] = lambda t, i: False
    ) -> None:
        super().__init__(app, len(clients), loses)
        for node, mine in zip(self.node_ids, clients, strict=True):
            self.contexts[node].node_config = mine if isinstance(mine, dict) else {"clients": mine}


ENGINES: list[Engine] = [Loop(), CHUNK]


@pytest.mark.parametrize("engine", ENGINES, ids=["Loop", "Stacked"])
@pytest.mark.parametrize(("strategy", "local"), CASES, ids=NAMES)
def test_equals_the_native_run_bit_for_bit(
    task: Task, schedule: Schedule, strategy: Strategy, local: fedsim.LocalSGD, engine: Engine
) -> None:
    native = steps(task, strategy, schedule, local, engine)
    grid = Hosts(client_app(task, local, engine=engine))
    equal(steps(task, strategy, schedule, local, over(grid, **QUICK)), native)
    hosted = [{0, 1, 2, 5}, {3, 4}]
    asked = [[i for i, e in zip(*(x.tolist() for x in schedule[t][1:3]), strict=True) if e > 0] for t in range(T)]
    expected = [(t, j) for t in range(T) for j in range(2) if hosted[j] & set(asked[t])]
    assert sorted(grid.seen) == sorted(
        expected * (2 if isinstance(strategy, Mime) else 1)
    )  # one message per round and node with somebody asked
    assert [t for t, _ in expected].count(2) == 0
    assert [t for t, _ in expected].count(4) == 1
    assert grid.queries == 2


@pytest.mark.parametrize("hosts", [("0-5",), ("0", "1", "2", "3", "4", 5), ("1,3,5", "0,2,4")])
def test_whoever_hosts_whom(
    task: Task, schedule: Schedule, hosts: Sequence[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default engine too is the same for every division: that of a run in which all are there, chosen once."""
    native, cohorts = steps(task, SCAFFOLD(), schedule, PLAIN, choose(task, PLAIN, N)), list[float]()

    def chosen(task: Task, local: fedsim.LocalSGD, cohort: float) -> Engine:
        cohorts.append(cohort)
        return choose(task, local, cohort)

    monkeypatch.setattr("fedsim.flower.client.choose", chosen)
    equal(steps(task, SCAFFOLD(), schedule, PLAIN, over(Hosts(client_app(task, PLAIN), hosts), **QUICK)), native)
    assert cohorts == [N]


def test_beside_nodes_with_one_client(task: Task, schedule: Schedule) -> None:
    one: list[Any] = [{"partition-id": i, "num-partitions": N} for i in (4, 3)]
    native = steps(task, GOSSIP, schedule, HEAVY, Loop())
    grid = Hosts(client_app(task, HEAVY, engine=Loop()), (one[0], "0-2,5", one[1]))
    equal(steps(task, GOSSIP, schedule, HEAVY, over(grid, **QUICK)), native)


def test_double_precision_and_clipping(schedule: Schedule) -> None:
    task = fedsim.federate("clusters", clients=N, model="logistic", seed=1, dtype=torch.float64)
    local = fedsim.LocalSGD(lr=0.2, steps=3, batch=8, clip=0.1)
    native = steps(task, FedProx(mu=0.3), schedule, local, CHUNK)
    equal(
        steps(task, FedProx(mu=0.3), schedule, local, over(Hosts(client_app(task, local, engine=CHUNK)), **QUICK)),
        native,
    )
    assert native[0]["span"] == {"": None}


X = torch.linspace(-1, 1, 12).reshape(4, 3)
WORKS = {
    "plain": Work(X),
    "one start": Work(X[:1].expand(4, -1)),
    "equal starts": Work(X[:1].repeat(4, 1)),
    "numbers": Work(X, shift=0.25, scale=0.5, mu=0.1),
    "vectors": Work(X, shift=X * 2, scale=torch.tensor([[0.5], [1.0], [0.1], [2.0]]), velocity=X * 3, ask=EXTRAS),
    "each parameter": Work(X, scale=X[:1] * 2),
    "each client's parameters": Work(X, scale=X * 2, other=X, against=X * 3),
    "each client's second point": Work(X, other=X, against=torch.tensor([[0.5], [0.0], [0.1], [2.0]])),
    "phases": Work(
        X,
        phases=(
            Phase(0.25, torch.tensor([True, False, True]), counts=False),
            Phase(0.5, torch.tensor([False, False, True])),
            Phase(0.25, torch.tensor([True, True, True])),
        ),
    ),
    "own pulls": Work(X, mu=torch.tensor([[0.5], [0.0], [0.1], [2.0]])),
    "in common": Work(X, shift=X[:1] * 2, scale=torch.tensor([[0.5]]), velocity=X[:1].repeat(4, 1)),
    "two points": Work(X, other=X * 4, against=0.7),
    "two points in common": Work(X, other=X[:1].expand(4, -1), against=0.1),
    "without a dimension": Work(X, shift=torch.tensor(0.25), scale=torch.tensor(0.5)),
}


@pytest.mark.parametrize("rows", [[0, 2, 3], [1]])
@pytest.mark.parametrize("name", WORKS)
def test_all_of_the_work_arrives(name: str, rows: list[int]) -> None:
    """Each client's row of what the strategy says is its row of what the node gets, to the bit."""
    from fedsim.task import Layout

    form = wire.Form.of_layout(Layout(("a", "b"), (torch.Size((2,)), torch.Size(()))), torch.float32)
    keys, efforts = [2**63 - 1, -(2**63), 0][: len(rows)], [0.1, 1.0, 0.34][: len(rows)]
    work, content = WORKS[name], RecordDict()
    records = wire.pack_cohort(form, work, rows, t=7, who=rows, keys=keys, efforts=efforts)
    for at, record in records.items():
        content[at] = record
    if name in ("one start", "equal starts"):  # sent once
        assert content.array_records["arrays"]["a"].numpy().shape == (2,)
    there = wire.unpack_cohort(form, content, torch.device("cpu"))
    assert (there.t, there.who.tolist(), there.keys.tolist()) == (7, rows, keys)
    assert torch.equal(there.efforts, torch.tensor(efforts))
    assert there.work.ask == work.ask
    assert len(there.work.phases) == len(work.phases)
    for said, got in zip(work.phases, there.work.phases, strict=True):
        assert (said.share, said.counts) == (got.share, got.counts)
        assert torch.equal(said.free, got.free)
    for field in ("start", "shift", "scale", "mu", "velocity", "other", "against"):
        said, got = getattr(work, field), getattr(there.work, field)
        if isinstance(said, torch.Tensor):
            assert isinstance(got, torch.Tensor), field
            assert torch.equal(said.expand(4, 3)[rows], got.expand(len(rows), 3)), field
        else:
            assert said == got, field


# Who does not answer usefully was absent ------------------------------------------------------------------------------


def without(rounds: int, t: int, absent: set[int]) -> Schedule:
    table = np.ones((rounds, N), dtype=bool)
    table[t, sorted(absent)] = False
    return Schedule.from_matrix(table)


def spoilt(task: Task, spoil: Callable[[RecordDict], None], local: fedsim.LocalSGD) -> ClientApp:
    """Our clients, but in round 1 the reply of the node with client 4 is changed."""
    good, made = client_app(task, local, engine=CHUNK), ClientApp()

    @made.train()
    def train(message: Message, context: Context) -> Message:
        reply = good(message, context)
        config = message.content.config_records
        if config["config"]["server-round"] == 2 and 4 in hosted_by(context):
            spoil(reply.content)
        return reply

    @made.query()
    def query(message: Message, context: Context) -> Message:
        return good(message, context)

    return made


def raises(content: RecordDict) -> None:
    raise RuntimeError("the disk of this node is full")


def spoil_row(name: str, row: int) -> Callable[[RecordDict], None]:
    def spoil(content: RecordDict) -> None:
        record = content.array_records[name]
        first = next(iter(record))
        values = record[first].numpy().copy()
        values[row] = np.nan
        record[first] = wire.array(torch.from_numpy(values), values.dtype)

    return spoil


def drop(name: str) -> Callable[[RecordDict], None]:
    def spoil(content: RecordDict) -> None:
        del content[name]

    return spoil


def says(**ours: Any) -> Callable[[RecordDict], None]:
    def spoil(content: RecordDict) -> None:
        content.config_records[wire.OURS].update(ours)

    return spoil


def short(content: RecordDict) -> None:
    content["metrics"] = MetricRecord({**content.metric_records["metrics"], "loss": [1.0]})


FAULTS: list[tuple[Callable[[RecordDict], None], set[int], str]] = [
    (raises, {3, 4}, "RuntimeError: the disk of this node is full"),
    (spoil_row(wire.DELTA, 1), {4}, "the update is not finite (NaN or infinity)"),
    (spoil_row(wire.TOLD + "velocity", 0), {3}, "the update is not finite (NaN or infinity)"),
    (drop(wire.DELTA), {3, 4}, "the reply lacks 'fedsim.delta'"),
    (drop(wire.TOLD + "velocity"), {3, 4}, "the reply lacks 'velocity', which was asked for"),
    (says(who=[3]), {3, 4}, "has shape"),
    (says(who=[]), {3, 4}, "the reply of its node is without it"),
    (says(who=[3, 0]), {3, 4}, "the reply is of client 0, which was not asked"),
    (says(who=[3, 3]), {3, 4}, "the reply has a client twice"),
    (short, {3, 4}, "the metric 'loss' has 1 values for 2 clients"),
]


@pytest.mark.parametrize(("fault", "absent", "reason"), FAULTS, ids=[f"{r}-{len(a)}" for _, a, r in FAULTS])
def test_a_fault_is_of_its_client_or_of_all_of_the_node(
    task: Task, fault: Callable[[RecordDict], None], absent: set[int], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    native = steps(task, GOSSIP, without(3, 1, absent), HEAVY, CHUNK)
    engine = over(Hosts(spoilt(task, fault, HEAVY)), **QUICK)
    equal(steps(task, GOSSIP, everyone_but(-1, 0), HEAVY, engine), native)
    assert {(a.t, a.client, a.node) for a in engine.absences} == {
        (1, client, engine.grid.node_ids[1])  # type: ignore[attr-defined]
        for client in absent
    }
    assert all(reason in a.reason for a in engine.absences)
    assert len([record for record in caplog.records if "as absent" in record.message]) == 1


def test_a_client_that_the_node_s_engine_leaves_out(task: Task) -> None:
    def engine(task: Task, who: Any, work: Work, keys: Any, *more: Any) -> Any:
        answer = CHUNK(task, who, work, keys, *more)
        here = who != 3
        assert answer.span is not None
        return answer._replace(
            who=who[here], delta=answer.delta[here], span=answer.span[here], loss=answer.loss[here], told={}
        )

    native = steps(task, FedAU(), Schedule.from_matrix(np.ones((2, N), dtype=bool) & (np.arange(N) != 3)), PLAIN, CHUNK)
    made = over(Hosts(client_app(task, PLAIN, engine=engine)), **QUICK)
    equal(steps(task, FedAU(), everyone_but(-1, 0, 2), PLAIN, made), native)
    assert [(a.client, a.reason) for a in made.absences] == [(3, "the reply of its node is without it")] * 2


def test_or_ends_the_run(task: Task) -> None:
    engine = over(Hosts(spoilt(task, raises, PLAIN)), on_failure="stop", **QUICK)
    with pytest.raises(ValueError, match=r"^round 1: client 3 \(node \d+\) failed: RuntimeError: the disk") as raised:
        steps(task, FedAU(), everyone_but(-1, 0), PLAIN, engine)
    assert "\n" not in str(raised.value)


def test_a_node_that_is_silent_gone_and_back_as_another(task: Task) -> None:
    grid = Hosts(client_app(task, PLAIN, engine=CHUNK), loses=lambda t, i: (t, i) == (1, 1))
    engine, found = over(grid, timeout=5, **QUICK), []
    for step in fedsim.simulate(task, FedAU(), everyone_but(-1, 0, 4), PLAIN, seed=SEED, engine=engine):
        found.append(step.round.who.tolist())
        if step.t == 1:
            grid.gone.add(1)
        if step.t == 2:  # the same clients, another node id
            grid.gone.clear()
            old, grid.node_ids[1] = grid.node_ids[1], 12345
            grid.contexts[12345] = grid.contexts.pop(old)
    assert found == [list(range(N)), [0, 1, 2, 5], [0, 1, 2, 5], list(range(N))]
    assert [(a.t, a.client, a.reason) for a in engine.absences] == [
        (t, i, why) for t, why in ((1, "no reply within 5 s"), (2, "its node is not there")) for i in (3, 4)
    ]


# Who hosts whom ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hosts", "message"),
    [
        (("0-2", "4"), r"no node came for clients 3, 5 of 6 within 0.2 s: .*--node-config 'clients=\"3,5\"', or wait"),
        (("0-3", "2-5"), r"clients 2, 3 are with several nodes, \d+, \d+; give each client to one node"),
        (("0-5", {"partition-id": 5, "num-partitions": N}), r"client 5 is with several nodes, \d+, \d+; give"),
        (("0-2", "3-7"), r"node \d+ hosts clients 6, 7 but the task has 6 clients, 0 to 5"),
        (("0-2", "3-"), r"node \d+ does not say which clients it hosts: clients must be numbers and ranges such as"),
        (("0-5", "4-3"), r"clients must be numbers and ranges such as \"0-3,7\", got '4-3'"),
        (("0-2", "3-5,4"), r"clients names a client twice: '3-5,4'"),
    ],
)
def test_mistakes_are_one_line_that_names_them(task: Task, hosts: Sequence[Any], message: str) -> None:
    with pytest.raises(OSError, match=message) as raised:  # TimeoutError is one
        steps(task, FedAvg(), everyone_but(-1, 0), PLAIN, over(Hosts(client_app(task, PLAIN), hosts), **QUICK))
    assert "\n" not in str(raised.value)


def test_clients_in_words() -> None:
    context = Context(1, 1, {"clients": "7, 0-3,12-12"}, RecordDict(), {})
    assert hosted_by(context) == [0, 1, 2, 3, 7, 12]
    assert spans_of(hosted_by(context)) == "0-3,7,12"
    context.node_config["clients"] = 7  # what Flower makes of clients=7
    assert hosted_by(context) == [7]


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        (MessageType.TRAIN, RecordDict(), "the message is for one client and this node hosts many; use .*over"),
        (MessageType.EVALUATE, RecordDict(), "the node hosts many clients, which is for training with fedsim"),
    ],
)
def test_messages_of_flower_s_own_strategies_are_refused(
    task: Task, kind: str, content: RecordDict, message: str
) -> None:
    grid = Hosts(client_app(task, PLAIN))
    (reply,) = InProcessGrid.send_and_receive(
        InProcessGrid(client_app(task, PLAIN), 1, clients=["0-5"]), [Message(content, 1, kind)]
    )
    assert re.search(message, reply.error.reason)
    assert grid.seen == []


def test_our_strategies_in_flower_s_loop_refuse_them(task: Task) -> None:
    grid = InProcessGrid(client_app(task, PLAIN), 2, clients=["0-2", "3-5"])
    with pytest.raises(ValueError, match=r"^node 1 hosts many clients, which is for fedsim\.flower\.over; start"):
        FlowerStrategy(FedAU()).start(grid, initial_arrays(task), num_rounds=1, timeout=5)


def test_work_for_clients_of_another_node_is_refused(task: Task) -> None:
    form = wire.Form.of_layout(task.layout, task.dtype)
    content = RecordDict({"config": ConfigRecord({"server-round": 1})})
    work = Work(task.fresh(0)[None])
    for name, record in wire.pack_cohort(form, work, [0], t=0, who=[4], keys=[1], efforts=[1.0]).items():
        content[name] = record
    (reply,) = InProcessGrid(client_app(task, PLAIN), 1, clients=["0-3"]).send_and_receive(
        [Message(content, 1, MessageType.TRAIN)]
    )
    assert "asks client 4, whom this node does not host" in reply.error.reason


# The app -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_an_experiment_is_what_it_is_without_flower(engine: str) -> None:
    """With the experiment's own engine, to the bit: the server says which chunk it runs in."""
    made = experiment.parse(tables(engine=engine))
    grid = InProcessGrid(app.client, 2, clients=HOSTS)
    assert measured(app.played(made, lambda: grid, patience=0.2)) == measured(compare.compare(made))


@pytest.mark.parametrize("nodes", [1, 2, 5])
def test_clients_divided_over_nodes(nodes: int) -> None:
    made = experiment.parse(tables("FedAU", "DPSGD", engine="stacked"))
    grid = InProcessGrid(hosting(app.client, 6), nodes)
    assert measured(app.played(made, lambda: grid, patience=0.2)) == measured(compare.compare(made))
    assert grid.sent <= nodes * (1 + 2 * 4)


RAY = """
from fedsim import compare, experiment
from fedsim.flower import runtimes

made = experiment.load("{path}")
events = list(runtimes.events(made, "flower-simulation", nodes=2))
measured = [sorted((e for e in some if isinstance(e, compare.Measured)), key=lambda e: e[:3])
            for some in (events, compare.compare(made))]
assert measured[0] == measured[1]
heard = [e for e in events if isinstance(e, compare.Heard)]
print(len({{said["node"] for e in heard for said in e.replies.values()}}))
print(len({{said["pid"] for e in heard for said in e.replies.values()}} - {{__import__("os").getpid()}}) > 0)
"""


@NEEDS_RAY
@pytest.mark.runtimes
def test_flower_s_simulation_with_a_node_per_worker(tmp_path: Path) -> None:
    path = saved(tmp_path, "FedAU", "DPSGD", engine="stacked", rounds=2)
    done = subprocess.run(
        [sys.executable, "-c", RAY.format(path=path)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2", "True"]


def test_more_nodes_than_clients() -> None:
    made = experiment.parse(tables("FedAU"))
    with pytest.raises(ValueError, match="nodes must be from 1 to the 6 clients, got 7"):
        list(runtimes.events(made, "flower-simulation", nodes=7))


@pytest.mark.runtimes
def test_a_federation_of_supernodes_with_many_clients(tmp_path: Path) -> None:
    """The whole way: SuperLink and two SuperNodes, six clients."""
    made = experiment.load(saved(tmp_path, "FedAU", "SCAFFOLD", engine="stacked", rounds=2))
    federation = Federation(tmp_path, 2, held=['clients="0-2,5"', 'clients="3,4"'])
    try:
        events = list(runtimes.events(made, "flower", superlink=federation.address, timeout=60.0))
    finally:
        federation.close()
    assert measured(events) == measured(compare.compare(made))
    assert not [event for event in events if isinstance(event, compare.Absent)]
    heard = [said["node"] for event in events if isinstance(event, compare.Heard) for said in event.replies.values()]
    assert len(set(heard)) == 2
    assert len(heard) > 4


@pytest.mark.parametrize("runs", [[1, 1], [1, 3], [2, 2, 3, 1], []])
def test_phases_that_do_not_say_of_every_parameter_are_refused(runs: list[int]) -> None:
    config = {"phases": [1.0], "phases-count": [1], "phases-free": runs}
    with pytest.raises(wire.Unfit, match="of 3 parameters which move"):
        wire.phases_unpacked(config, 3, torch.device("cpu"))
