"""The Flower room: our strategies and clients through flwr's message API give what the native loop gives."""

from __future__ import annotations

import copy
import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fedsim
from fedsim.engine import Loop
from fedsim.participation import Schedule
from fedsim.rows import Rows
from fedsim.strategies import (
    DPSGD,
    MIFA,
    SCAFFOLD,
    SCAFFOLDM,
    SCAFFOLDMVR,
    FedAdagrad,
    FedAdam,
    FedAU,
    FedAvg,
    FedAvgM,
    FedDyn,
    FedProx,
    FedRep,
    FedStale,
    FedVARP,
    FedYogi,
    MimeLite,
    Personal,
    ServerLR,
    VarianceCorrection,
)
from fedsim.strategy import Round, ServerStrategy, Strategy, Work
from fedsim.task import Task
from fedsim.weights import All, Equal, Known

with warnings.catch_warnings():
    # typer, which flwr imports, uses a name that click 8.5 has renamed
    warnings.filterwarnings("ignore", message="'click.utils", category=DeprecationWarning)
    from flwr.app import (
        Array,
        ArrayRecord,
        ConfigRecord,
        Context,
        Error,
        Message,
        MessageType,
        MetricRecord,
        RecordDict,
    )
    from flwr.clientapp import ClientApp
    from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
    from flwr.serverapp import strategy as stock

    from fedsim.flower import FlowerStrategy, InProcessGrid, client_app, initial_arrays, wire
    from fedsim.flower.memory import reweighed

N, T, SEED = 6, 7, 3
LOCAL = fedsim.LocalSGD(lr=0.2, steps=3, batch=8)
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def task() -> Task:
    return fedsim.federate("clusters", clients=N, model="logistic", seed=1)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def schedule() -> Schedule:
    """Half of the clients, with empty rounds at the beginning and in the middle, and client 5 not before round 4."""
    table = np.random.default_rng(0).random((T, N)) < 0.5
    table[[0, 3]] = False
    table[:4, 5] = False
    table[4:, 5] = True
    return Schedule.from_matrix(table, probabilities=np.full(N, 0.5))


class Lossy(InProcessGrid):
    """Node ids as random as Flower's, replies in any order, and train messages answered only by whom `present` names.

    Content is serialised on its way, as by a real grid.
    """

    def __init__(self, app: ClientApp, n: int, present: Callable[[int, int], bool] = lambda t, i: True) -> None:
        rng = random.Random(7)
        super().__init__(app, n, node_ids=[rng.getrandbits(63) for _ in range(n)])
        self.present, self.rng, self.asked = present, rng, [0] * n

    def get_node_ids(self) -> Iterable[int]:
        return set(self.node_ids)

    def deliver(self, message: Message) -> Message | None:
        i = self.node_ids.index(message.metadata.dst_node_id)
        message.content = recorddict_from_proto(recorddict_to_proto(message.content))
        if message.metadata.message_type == MessageType.TRAIN:
            t, self.asked[i] = self.asked[i], self.asked[i] + 1  # everybody is asked in every round
            if not self.present(t, i):
                return None
        reply = super().deliver(message)
        if reply is not None and reply.has_content():
            reply.content = recorddict_from_proto(recorddict_to_proto(reply.content))
        return reply

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        replies = list(super().send_and_receive(messages, timeout=timeout))
        self.rng.shuffle(replies)
        return replies


def native(task: Task, strategy: Strategy, schedule: Schedule, **settings: Any) -> Any:
    """The last step of the native loop."""
    *_, last = fedsim.simulate(task, strategy, schedule, LOCAL, seed=SEED, engine=Loop(), **settings)
    return last


def through_flower(task: Task, strategy: Strategy, schedule: Schedule, **settings: Any) -> FlowerStrategy:
    flower = FlowerStrategy(strategy, seed=SEED, fraction_evaluate=0.0, **settings)
    grid = Lossy(client_app(task, LOCAL), task.n, lambda t, i: i in schedule[t].chosen)
    flower.start(grid, initial_arrays(task, SEED), num_rounds=len(schedule))
    return flower


def leaves(state: Any) -> list[Tensor]:
    if isinstance(state, Rows):
        return [state.dense(), state.total, state.p]
    if isinstance(state, Tensor):
        return [state]
    return [leaf for part in state for leaf in leaves(part)] if isinstance(state, tuple) else []


# Door 3 over door 1 is the native loop --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curious(ServerStrategy):
    """Tells everything there is to tell, and uses every answer."""

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> Any:
        return FedAvg().init(x, p, key)

    def send(self, s: Any, who: Tensor) -> Work:
        shift = 0.01 * torch.sin(who[:, None] + torch.arange(len(s.x)))
        ask = frozenset({"gradient-at-start", "loss-at-start"})
        return Work(s.x.expand(len(who), -1), shift=shift, scale=0.5 + 0.1 * who[:, None].float(), mu=0.1, ask=ask)

    def step(self, s: Any, r: Round) -> Any:
        if not len(r.who):
            return s
        told = r.told["gradient-at-start"].mean(0) * r.told["loss-at-start"].mean() * r.span.mean() * r.lr
        return s._replace(x=s.x + r.delta.mean(0) + told * r.loss.mean())


STRATEGIES = [
    FedAvg(),
    FedAvg(weights=All()),
    FedAvg(weights=Known(probabilities=(0.5,) * N)),
    FedAU(cutoff=3),
    FedStale(),
    FedVARP(),
    MIFA(),
    SCAFFOLD(),
    SCAFFOLDM(beta=0.5),
    SCAFFOLDMVR(beta=0.5),
    MimeLite(),
    FedDyn(alpha=0.3, by_weight=True),
    MimeLite(base="adam"),
    FedProx(mu=0.3),
    FedProx(inner=FedAdam(inner=MIFA())),
    FedAdam(),
    ServerLR(FedYogi(FedAvgM(MIFA()))),
    Curious(),
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_equals_the_native_loop_bit_for_bit(task: Task, schedule: Schedule, strategy: Strategy) -> None:
    flower, last = through_flower(task, strategy, schedule), native(task, strategy, schedule)
    assert flower.t == T
    assert torch.equal(flower.strategy.model(flower.state), last.model)
    for ours, theirs in zip(leaves(flower.state), leaves(last.state), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("phases", [False, True])
def test_parts_that_clients_keep_equal_the_native_loop_s(task: Task, schedule: Schedule, phases: bool) -> None:
    strategy: Any = Personal(MIFA(), layout=task.layout)
    strategy = FedRep(strategy, head=0.5) if phases else strategy
    flower, last = through_flower(task, strategy, schedule), native(task, strategy, schedule)
    who = torch.arange(N)
    assert torch.equal(strategy.own(flower.state, who), strategy.own(last.state, who))
    assert not torch.equal(strategy.own(flower.state, who[:1]), strategy.own(flower.state, who[1:2]))


def test_a_uniform_objective(task: Task, schedule: Schedule) -> None:
    flower = through_flower(task, FedAU(), schedule, objective="uniform")
    last = native(task, FedAU(), schedule, p=task.weights("uniform"))
    assert torch.equal(flower.state.x, last.model)
    assert not torch.equal(flower.state.x, native(task, FedAU(), schedule).model)


def test_replies_as_models_agree_to_rounding(task: Task, schedule: Schedule) -> None:
    flower = through_flower(task, SCAFFOLD(), schedule, replies="arrays")
    torch.testing.assert_close(flower.state.x, native(task, SCAFFOLD(), schedule).model, rtol=1e-5, atol=1e-6)


# Who does not answer usefully was absent ------------------------------------------------------------------------------


def broken_app(task: Task, spoil: Callable[[int, int, RecordDict], RecordDict]) -> ClientApp:
    """Our clients, but what they train with is changed by spoil(t, client, reply)."""
    good, app = client_app(task, LOCAL), ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        t = int(str(message.content.config_records["config"]["server-round"])) - 1
        reply = good(message, context)
        return Message(spoil(t, int(context.node_config["partition-id"]), reply.content), reply_to=message)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return good(message, context)

    return app


def raises(content: RecordDict) -> RecordDict:
    raise RuntimeError("the disk of this client is full")


def with_arrays(content: RecordDict, change: Callable[[ArrayRecord], None]) -> RecordDict:
    change(content.array_records[wire.DELTA])
    return content


def poison(value: float) -> Callable[[RecordDict], RecordDict]:
    def change(record: ArrayRecord) -> None:
        name = next(iter(record))
        array = record[name].numpy()
        array.flat[0] = value
        record[name] = Array(array)

    return lambda content: with_arrays(content, change)


def reshape(content: RecordDict) -> RecordDict:
    def change(record: ArrayRecord) -> None:
        name = next(iter(record))
        record[name] = Array(record[name].numpy().T)

    return with_arrays(content, change)


def to_integers(content: RecordDict) -> RecordDict:
    def change(record: ArrayRecord) -> None:
        name = next(iter(record))
        record[name] = Array(record[name].numpy().astype(np.int64))

    return with_arrays(content, change)


def truncate(content: RecordDict) -> RecordDict:
    def change(record: ArrayRecord) -> None:
        array = record[next(iter(record))]
        array.data = array.data[:-3]

    return with_arrays(content, change)


def without_a_name(content: RecordDict) -> RecordDict:
    return with_arrays(content, lambda record: record.pop(next(iter(record))) and None)


def with_a_name(content: RecordDict) -> RecordDict:
    return with_arrays(content, lambda record: record.__setitem__("extra", Array(np.zeros(2))))


def no_arrays(content: RecordDict) -> RecordDict:
    return RecordDict({"metrics": content.metric_records["metrics"]})


def examples(count: float) -> Callable[[RecordDict], RecordDict]:
    def change(content: RecordDict) -> RecordDict:
        content.metric_records["metrics"]["num-examples"] = count
        return content

    return change


FAULTS = [
    (raises, "the disk of this client is full"),
    (poison(np.nan), "not finite"),
    (poison(-np.inf), "not finite"),
    (reshape, "has shape"),
    (to_integers, "is int64, not floating point"),
    (truncate, "cannot be read"),
    (without_a_name, "lacks array"),
    (with_a_name, "unknown array 'extra'"),
    (no_arrays, "expected one ArrayRecord, got 0"),
    (examples(0), "num-examples must be a positive number, got 0"),
    (examples(np.nan), "num-examples must be a positive number, got nan"),
]


@pytest.mark.parametrize(("fault", "reason"), FAULTS, ids=[reason for _, reason in FAULTS])
def test_a_faulty_client_is_absent_for_the_round(
    task: Task, fault: Callable[[RecordDict], RecordDict], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    def spoil(t: int, i: int, content: RecordDict) -> RecordDict:
        return fault(content) if (t, i) == (1, 4) else content

    flower = FlowerStrategy(FedVARP(), seed=SEED, fraction_evaluate=0.0)
    flower.start(InProcessGrid(broken_app(task, spoil), N), initial_arrays(task, SEED), num_rounds=3)
    table = np.ones((3, N), dtype=bool)
    table[1, 4] = False
    assert torch.equal(flower.state.x, native(task, FedVARP(), Schedule.from_matrix(table)).model)
    ((t, client, node, why),) = flower.absences
    assert (t, client, node) == (1, 4, 5)
    assert reason in why
    assert len([record for record in caplog.records if "counts as absent" in record.message]) == 1


def test_when_everybody_fails_the_run_goes_on(task: Task) -> None:
    flower = FlowerStrategy(FedAU(), fraction_evaluate=0.0)
    grid = InProcessGrid(broken_app(task, lambda t, i, content: raises(content)), N)
    start = initial_arrays(task)
    result = flower.start(grid, start, num_rounds=2)
    assert {absence.client for absence in flower.absences} == set(range(N))
    for name in start:
        np.testing.assert_array_equal(result.arrays[name].numpy(), start[name].numpy())
    assert flower.state.intervals.S.tolist() == [2] * N


def test_answers_nobody_asked_for_are_ignored(task: Task, caplog: pytest.LogCaptureFixture) -> None:
    """A second answer, and one of a node that was not asked, change nothing."""

    class Chatty(InProcessGrid):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
            messages = list(messages)
            replies = list(super().send_and_receive(messages, timeout=timeout))
            if not messages or messages[0].metadata.message_type != MessageType.TRAIN:
                return replies
            asked = {message.metadata.dst_node_id for message in messages}
            (other, *_) = set(self.node_ids) - asked
            replies.append(Message(poison(1e9)(copy.deepcopy(replies[0].content)), reply_to=messages[0]))
            uninvited = Message(copy.deepcopy(messages[0].content), other, MessageType.TRAIN)
            return [*replies, *super().send_and_receive([uninvited])]

    def run(kind: type[InProcessGrid]) -> Tensor:
        flower = FlowerStrategy(FedAvg(), seed=SEED, fraction_evaluate=0.0, fraction_train=0.5)
        flower.start(kind(client_app(task, LOCAL), N), initial_arrays(task, SEED), num_rounds=2)
        return flower.state.x

    expected = run(InProcessGrid)
    caplog.clear()
    assert torch.equal(run(Chatty), expected)
    assert len([record for record in caplog.records if "had none to give" in record.message]) == 4


def test_a_model_that_overflows_stops_the_run(task: Task) -> None:
    huge = broken_app(task, lambda t, i, content: poison(3e38)(content))
    with pytest.raises(ValueError, match="not finite"):
        FlowerStrategy(FedAvg(weights=Equal(), lr=9.0)).start(
            InProcessGrid(huge, N), initial_arrays(task), num_rounds=1
        )


# Anybody's ClientApp --------------------------------------------------------------------------------------------------


def stock_app(understands: Sequence[str] | None = None, seen: list[Any] | None = None) -> ClientApp:
    """An app that knows nothing of fedsim: moves towards its own number, and answers as Flower's tutorials do."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if seen is not None:
            seen.append({name: dict(record) for name, record in message.content.config_records.items()})
        (record,) = message.content.array_records.values()
        names = list(record)
        arrays = [record.pop(name).numpy() for name in names]  # as to_numpy_ndarrays(keep_input=False): legal
        i = int(context.node_config["partition-id"])
        rate = np.float32(0.3)
        arrays = [np.asarray(a + rate * (i - a) if a.dtype.kind == "f" else a + 1) for a in arrays]
        reply = ArrayRecord()
        for name, a in zip(names, arrays, strict=True):
            a = np.require(a, requirements="F") if i % 2 else np.asarray(a, dtype=a.dtype.newbyteorder(">"))
            reply[name] = Array(np.asarray(a, dtype=np.float64) if i == 2 and a.dtype.itemsize == 2 else a)
        metrics = MetricRecord({"num-examples": 10 * (i + 1), "train_loss": float(i)})
        return Message(RecordDict({"model": reply, "m": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        i = int(context.node_config["partition-id"])
        metrics = MetricRecord({"num-examples": i + 1, "accuracy": float(i), "both": [1.0, float(i)]})
        return Message(RecordDict({"m": metrics}), reply_to=message)

    if understands is not None:

        @app.query()
        def query(message: Message, context: Context) -> Message:
            i = int(context.node_config["partition-id"])
            record = ConfigRecord({"partition-id": i, "num-partitions": N, "understands": list(understands)})
            return Message(RecordDict({"me": record}), reply_to=message)

    return app


def stock_arrays(kind: str = "f4") -> ArrayRecord:
    rng = np.random.default_rng(1)
    out = ArrayRecord()
    out["conv"] = Array(np.asfortranarray(rng.standard_normal((3, 4, 2))).astype(kind))
    out["scalar"] = Array(np.asarray(0.5, dtype=kind))
    out["none"] = Array(np.zeros((0, 3), dtype=kind))
    out["vector"] = Array(rng.standard_normal(5).astype(kind))
    return out


def assert_close(a: ArrayRecord, b: ArrayRecord, rtol: float = 1e-6) -> None:
    assert list(a) == list(b)
    for name in a:  # Flower's FedAdam turns single into double precision; ours keeps what it was given
        assert a[name].numpy().shape == b[name].numpy().shape
        np.testing.assert_allclose(a[name].numpy(), b[name].numpy(), rtol=rtol, atol=1e-6)


def sometimes(t: int, i: int) -> bool:
    """Everybody in turn, so that most clients are heard of late; never nobody."""
    return (t + i) % 4 < 2


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (FedAvg(), stock.FedAvg),
        (FedAdam(lr=0.1, beta1=0.9, beta2=0.99, tau=1e-3, bias_correction=True), stock.FedAdam),
        (FedAdagrad(), stock.FedAdagrad),
        (FedYogi(), stock.FedYogi),
        (FedAvgM(lr=0.5, momentum=0.9), partial(stock.FedAvgM, server_learning_rate=0.5, server_momentum=0.9)),
        (FedAvgM(momentum=0.0), stock.FedAvgM),
    ],
    ids=["FedAvg", "FedAdam", "FedAdagrad", "FedYogi", "FedAvgM", "FedAvgM by default"],
)
@pytest.mark.parametrize("present", [lambda t, i: True, sometimes], ids=["everyone", "sometimes"])
def test_equals_flower_s_own_aggregation(
    ours: Strategy, theirs: Callable[..., stock.FedAvg], present: Callable[[int, int], bool]
) -> None:
    """On the same replies, whose numbers of examples are learned as clients are heard for the first time."""
    mine = FlowerStrategy(ours).start(Lossy(stock_app(), N, present), stock_arrays(), num_rounds=5)
    grid = Lossy(stock_app(), N, present)
    other = theirs(min_available_nodes=N).start(grid, stock_arrays(), num_rounds=5)
    assert_close(mine.arrays, other.arrays)
    assert all(array.dtype == "float32" for array in mine.arrays.values())
    assert mine.train_metrics_clientapp.keys() == other.train_metrics_clientapp.keys()
    for t, metrics in other.train_metrics_clientapp.items():
        assert dict(mine.train_metrics_clientapp[t]) == pytest.approx(dict(metrics))
    for t, metrics in other.evaluate_metrics_clientapp.items():
        found = mine.evaluate_metrics_clientapp[t]
        assert found.keys() == metrics.keys()
        for name, value in metrics.items():
            assert found[name] == pytest.approx(value)


def test_counters_are_sent_along_and_half_precision_accumulates_in_single() -> None:
    start = stock_arrays("f2")
    start["num_batches_tracked"] = Array(np.asarray(7, dtype=np.int64))
    flower = FlowerStrategy(FedAvg())
    result = flower.start(InProcessGrid(stock_app(), N), start, num_rounds=2)
    assert list(result.arrays) == list(start)
    assert result.arrays["num_batches_tracked"].numpy() == 7
    assert result.arrays["conv"].numpy().dtype == np.float16
    assert flower.state.x.dtype == torch.float32
    assert flower.absences == []
    mean = sum(10 * (i + 1) * i for i in range(N)) / sum(10 * (i + 1) for i in range(N))
    expected = start["vector"].numpy() * 0.49 + mean * 0.51
    np.testing.assert_allclose(result.arrays["vector"].numpy(), expected, rtol=4e-3)


def test_clients_move_from_where_they_really_began() -> None:
    """Half precision rounds what is sent; a client that returns just that has not moved."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        reply = RecordDict({"a": message.content.array_records["arrays"], "m": MetricRecord({"num-examples": 1})})
        return Message(reply, reply_to=message)

    flower, grid = FlowerStrategy(FedAvg(), fraction_evaluate=0.0), InProcessGrid(app, N)
    result = flower.start(grid, stock_arrays("f2"), num_rounds=1)
    flower.state = flower.state._replace(x=flower.state.x + 1e-5)
    x = flower.state.x.clone()
    flower.start(grid, result.arrays, num_rounds=1)
    assert torch.equal(flower.state.x, x)


def test_nobody_s_message_is_emptied_by_another() -> None:
    grid = InProcessGrid(stock_app(), N)
    flower = FlowerStrategy(FedAvg())
    messages = list(flower.configure_train(1, stock_arrays(), ConfigRecord(), grid))
    assert len({id(message.content.array_records["arrays"]) for message in messages}) == N
    shared = stock.FedAvg(min_available_nodes=N).start(grid, stock_arrays(), num_rounds=2)  # one RecordDict for all
    assert_close(shared.arrays, flower.start(grid, stock_arrays(), num_rounds=2).arrays)


def test_double_precision_stays_double() -> None:
    flower = FlowerStrategy(FedAvg())
    flower.start(InProcessGrid(stock_app(), N), stock_arrays("f8"), num_rounds=1)
    assert flower.state.x.dtype == torch.float64


def test_work_beyond_the_start_is_refused_unless_understood() -> None:
    with pytest.raises(ValueError, match=r"^SCAFFOLD tells clients more .*\(shift\).*client 0 \(node 1\)") as refusal:
        FlowerStrategy(SCAFFOLD()).start(InProcessGrid(stock_app(), N), stock_arrays(), num_rounds=1)
    assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match=r"\(mu\)"):
        FlowerStrategy(FedProx(mu=0.1)).start(InProcessGrid(stock_app(["shift"]), N), stock_arrays(), num_rounds=1)
    seen: list[Any] = []
    FlowerStrategy(FedProx(mu=0.1)).start(InProcessGrid(stock_app(["mu"], seen), N), stock_arrays(), num_rounds=1)
    assert [message[wire.OURS]["mu"] for message in seen] == [0.1] * N
    FlowerStrategy(FedProx(mu=0.0)).start(InProcessGrid(stock_app(), N), stock_arrays(), num_rounds=1)


def test_an_app_of_others_gets_flower_s_own_message_only() -> None:
    seen: list[Any] = []
    config = ConfigRecord({"lr": 0.1})
    FlowerStrategy(FedAU()).start(InProcessGrid(stock_app(seen=seen), N), stock_arrays(), 2, train_config=config)
    assert seen == [{"config": {"lr": 0.1, "server-round": t}} for t in (1, 2) for _ in range(N)]
    assert dict(config) == {"lr": 0.1}


def test_examples_that_are_missing_are_no_matter_where_nobody_needs_them() -> None:
    app, good = ClientApp(), stock_app()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        reply = good(message, context)
        del reply.content.metric_records["m"]["num-examples"]
        return reply

    flower = FlowerStrategy(FedAvg(), fraction_evaluate=0.0)
    flower.start(InProcessGrid(app, N), stock_arrays(), num_rounds=1)
    assert {absence.reason for absence in flower.absences} == {"num-examples must be a positive number, got None"}
    flower = FlowerStrategy(FedAvg(), objective="uniform", fraction_evaluate=0.0)
    result = flower.start(InProcessGrid(app, N), stock_arrays(), num_rounds=1)
    assert flower.absences == []
    assert dict(result.train_metrics_clientapp[1]) == {"train_loss": 2.5}


def test_weights_learned_late_reach_every_state() -> None:
    p, q = torch.full((3,), 1 / 3, dtype=torch.float64), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    x, who = torch.zeros(4), torch.tensor([0, 2])
    for strategy in (FedAvg(), FedAU(), FedStale(), FedAdam(inner=MIFA()), FedAvg(weights=Known(probabilities=0.5))):
        delta = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
        round = Round(0, who, x.expand(2, -1), delta, torch.ones(2), torch.zeros(2))
        moved = strategy.step(strategy.init(x.clone(), p), round)
        model = strategy.model(moved).clone()
        new = reweighed(moved, strategy.init(x.clone(), p), strategy.init(x.clone(), q))
        assert torch.equal(strategy.model(new), model)  # what is done is done
        as_if = strategy.step(strategy.init(x.clone(), q), round)
        for found, expected in zip(leaves(new), leaves(as_if), strict=True):
            if len(found) == 3 or found.dtype == torch.float64:  # p, memories and their means; not x
                torch.testing.assert_close(found, expected)
    fresh, other = FedAvg().init(x, p), FedAvg().init(x, q)
    with pytest.raises(ValueError, match="objective='uniform'"):
        reweighed(fresh._replace(weights=fresh.weights._replace(p=p * 2)), fresh, other)


# Who is who -----------------------------------------------------------------------------------------------------------


def test_sampling_follows_the_seed_and_the_clients_not_the_node_ids(task: Task) -> None:
    def who(grid: InProcessGrid, seed: int) -> list[list[int]]:
        asked: list[list[int]] = []

        class Watched(FlowerStrategy):
            def configure_train(self, *arguments: Any) -> Iterable[Message]:
                messages = list(super().configure_train(*arguments))
                asked.append([self.roster.client_of[message.metadata.dst_node_id] for message in messages])
                return messages

        flower = Watched(FedAvg(), seed=seed, fraction_train=0.5, fraction_evaluate=0.0, min_train_nodes=1)
        flower.start(grid, initial_arrays(task), num_rounds=4)
        return asked

    app = client_app(task, LOCAL)
    random.seed(1)
    first = who(InProcessGrid(app, N), 0)
    assert [len(row) for row in first] == [3] * 4
    assert all(row == sorted(row) for row in first)
    assert len({tuple(row) for row in first}) > 1
    random.seed(2)
    assert who(Lossy(app, N), 0) == first
    assert who(InProcessGrid(app, N), 1) != first


class Changing(InProcessGrid):
    """A grid whose nodes come and go: `online` says which, round by round. `start` sends twice a round."""

    def __init__(self, app: ClientApp, n: int, online: Sequence[Sequence[int]], partitions: dict[int, int]) -> None:
        super().__init__(app, n)
        self.online, self.sendings = online, 0
        for node, partition in partitions.items():
            config = {"partition-id": partition, "num-partitions": n}
            self.contexts[node] = Context(1, node, config, RecordDict(), {})

    def get_node_ids(self) -> Iterable[int]:
        return list(self.online[min(self.sendings // 2, len(self.online) - 1)])

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        messages = list(messages)
        replies = super().send_and_receive(messages, timeout=timeout)
        self.sendings += all(message.metadata.message_type != MessageType.QUERY for message in messages)
        return replies


def test_late_joiners_and_nodes_that_come_back_by_partition(task: Task, caplog: pytest.LogCaptureFixture) -> None:
    """Partition 2 joins in round 1; partition 0 comes back in round 2 as node 70, and is still client 0."""
    online = [[1, 2, 4, 5, 6], [1, 2, 3, 4, 5, 6], [70, 2, 3, 4, 5, 6]]
    grid = Changing(client_app(task, LOCAL), N, online, {70: 0})
    flower = FlowerStrategy(FedVARP(weights=Known(probabilities=0.9)), seed=SEED, fraction_evaluate=0.0)
    flower.start(grid, initial_arrays(task, SEED), num_rounds=3)
    assert flower.roster.n == N
    assert flower.roster.node_of == {0: 70, 1: 2, 2: 3, 3: 4, 4: 5, 5: 6}
    assert flower.state.h.seen().all()
    assert torch.equal(flower.p, task.weights())  # the count of client 2 was learned when it joined
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_two_nodes_with_one_partition(task: Task, caplog: pytest.LogCaptureFixture) -> None:
    grid = Changing(client_app(task, LOCAL), N, [[1, 2, 3, 70]], {70: 0})
    flower = FlowerStrategy(FedAvg(), fraction_evaluate=0.0)
    flower.start(grid, initial_arrays(task), num_rounds=1)
    assert flower.roster.node_of == {0: 70, 1: 2, 2: 3}
    assert flower.roster.here(grid) == [0, 1, 2]
    assert "nodes 1 and 70 both hold partition 0" in caplog.text


def test_late_joiners_by_order(caplog: pytest.LogCaptureFixture) -> None:
    online = [[2, 4, 5], [1, 2, 4, 5], [1, 2, 3, 4, 5]]
    grid = Changing(stock_app(), N, online, {})
    flower = FlowerStrategy(FedAU(), num_clients=4, fraction_evaluate=0.0)
    flower.start(grid, stock_arrays(), num_rounds=3)
    assert flower.roster.client_of == {2: 0, 4: 1, 5: 2, 1: 3}
    assert flower.state.intervals.M.tolist() == [3, 3, 3, 2]
    assert len([r for r in caplog.records if "node 3 is left out: the run began with n = 4" in r.message]) == 1


def test_nodes_that_appear_at_once_are_numbered_by_their_ids() -> None:
    flower, grid = FlowerStrategy(FedAvg(), fraction_evaluate=0.0), Lossy(stock_app(), N)
    flower.start(grid, stock_arrays(), num_rounds=1)
    assert flower.roster.client_of == {node: i for i, node in enumerate(sorted(grid.node_ids))}


@pytest.mark.parametrize("error", [None, Error(4)], ids=["silence", "unavailable"])
def test_a_node_that_the_query_misses_is_asked_again(task: Task, error: Error | None) -> None:
    class Deaf(InProcessGrid):
        queries = 0

        def deliver(self, message: Message) -> Message | None:
            if message.metadata.message_type == MessageType.QUERY and message.metadata.dst_node_id == 3:
                self.queries += 1
                if self.queries == 1:
                    return None if error is None else Message(error, reply_to=message)
            return super().deliver(message)

    flower = FlowerStrategy(FedAU(), fraction_evaluate=0.0)
    grid = Deaf(client_app(task, LOCAL), N)
    flower.start(grid, initial_arrays(task), num_rounds=3)
    assert flower.state.intervals.M.tolist() == [3, 3, 2, 3, 3, 3]
    assert grid.queries == 2


def test_too_few_nodes_is_one_clear_error(task: Task) -> None:
    flower = FlowerStrategy(FedAvg(), min_available_nodes=9, patience=0.05)
    with pytest.raises(TimeoutError, match=r"^only 6 of 9 nodes were there after 0.05 s; start more"):
        flower.start(InProcessGrid(client_app(task, LOCAL), N), initial_arrays(task), num_rounds=1)


def test_later_rounds_wait_for_nobody(task: Task) -> None:
    online = [[1, 2, 3, 4, 5, 6], [], [1, 2]]
    flower = FlowerStrategy(MIFA(), seed=SEED, min_available_nodes=N, fraction_evaluate=0.0)
    flower.start(Changing(client_app(task, LOCAL), N, online, {}), initial_arrays(task, SEED), num_rounds=3)
    table = np.zeros((3, N), dtype=bool)
    table[0], table[2, :2] = True, True
    assert torch.equal(flower.state.x, native(task, MIFA(), Schedule.from_matrix(table)).model)


# Settings and memory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FlowerStrategy(DPSGD()), "DPSGD is gossip"),
        (lambda: FlowerStrategy(VarianceCorrection()), "DPSGD is gossip"),
        (lambda: FlowerStrategy(FedAU), "takes a strategy of fedsim such as FedAU\\(\\), got FedAU"),
        (lambda: FlowerStrategy(FedAU(), objective="all"), "objective must be 'examples' or 'uniform', got 'all'"),
        (lambda: FlowerStrategy(FedAU(), replies="models"), "replies must be 'delta' or 'arrays'"),
        (lambda: FlowerStrategy(FedAU(), fraction_train=1.5), "fraction_train must be between 0 and 1"),
        (lambda: FlowerStrategy(FedAU(), num_clients=0), "num_clients must be at least 1"),
        (lambda: FlowerStrategy(FedAU()).save("nowhere"), "nothing to save"),
        (lambda: FlowerStrategy(FedAU()).aggregate_train(1, []), "before configure_train"),
        (lambda: client_app(None, LOCAL, evaluate="all"), "evaluate must be"),  # type: ignore[arg-type]
        (lambda: InProcessGrid(ClientApp(), 2, node_ids=[1, 1]), "2 different node ids"),
    ],
)
def test_mistakes_are_one_line(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as mistake:
        make()
    assert "\n" not in str(mistake.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros(3, dtype=np.int64)}, "no floating-point array"),
        ({"a": np.full(3, np.nan, dtype=np.float32)}, "initial arrays hold NaN"),
    ],
)
def test_impossible_initial_arrays(arrays: dict[str, np.ndarray], message: str) -> None:
    record = ArrayRecord({name: Array(value) for name, value in arrays.items()})
    with pytest.raises(ValueError, match=message):
        FlowerStrategy(FedAvg()).start(InProcessGrid(stock_app(), N), record, num_rounds=1)


@pytest.mark.parametrize("strategy", [FedAU(cutoff=3), FedStale(), SCAFFOLD(), FedAdam(inner=MIFA())], ids=repr)
def test_a_restored_run_is_the_uninterrupted_one(
    task: Task, schedule: Schedule, strategy: Strategy, tmp_path: Path
) -> None:
    whole = through_flower(task, strategy, schedule)

    def grid(first: int) -> Lossy:
        return Lossy(client_app(task, LOCAL), N, lambda t, i: i in schedule[first + t].chosen)

    before = FlowerStrategy(strategy, seed=SEED, fraction_evaluate=0.0)

    def keep(t: int, arrays: ArrayRecord) -> None:
        if t:
            before.save(tmp_path / "checkpoint")

    before.start(grid(0), initial_arrays(task, SEED), num_rounds=3, evaluate_fn=keep)
    after = FlowerStrategy(strategy, seed=SEED, fraction_evaluate=0.0).restore(tmp_path / "checkpoint")
    after.start(grid(3), initial_arrays(task, 99), num_rounds=T - 3)  # an empty round first
    assert after.t == T
    for ours, theirs in zip(leaves(after.state), leaves(whole.state), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match="with seed 5"):
        FlowerStrategy(strategy, seed=5).restore(tmp_path / "checkpoint").start(grid(3), initial_arrays(task), 1)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        FlowerStrategy(strategy).restore(tmp_path / "other")
    (tmp_path / "text").write_text("no checkpoint")
    with pytest.raises(ValueError, match="not a checkpoint"):
        FlowerStrategy(strategy).restore(tmp_path / "text").start(grid(3), initial_arrays(task), 1)


def test_a_restored_run_by_order_keeps_its_clients(tmp_path: Path) -> None:
    def rounds(flower: FlowerStrategy, online: Sequence[Sequence[int]]) -> FlowerStrategy:
        flower.start(Changing(stock_app(), N, online, {}), stock_arrays(), num_rounds=len(online))
        return flower

    kept = rounds(FlowerStrategy(FedStale(), fraction_evaluate=0.0, num_clients=5), [[4, 5], [2, 4, 5]])
    kept.save(tmp_path / "checkpoint")
    again = FlowerStrategy(FedStale(), fraction_evaluate=0.0, min_available_nodes=1, min_train_nodes=1)
    rounds(again.restore(tmp_path / "checkpoint"), [[1, 2, 4]])
    assert again.roster.client_of == {4: 0, 5: 1, 2: 2, 1: 3}
    assert again.roster.examples == {0: 40.0, 1: 50.0, 2: 20.0, 3: 10.0}


def test_a_client_that_joins_after_a_restore_gets_its_weight(task: Task, tmp_path: Path) -> None:
    kept = FlowerStrategy(FedStale(), fraction_evaluate=0.0)
    kept.start(Changing(client_app(task, LOCAL), N, [[1, 2, 3]], {}), initial_arrays(task), num_rounds=2)
    kept.save(tmp_path / "checkpoint")
    again = FlowerStrategy(FedStale(), fraction_evaluate=0.0).restore(tmp_path / "checkpoint")
    again.start(InProcessGrid(client_app(task, LOCAL), N), initial_arrays(task), num_rounds=1)
    assert not torch.equal(kept.state.weights.p, task.weights())
    assert torch.equal(again.state.weights.p, task.weights())
    assert torch.equal(again.state.h.p, task.weights())


def test_starting_again_goes_on(task: Task, schedule: Schedule) -> None:
    flower = FlowerStrategy(FedAU(), seed=SEED, fraction_evaluate=0.0)
    grid = Lossy(client_app(task, LOCAL), N, lambda t, i: i in schedule[t].chosen)
    result = flower.start(grid, initial_arrays(task, SEED), num_rounds=3)
    flower.start(grid, result.arrays, num_rounds=T - 3)
    assert torch.equal(flower.state.x, native(task, FedAU(), schedule).model)


def test_arrays_that_a_wrapper_changed_become_the_model(task: Task) -> None:
    """As Flower's differential privacy wrappers do: clip what clients answer, add noise to what comes out."""
    inner = FlowerStrategy(MIFA(), seed=SEED, fraction_evaluate=0.0, replies="arrays")
    wrapper = stock.DifferentialPrivacyServerSideFixedClipping(
        inner, noise_multiplier=0.0, clipping_norm=1e6, num_sampled_clients=N
    )
    wrapper.start(InProcessGrid(client_app(task, LOCAL), N), initial_arrays(task, SEED), num_rounds=3)
    close = native(task, MIFA(), Schedule(N, 3)).model
    torch.testing.assert_close(inner.state.x, close, rtol=1e-5, atol=1e-6)

    inner = FlowerStrategy(FedAvg(), seed=SEED, fraction_evaluate=0.0)
    grid = InProcessGrid(client_app(task, LOCAL), N)
    start = initial_arrays(task, SEED)
    replies = grid.send_and_receive(inner.configure_train(1, start, ConfigRecord(), grid))
    inner.aggregate_train(1, replies)
    zeros = ArrayRecord({name: Array(np.zeros_like(array.numpy())) for name, array in start.items()})
    messages = list(inner.configure_train(2, zeros, ConfigRecord(), grid))
    assert not inner.state.x.any()
    assert not messages[0].content.array_records["arrays"]["1.weight"].numpy().any()


# Door 1 alone ---------------------------------------------------------------------------------------------------------


def test_our_clients_under_flower_s_own_strategy(task: Task) -> None:
    """With plain Flower around it a client draws its minibatches as in `simulate`, (seed, server-round, client)."""
    grid = InProcessGrid(client_app(task, LOCAL, seed=SEED, evaluate="test"), N)
    result = stock.FedAvg(min_available_nodes=N).start(grid, initial_arrays(task, SEED), num_rounds=3)
    last = native(task, FedAvg(), Schedule(N, 3))
    layout = wire.Form.of_layout(task.layout, task.dtype)
    torch.testing.assert_close(layout.flat(result.arrays), last.model, rtol=1e-5, atol=1e-6)
    found = result.evaluate_metrics_clientapp[3]
    expected = fedsim.measure.test(task, last.model)
    assert found["loss"] == pytest.approx(expected["test_loss"], rel=1e-5)
    assert found["accuracy"] == pytest.approx(expected["test_accuracy"])
    config = ConfigRecord({"seed": SEED})
    grid = InProcessGrid(client_app(task, LOCAL), N)
    again = stock.FedAvg(fraction_evaluate=0.0, min_available_nodes=N)
    random.seed(0)
    second = again.start(grid, initial_arrays(task, SEED), num_rounds=3, train_config=config)
    assert_close(second.arrays, result.arrays, rtol=1e-5)


def test_flower_s_fedprox_is_ours(task: Task) -> None:
    """It only says "proximal-mu" in the config, and leaves it to the client to go by it."""
    grid = InProcessGrid(client_app(task, LOCAL, seed=SEED), N)
    quiet: dict[str, Any] = {"fraction_evaluate": 0.0, "min_available_nodes": N}
    result = stock.FedProx(proximal_mu=0.7, **quiet).start(grid, initial_arrays(task, SEED), num_rounds=3)
    form = wire.Form.of_layout(task.layout, task.dtype)
    last = native(task, FedProx(mu=0.7), Schedule(N, 3)).model
    torch.testing.assert_close(form.flat(result.arrays), last, rtol=1e-5, atol=1e-6)
    assert (last - native(task, FedAvg(), Schedule(N, 3)).model).abs().max() > 1e-3
    span = result.train_metrics_clientapp[1]["span"]
    assert span == pytest.approx(LOCAL.span(LOCAL.count(task.sizes[0]), 0, 0.7), rel=1e-5)


@pytest.mark.parametrize("mu", [float("nan"), -1.0, "much", True])
def test_a_proximal_mu_that_is_none(task: Task, mu: Any) -> None:
    content = RecordDict({"arrays": initial_arrays(task), "config": ConfigRecord({"proximal-mu": mu})})
    (reply,) = InProcessGrid(client_app(task, LOCAL), N).send_and_receive([Message(content, 1, MessageType.TRAIN)])
    assert "proximal-mu must be a number from 0, got" in reply.error.reason


def test_one_mu_is_enough(task: Task) -> None:
    strategy = FlowerStrategy(FedProx(mu=0.3), fraction_evaluate=0.0)
    config = ConfigRecord({"proximal-mu": 0.3})
    grid = InProcessGrid(client_app(task, LOCAL), N)
    strategy.start(grid, initial_arrays(task), num_rounds=1, train_config=config)
    assert {a.reason for a in strategy.absences} == {
        "ValueError: the strategy's mu and the config's proximal-mu say the same thing; leave one out"
    }


def test_flower_s_qfedavg_finds_the_loss(task: Task) -> None:
    """Under the name train_loss."""
    grid = InProcessGrid(client_app(task, LOCAL, seed=SEED), N)
    made = stock.QFedAvg(client_learning_rate=LOCAL.lr, q=0.5, fraction_evaluate=0.0, min_available_nodes=N)
    result = made.start(grid, initial_arrays(task, SEED), num_rounds=2)
    for round in (1, 2):
        metrics = result.train_metrics_clientapp[round]
        assert metrics["train_loss"] == metrics["loss"]
    form = wire.Form.of_layout(task.layout, task.dtype)
    assert (form.flat(result.arrays) - task.fresh(0)).abs().max() > 1e-3


def test_evaluation_on_their_own_examples_is_the_objective(task: Task) -> None:
    flower = FlowerStrategy(FedAvg())
    result = flower.start(InProcessGrid(client_app(task, LOCAL), N), initial_arrays(task), num_rounds=2)
    found = result.evaluate_metrics_clientapp[2]["loss"]
    assert found == pytest.approx(fedsim.measure.objective(task, flower.state.x), rel=1e-5)


def test_a_task_made_from_the_context(task: Task) -> None:
    built: list[Any] = []

    def make(context: Context) -> Task:
        built.append(context.run_config["data"])
        return task

    grid = InProcessGrid(client_app(make, LOCAL), N, data="mine")
    FlowerStrategy(FedAvg(), fraction_evaluate=0.0).start(grid, initial_arrays(task), num_rounds=1)
    assert built == ["mine"] * 2 * N  # a query and a train message each


@pytest.mark.parametrize(
    ("config", "message"),
    [({}, "no partition-id; start it with"), ({"partition-id": N}, f"partition-id {N} but the task has the clients")],
)
def test_a_node_that_is_no_client(task: Task, config: dict[str, int], message: str) -> None:
    grid = InProcessGrid(client_app(task, LOCAL), 1)
    grid.contexts[1].node_config = config  # type: ignore[assignment]
    (reply,) = grid.send_and_receive([Message(RecordDict(), 1, MessageType.TRAIN)])
    assert message in reply.error.reason


def test_a_velocity_travels_there_and_back(task: Task) -> None:
    local = fedsim.LocalSGD(lr=0.1, steps=2, batch=8, momentum=0.9)
    form = wire.Form.of_layout(task.layout, task.dtype)
    x = task.fresh(0)
    velocity = torch.linspace(-1, 1, len(x))[None]
    who, keys = torch.tensor([2]), torch.tensor([12345])
    work = Work(x[None], velocity=velocity, ask=frozenset({"velocity"}), shift=0.25, scale=torch.tensor([[0.5]]))
    expected = Loop()(task, who, work, keys, local)
    content = RecordDict({"arrays": form.record(x)})
    for name, record in wire.pack_work(form, work, 0, t=0, key=12345, reply="delta").items():
        content[name] = record
    grid = Lossy(client_app(task, local), N)
    (reply,) = grid.send_and_receive([Message(content, grid.node_ids[2], MessageType.TRAIN)])
    arrays = reply.content.array_records
    assert torch.equal(form.flat(arrays[wire.DELTA]), expected.delta[0])
    assert torch.equal(form.flat(arrays[wire.TOLD + "velocity"]), expected.told["velocity"][0])
    assert reply.content.metric_records["metrics"]["span"] == float(expected.span[0])


# The house ------------------------------------------------------------------------------------------------------------


def test_sending_nothing_is_answered_by_nothing(task: Task) -> None:
    assert list(InProcessGrid(client_app(task, LOCAL), N).send_and_receive([])) == []


def test_importing_fedsim_does_not_import_flwr() -> None:
    code = (
        "import fedsim, fedsim.strategies, fedsim.simulation, sys; assert 'flwr' not in sys.modules, 'flwr came along'"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_flwr_is_imported_in_one_room_and_its_private_names_in_one_file() -> None:
    for path in (ROOT / "fedsim").rglob("*.py"):
        if path.name == "with_flower.py":  # drives Flower as a rival, in an environment where fedsim is not
            continue
        lines = [line.strip() for line in path.read_text().splitlines()]
        theirs = [line for line in lines if line.startswith(("import flwr", "from flwr"))]
        assert not theirs or "flower" in path.relative_to(ROOT / "fedsim").parts, path
        public = ("from flwr.app ", "from flwr.serverapp ", "from flwr.clientapp ")
        private = [line for line in theirs if not line.startswith(public)]
        assert not private or path.name == "private.py", (path, private)


EXAMPLE = """
import fedsim
from fedsim.flower import FlowerStrategy, client_app, initial_arrays
from flwr.serverapp import ServerApp

task = fedsim.federate("digits", clients=10)
client = client_app(task, fedsim.LocalSGD(lr=0.1, steps=5))  # or any ClientApp of yours
server = ServerApp()

@server.main()
def main(grid, context):
    strategy = FlowerStrategy(fedsim.strategies.FedAU(cutoff=50), fraction_train=0.5)
    print(strategy.start(grid, initial_arrays(task), num_rounds=3))
"""


def test_the_readme_s_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(EXAMPLE.strip().splitlines()) <= 12
    names: dict[str, Any] = {}
    exec(EXAMPLE, names)
    names["server"](InProcessGrid(names["client"], 10), Context(1, 0, {}, RecordDict(), {}))
    assert "Aggregated ClientApp-side Evaluate Metrics" in capsys.readouterr().out
