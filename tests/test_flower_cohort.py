"""Door 4: Flower's own strategies on the fast engine give what Flower gives, and what the native loop gives."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import random
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import load_benchmark
from torch import Tensor

import fedsim
from fedsim import strategies
from fedsim.engine import Answer, Engine, Loop, Stacked
from fedsim.participation import Schedule
from fedsim.task import Task

with warnings.catch_warnings():
    # typer, which flwr imports, uses a name that click 8.5 has renamed
    warnings.filterwarnings("ignore", message="'click.utils", category=DeprecationWarning)
    from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
    from flwr.clientapp import mod
    from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
    from flwr.serverapp import Grid
    from flwr.serverapp import strategy as stock
    from flwr.serverapp.strategy import strategy_utils

    from fedsim.flower import FlowerStrategy, InProcessGrid, client_app, cohort, evaluation, initial_arrays, over
    from fedsim.flower.arrays import TensorArray, records
    from fedsim.flower.cohort import CohortGrid
    from fedsim.flower.drive import Played, rounds

N, T, SEED = 8, 6, 3
LOCAL = fedsim.LocalSGD(lr=0.2, steps=3, batch=8)
ENGINE = Stacked(chunk=4)
CALM: dict[str, Any] = {"min_train_nodes": 0, "min_evaluate_nodes": 0, "min_available_nodes": 0}  # never waits
QUIET: dict[str, Any] = {**CALM, "fraction_evaluate": 0.0}


@pytest.fixture(scope="module")
def task() -> Task:
    return fedsim.federate("clusters", clients=N, model="mlp", seed=1)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def schedule() -> Schedule:
    """Some of the clients, one round with nobody, one with one client; who is there does all of its work or half."""
    table = np.random.default_rng(0).random((T, N)) < 0.6
    table[2] = False
    table[4] = np.arange(N) == 5
    table[[0, 1, 3, 5], 0] = True
    effort = np.where(np.arange(N) % 2, 1.0, 0.5) * table
    return Schedule.from_matrix(table, effort=effort)


def flat(task: Task, record: ArrayRecord) -> Tensor:
    return cohort.wire.Form.of_layout(task.layout, task.dtype).flat(record)


def assert_near(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def native(task: Task, strategy: Any, schedule: Schedule, **settings: Any) -> Tensor:
    *_, last = fedsim.simulate(task, strategy, schedule, LOCAL, seed=SEED, engine=ENGINE, **settings)
    return last.model


def grid_of(task: Task, schedule: Schedule | None = None, engine: Engine = ENGINE, **settings: Any) -> CohortGrid:
    return CohortGrid(task, LOCAL, **{"schedule": schedule, "engine": engine, "seed": SEED} | settings)


def played(task: Task, strategy: stock.Strategy, grid: CohortGrid, num_rounds: int = T) -> list[Played]:
    return list(rounds(strategy, grid, initial_arrays(task, SEED), num_rounds))


# The native loop ------------------------------------------------------------------------------------------------------


def test_stock_fedavg_is_the_native_loop_s(task: Task, schedule: Schedule) -> None:
    """To rounding: Flower averages models, we average moves. Empty rounds and partial work included."""
    result = stock.FedAvg(**QUIET).start(grid_of(task, schedule), initial_arrays(task, SEED), num_rounds=T)
    assert_near(flat(task, result.arrays), native(task, strategies.FedAvg(), schedule), 1e-6)
    assert sorted(result.train_metrics_clientapp) == [1, 2, 4, 5, 6]


def test_every_round_of_it(task: Task, schedule: Schedule) -> None:
    steps = fedsim.simulate(task, strategies.FedAvg(), schedule, LOCAL, seed=SEED, engine=ENGINE)
    found = played(task, stock.FedAvg(**QUIET), grid_of(task, schedule))
    for mine, step in zip(found, steps, strict=True):
        assert_near(flat(task, mine.arrays), step.model, 1e-6)
        assert torch.equal(mine.round.who, step.round.who)
        assert_near(mine.round.delta, step.round.delta)
        assert_near(mine.round.loss, step.round.loss)
        assert mine.round.lr == step.round.lr


def test_the_objective_s_weights(task: Task, schedule: Schedule) -> None:
    found = played(task, stock.FedAvg(**QUIET), grid_of(task, schedule, objective="uniform"))
    expected = native(task, strategies.FedAvg(), schedule, p=task.weights("uniform"))
    assert_near(flat(task, found[-1].arrays), expected, 1e-6)
    assert (expected - native(task, strategies.FedAvg(), schedule)).abs().max() > 1e-4


def test_stock_fedprox_pulls_as_the_native_one(task: Task, schedule: Schedule) -> None:
    found = played(task, stock.FedProx(proximal_mu=0.5, **QUIET), grid_of(task, schedule))
    assert_near(flat(task, found[-1].arrays), native(task, strategies.FedProx(mu=0.5), schedule), 1e-6)
    assert (flat(task, found[-1].arrays) - native(task, strategies.FedAvg(), schedule)).abs().max() > 1e-4


def test_door_3_over_door_4(task: Task) -> None:
    everyone = fedsim.participation.Everyone().draw(N, T, SEED)
    result = FlowerStrategy(strategies.FedAU(cutoff=3), seed=SEED, fraction_evaluate=0.0).start(
        grid_of(task), initial_arrays(task, SEED), num_rounds=T
    )
    assert_near(flat(task, result.arrays), native(task, strategies.FedAU(cutoff=3), everyone))


@dataclass
class Counting:
    """Counts calls, and whom they train."""

    inner: Engine = ENGINE
    calls: list[list[int]] = field(default_factory=list)

    def __call__(self, task: Task, who: Tensor, *work: Any, **more: Any) -> Answer:
        self.calls.append(who.tolist())
        return self.inner(task, who, *work, **more)


def test_a_cohort_is_one_call_of_the_engine(task: Task, schedule: Schedule) -> None:
    engine = Counting()
    stock.FedAvg(**QUIET).start(grid_of(task, schedule, engine), initial_arrays(task, SEED), num_rounds=T)
    assert engine.calls == [row.chosen.tolist() for row in schedule if len(row.chosen)]


@pytest.mark.parametrize("engine", [Loop(), Stacked(1), Stacked(16)])
def test_any_engine(task: Task, schedule: Schedule, engine: Engine) -> None:
    found = played(task, stock.FedAvg(**QUIET), grid_of(task, schedule, engine))
    assert_near(flat(task, found[-1].arrays), native(task, strategies.FedAvg(), schedule))


def test_door_2_inside_door_4(task: Task, schedule: Schedule) -> None:
    """The cohort's work may itself travel to ClientApps."""
    engine = over(InProcessGrid(client_app(task, LOCAL, engine=ENGINE), N))
    found = played(task, stock.FedProx(proximal_mu=0.5, **QUIET), grid_of(task, schedule, engine))
    assert_near(flat(task, found[-1].arrays), native(task, strategies.FedProx(mu=0.5), schedule), 1e-6)


# Flower's own aggregation ---------------------------------------------------------------------------------------------

Make = Callable[..., stock.Strategy]
LEFT_OUT = {"FedXgbBagging", "FedXgbCyclic", "Strategy", "Result"}  # trees have no gradient steps to take together


def wrapped(cls: Any, **settings: Any) -> Make:
    return lambda **more: cls(stock.FedAvg(**more), num_sampled_clients=N, **settings)


STRATEGIES: dict[str, tuple[Make, tuple[Any, ...]]] = {  # how to make it, and the mods its clients need
    "FedAvg": (stock.FedAvg, ()),
    "FedAvgM": (lambda **more: stock.FedAvgM(server_momentum=0.9, server_learning_rate=0.5, **more), ()),
    "FedAdagrad": (stock.FedAdagrad, ()),
    "FedAdam": (stock.FedAdam, ()),
    "FedYogi": (stock.FedYogi, ()),
    "FedProx": (lambda **more: stock.FedProx(proximal_mu=0.3, **more), ()),
    "FedMedian": (stock.FedMedian, ()),
    "FedTrimmedAvg": (stock.FedTrimmedAvg, ()),
    "Krum": (lambda **more: stock.Krum(num_malicious_nodes=1, **more), ()),
    "MultiKrum": (lambda **more: stock.MultiKrum(num_malicious_nodes=1, num_nodes_to_select=4, **more), ()),
    "Bulyan": (lambda **more: stock.Bulyan(num_malicious_nodes=1, **more), ()),
    "QFedAvg": (
        lambda **more: stock.QFedAvg(client_learning_rate=LOCAL.lr, q=0.5, **more),
        (),
    ),
    "DifferentialPrivacyServerSideFixedClipping": (
        wrapped(stock.DifferentialPrivacyServerSideFixedClipping, noise_multiplier=0.0, clipping_norm=0.05),
        (),
    ),
    "DifferentialPrivacyClientSideFixedClipping": (
        wrapped(stock.DifferentialPrivacyClientSideFixedClipping, noise_multiplier=0.0, clipping_norm=0.05),
        (mod.fixedclipping_mod,),
    ),
    "DifferentialPrivacyServerSideAdaptiveClipping": (
        wrapped(stock.DifferentialPrivacyServerSideAdaptiveClipping, noise_multiplier=0.0, clip_norm_lr=1.0),
        (),
    ),
    "DifferentialPrivacyClientSideAdaptiveClipping": (
        wrapped(stock.DifferentialPrivacyClientSideAdaptiveClipping, noise_multiplier=0.0, clip_norm_lr=1.0),
        (mod.adaptiveclipping_mod,),
    ),
}


def test_every_bundled_strategy_is_here() -> None:
    assert set(STRATEGIES) == set(stock.__all__) - LEFT_OUT


class Modded(InProcessGrid):
    """Clients called one by one, each through the mods."""

    def __init__(self, task: Task, mods: Iterable[Any]) -> None:
        super().__init__(client_app(task, LOCAL, engine=ENGINE, seed=SEED), task.n)
        self.mods = list(mods)

    def deliver(self, message: Message) -> Message | None:
        if self.mods and message.metadata.message_type == MessageType.TRAIN:
            (one,) = self.mods
            return one(message, self.contexts[message.metadata.dst_node_id], self.app)  # type: ignore[no-any-return]
        return super().deliver(message)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return sorted(super().send_and_receive(messages), key=lambda reply: reply.metadata.src_node_id)


@pytest.mark.parametrize("name", STRATEGIES)
def test_equals_flower_on_clients_called_one_by_one(task: Task, name: str) -> None:
    """The same strategy, twice: over a grid that calls our ClientApp for every client, and over the cohort."""
    make, mods = STRATEGIES[name]
    gc.freeze()  # or Flower's QFedAvg and Bulyan take ten seconds
    theirs = make(fraction_train=1.0).start(Modded(task, mods), initial_arrays(task, SEED), num_rounds=4)
    gc.unfreeze()
    ours = make(fraction_train=1.0).start(grid_of(task, mods=mods), initial_arrays(task, SEED), num_rounds=4)
    assert list(ours.arrays) == list(theirs.arrays)
    assert [a.dtype for a in ours.arrays.values()] == [a.dtype for a in theirs.arrays.values()]
    assert torch.equal(flat(task, ours.arrays), flat(task, theirs.arrays))
    assert (flat(task, ours.arrays) - flat(task, initial_arrays(task, SEED))).abs().max() > 1e-3  # it learned
    for t in range(1, 5):
        mine, other = dict(ours.train_metrics_clientapp[t]), dict(theirs.train_metrics_clientapp[t])
        assert mine.pop("train_loss") == mine["loss"]
        assert other.pop("train_loss") == other["loss"]
        assert mine == pytest.approx(other, rel=1e-4)
        assert dict(ours.evaluate_metrics_clientapp[t]) == pytest.approx(
            dict(theirs.evaluate_metrics_clientapp[t]), rel=1e-4
        )


def test_flower_s_names_for_the_loss(task: Task) -> None:
    """QFedAvg looks for train_loss."""
    found = played(task, stock.QFedAvg(client_learning_rate=0.2, **QUIET), grid_of(task), 2)
    assert found[-1].train_metrics is not None


def test_client_side_clipping_without_its_mod_is_refused(task: Task) -> None:
    make, _ = STRATEGIES["DifferentialPrivacyClientSideFixedClipping"]
    with pytest.raises(ValueError, match="mods=\\[fixedclipping_mod\\]"):
        played(task, make(), grid_of(task))


def test_a_mod_that_changes_what_the_client_gets_is_refused(task: Task) -> None:
    def sabotage(message: Message, context: Any, call_next: Any) -> Message:
        message.content["config"] = ConfigRecord({"lr": 1.0})
        return call_next(message, context)  # type: ignore[no-any-return]

    with pytest.raises(ValueError, match="a mod changes what the client is told"):
        played(task, stock.FedAvg(**QUIET), grid_of(task, mods=[sabotage]))


# Arrays that are not copied -------------------------------------------------------------------------------------------


def test_an_array_is_what_flower_s_own_would_be() -> None:
    for shape in ((3, 4), (), (0, 2), (5,)):
        start, delta = torch.randn(shape), torch.randn(shape)
        array, plain = TensorArray(delta, start), Array((start + delta).numpy())
        assert (array.dtype, array.shape, array.stype) == (plain.dtype, plain.shape, plain.stype)
        assert array.data == plain.data
        assert array == plain
        assert plain == array
        assert array.object_id == plain.object_id
        for again in (copy.deepcopy(array), pickle.loads(pickle.dumps(array)), ArrayRecord({"x": array})["x"]):
            assert type(again) is Array
            np.testing.assert_array_equal(again.numpy(), plain.numpy())
    assert TensorArray(torch.ones(2), torch.ones(2)) != Array(np.ones(2, dtype=np.float32))
    assert array != 3


def test_a_copy_of_one_client_s_array_is_not_the_whole_cohort() -> None:
    (first, *_) = records({"x": torch.zeros(1000, 100)}, {"x": torch.zeros(1, 100)})
    assert len(pickle.dumps(first["x"])) < 2000


def test_data_that_are_set_are_the_data() -> None:
    array, other = TensorArray(torch.ones(3), torch.zeros(3)), Array(np.arange(3, dtype=np.float32))
    array.data = other.data
    np.testing.assert_array_equal(array.numpy(), other.numpy())
    assert array.data == other.data


def test_a_reply_can_be_sent_on(task: Task) -> None:
    grid = grid_of(task)
    content = one_round(task, grid)[0].content
    again = recorddict_from_proto(recorddict_to_proto(content))
    assert torch.equal(flat(task, again["arrays"]), flat(task, content["arrays"]))  # type: ignore[arg-type]


def one_round(task: Task, grid: CohortGrid) -> list[Message]:
    content = RecordDict({"arrays": initial_arrays(task, SEED), "config": ConfigRecord()})
    grid.t = 0
    return list(grid.send_and_receive([Message(content, node, MessageType.TRAIN) for node in grid.get_node_ids()]))


def test_writing_into_a_reply_changes_nobody_s_numbers(task: Task) -> None:
    grid = grid_of(task)
    replies = one_round(task, grid)
    before = [flat(task, reply.content["arrays"]) for reply in replies]  # type: ignore[arg-type]
    victim: Any = replies[0].content["arrays"]
    for array in victim.values():
        array.numpy()[...] = np.nan
    assert torch.equal(flat(task, victim), before[0])
    victim.pop(next(iter(victim)))
    assert torch.equal(flat(task, replies[1].content["arrays"]), before[1])  # type: ignore[arg-type]
    replies[2].content["metrics"]["num-examples"] = -1  # type: ignore[index,call-overload]
    assert replies[3].content["metrics"]["num-examples"] > 0  # type: ignore[index,operator,call-overload]


class Vandal(stock.FedAvg):
    """Empties and overwrites whatever it is given after use."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        found = super().aggregate_train(server_round, replies)
        for reply in replies:
            for record in reply.content.array_records.values():
                for array in record.to_numpy_ndarrays():
                    array[...] = 1e9
                record.clear()
        return found

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Any:
        messages = super().configure_train(server_round, arrays, config, grid)
        for array in arrays.values():
            array.numpy()[...] = 1e9
        return messages


def test_a_strategy_that_overwrites_what_it_reads(task: Task, schedule: Schedule) -> None:
    found = played(task, Vandal(**QUIET), grid_of(task, schedule))
    assert_near(flat(task, found[-1].arrays), native(task, strategies.FedAvg(), schedule), 1e-6)


# The same seed, the same numbers --------------------------------------------------------------------------------------


def noisy(**more: Any) -> stock.Strategy:
    return stock.DifferentialPrivacyServerSideFixedClipping(
        stock.FedAvg(fraction_train=0.5, **more), noise_multiplier=1.0, clipping_norm=0.5, num_sampled_clients=N // 2
    )


def test_sampling_and_noise_follow_from_the_seed(task: Task) -> None:
    def run(seed: int, **more: Any) -> tuple[Tensor, list[list[int]]]:
        engine = Counting()
        grid = grid_of(task, engine=engine, seed=seed)
        result = noisy(**more).start(grid, initial_arrays(task, SEED), num_rounds=3)
        return flat(task, result.arrays), engine.calls

    first, calls = run(1)
    random.random(), np.random.random(), torch.rand(1)
    again, calls_again = run(1)
    assert torch.equal(first, again)
    assert calls == calls_again
    assert len({tuple(who) for who in calls}) > 1
    other, other_calls = run(2)
    assert calls != other_calls
    assert not torch.equal(first, other)
    without, calls_without = run(1, fraction_evaluate=0.0)  # evaluation draws of its own
    assert torch.equal(first, without)
    assert calls == calls_without


def test_start_and_rounds_are_the_same(task: Task, schedule: Schedule) -> None:

    def half() -> stock.Strategy:
        return stock.DifferentialPrivacyServerSideFixedClipping(
            stock.FedAdam(fraction_train=0.5, fraction_evaluate=0.5, **CALM), 0.1, 0.5, N
        )

    result = half().start(grid_of(task, schedule), initial_arrays(task, SEED), num_rounds=T)
    found = played(task, half(), grid_of(task, schedule))
    assert torch.equal(flat(task, found[-1].arrays), flat(task, result.arrays))
    for step in found:
        assert step.train_metrics == result.train_metrics_clientapp.get(step.server_round)
        assert step.evaluate_metrics == result.evaluate_metrics_clientapp.get(step.server_round)


def generators() -> tuple[Any, ...]:
    kind, words, *rest = np.random.get_state()
    return random.getstate(), kind, words.tobytes(), *rest, torch.random.get_rng_state().numpy().tobytes()


class Broken(stock.FedAvg):
    """Fails after training."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        random.random()
        raise RuntimeError("no more")


def test_the_global_generators_are_put_back(task: Task) -> None:
    before = generators()
    noisy().start(grid_of(task), initial_arrays(task, SEED), num_rounds=2)
    assert generators() == before
    for _ in rounds(noisy(), grid_of(task), initial_arrays(task, SEED), 2):
        assert generators() == before
    with pytest.raises(RuntimeError, match="no more"):
        played(task, Broken(**QUIET), grid_of(task))
    assert generators() == before


def test_the_garbage_collector_is_spared(task: Task) -> None:
    """While a strategy aggregates, and not after."""
    counts: list[int] = []

    class Looking(stock.FedAvg):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            counts.append(gc.get_freeze_count())
            return super().aggregate_train(server_round, replies)

    assert gc.get_freeze_count() == 0
    Looking(**QUIET).start(grid_of(task), initial_arrays(task, SEED), num_rounds=1)
    played(task, Looking(**QUIET), grid_of(task), 1)
    assert min(counts) > 1000
    assert gc.get_freeze_count() == 0


# Too few, nobody, and those who fail ----------------------------------------------------------------------------------


def test_too_few_is_an_empty_round_at_once(task: Task, schedule: Schedule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategy_utils, "sleep", lambda seconds: pytest.fail("it waits"))
    found = played(task, stock.FedAvg(min_train_nodes=2, min_available_nodes=2), grid_of(task, schedule))
    for step, row in zip(found, schedule, strict=True):
        assert (len(step.round.who) == 0) == (len(row.chosen) < 2)
    assert flat(task, found[4].arrays).equal(flat(task, found[3].arrays))
    assert [step.train_metrics is None for step in found] == [False, False, True, False, True, False]


def test_too_few_is_an_empty_round_in_flower_s_own_start(
    task: Task, schedule: Schedule, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It asks again, is given everybody, and nobody answers: also where the strategy cannot do without replies."""
    monkeypatch.setattr(strategy_utils, "sleep", lambda seconds: None)
    monkeypatch.setattr(cohort, "PAUSE", -1.0)
    table = schedule.matrix().numpy()
    whole = Schedule.from_matrix(table)
    for make in (stock.FedAvg, STRATEGIES["DifferentialPrivacyServerSideAdaptiveClipping"][0]):
        result = make(fraction_evaluate=0.0).start(grid_of(task, whole), initial_arrays(task, SEED), num_rounds=T)
        expected = played(task, make(fraction_evaluate=0.0), grid_of(task, whole))
        assert sorted(result.train_metrics_clientapp) == [1, 2, 4, 6]
        assert_near(flat(task, result.arrays), flat(task, expected[-1].arrays), 1e-6)


def test_a_real_wait_ends(task: Task) -> None:
    only_one = Schedule.from_matrix(np.eye(N, dtype=bool)[:1])
    engine = Counting()
    grid = grid_of(task, only_one, engine)
    result = stock.FedAvg(fraction_evaluate=0.0).start(grid, initial_arrays(task, SEED), num_rounds=1)
    assert not result.arrays
    assert engine.calls == []


def test_more_clients_than_there_are(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategy_utils, "sleep", lambda seconds: None)
    monkeypatch.setattr(cohort, "PAUSE", -1.0)
    with pytest.raises(ValueError, match="waits for more clients than there are \\(8\\)"):
        stock.FedAvg(min_available_nodes=N + 1).start(grid_of(task), initial_arrays(task, SEED), num_rounds=1)


def test_who_drops_out_never_answers(task: Task) -> None:
    table = np.ones((2, N), dtype=bool)
    effort = table * 1.0
    effort[0, :5] = 0
    effort[1] = 0
    schedule = Schedule.from_matrix(table, effort=effort)
    found = played(task, stock.FedAvg(**QUIET), grid_of(task, schedule), 2)
    assert found[0].round.who.tolist() == [5, 6, 7]
    assert_near(flat(task, found[0].arrays), native(task, strategies.FedAvg(), schedule), 1e-6)
    assert found[1].train_metrics is None
    assert flat(task, found[1].arrays).equal(flat(task, found[0].arrays))


def test_when_all_drop_out_a_strategy_that_needs_replies_goes_on(task: Task) -> None:
    """Flower's adaptive clipping divides by the number of replies: it gets errors, which it skips the round for."""
    table = np.ones((2, N), dtype=bool)
    schedule = Schedule.from_matrix(table, effort=table * np.array([[0.0], [1.0]]))
    make, _ = STRATEGIES["DifferentialPrivacyServerSideAdaptiveClipping"]
    result = make(fraction_evaluate=0.0).start(grid_of(task, schedule), initial_arrays(task, SEED), num_rounds=2)
    assert sorted(result.train_metrics_clientapp) == [2]


@dataclass
class Poisoned:
    """An engine whose client 3 comes to nothing finite, or nothing at all."""

    value: float | None
    inner: Engine = ENGINE

    def __call__(self, task: Task, who: Tensor, *work: Any, **more: Any) -> Answer:
        answer = self.inner(task, who, *work, **more)
        here = who != 3
        if self.value is None:
            return Answer(who[here], answer.delta[here], answer.span[here], answer.loss[here], {})  # type: ignore[index]
        answer.delta[~here, 1:3] = self.value
        return answer


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_who_fails_is_absent(task: Task, value: float | None) -> None:
    without = np.ones((2, N), dtype=bool)
    without[:, 3] = False
    expected = native(task, strategies.FedAvg(), Schedule.from_matrix(without))
    grid = grid_of(task, engine=Poisoned(value))
    result = stock.FedAvg(**CALM).start(grid, initial_arrays(task, SEED), num_rounds=2)
    assert_near(flat(task, result.arrays), expected, 1e-6)
    assert [(a.t, a.client, a.node) for a in grid.absences] == [(0, 3, 4), (1, 3, 4)]
    assert ("not finite" in grid.absences[0].reason) == (value is not None)
    assert grid.last is not None
    assert 3 not in grid.last.who
    krum = played(task, stock.Krum(**QUIET), grid_of(task, engine=Poisoned(value)), 1)
    assert torch.isfinite(flat(task, krum[0].arrays)).all()


def test_large_but_finite_is_no_failure(task: Task) -> None:
    answers = one_round(task, grid_of(task, engine=Poisoned(3e38)))
    assert not any(reply.has_error() for reply in answers)


def test_who_fails_stops_the_run(task: Task) -> None:
    grid = grid_of(task, engine=Poisoned(float("nan")), on_failure="stop")
    with pytest.raises(ValueError, match="round 0: the update of client 3 is not finite"):
        played(task, stock.FedAvg(**QUIET), grid)


# Flower's results -----------------------------------------------------------------------------------------------------


def test_results(task: Task) -> None:
    seen: list[int] = []

    def central(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        seen.append(server_round)
        assert random.getstate() == state
        return MetricRecord({"norm": float(flat(task, arrays).norm())})

    state = random.getstate()
    result = stock.FedAvg().start(grid_of(task), initial_arrays(task, SEED), num_rounds=2, evaluate_fn=central)
    assert seen == [0, 1, 2]
    assert sorted(result.evaluate_metrics_serverapp) == [0, 1, 2]
    assert result.evaluate_metrics_serverapp[2]["norm"] == pytest.approx(float(flat(task, result.arrays).norm()))
    assert set(result.train_metrics_clientapp[2]) == {"loss", "train_loss", "steps", "lr", "span"}
    assert result.train_metrics_clientapp[2]["lr"] == pytest.approx(LOCAL.lr)
    assert result.train_metrics_clientapp[2]["span"] == pytest.approx(3 * LOCAL.lr)
    assert set(result.evaluate_metrics_clientapp[2]) == {"loss", "accuracy"}
    assert list(result.arrays) == list(initial_arrays(task))


def test_no_evaluation(task: Task) -> None:
    result = stock.FedAvg(fraction_evaluate=0.0).start(grid_of(task), initial_arrays(task, SEED), num_rounds=2)
    assert result.evaluate_metrics_clientapp == {}
    assert sorted(result.train_metrics_clientapp) == [1, 2]


def test_no_training(task: Task) -> None:
    engine = Counting()
    grid = grid_of(task, engine=engine)
    result = stock.FedAvg(fraction_train=0.0).start(grid, initial_arrays(task, SEED), num_rounds=2)
    assert engine.calls == []
    assert sorted(result.evaluate_metrics_clientapp) == [1, 2]
    assert not result.arrays


def test_evaluation_on_their_own_examples_is_the_objective(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "EXAMPLES", 100)  # in pieces that are not the clients'
    result = stock.FedAvg().start(grid_of(task), initial_arrays(task, SEED), num_rounds=1)
    expected = fedsim.measure.objective(task, flat(task, result.arrays))
    assert result.evaluate_metrics_clientapp[1]["loss"] == pytest.approx(expected, rel=1e-5)


def test_evaluation_on_the_test_examples(task: Task) -> None:
    result = stock.FedAvg().start(grid_of(task, evaluate="test"), initial_arrays(task, SEED), num_rounds=1)
    expected = fedsim.measure.test(task, flat(task, result.arrays))
    assert result.evaluate_metrics_clientapp[1]["accuracy"] == pytest.approx(expected["test_accuracy"])


def test_a_strategy_with_a_model_for_every_client(task: Task) -> None:
    """Messages may differ: in their arrays, and in mu."""
    app, grid = InProcessGrid(client_app(task, LOCAL, engine=ENGINE, seed=SEED), N), grid_of(task)

    def messages() -> list[Message]:
        out = []
        for i in reversed(range(N)):
            arrays = initial_arrays(task, i)
            config = ConfigRecord({"server-round": 1})
            out.append(Message(RecordDict({"arrays": arrays, "config": config}), i + 1, MessageType.TRAIN))
        return out

    ours = {r.metadata.src_node_id: r for r in grid.send_and_receive(messages())}
    assert grid.last is not None
    assert grid.last.who.tolist() == list(range(N))
    for reply in app.send_and_receive(messages()):
        mine = ours[reply.metadata.src_node_id].content["arrays"]
        assert_near(flat(task, mine), flat(task, reply.content["arrays"]))  # type: ignore[arg-type]
    pulled = messages()
    for j, message in enumerate(pulled):
        message.content["config"]["proximal-mu"] = float(j % 2)  # type: ignore[index,call-overload]
    grid.t = 0
    again = {r.metadata.src_node_id: r for r in grid.send_and_receive([*pulled, messages()[0]])}
    assert len(again) == N
    assert grid.last.who.tolist() == sorted([*range(N), N - 1])
    for j, node in enumerate(reversed(range(1, N + 1))):
        same = torch.equal(flat(task, again[node].content["arrays"]), flat(task, ours[node].content["arrays"]))  # type: ignore[arg-type]
        assert same == (j % 2 == 0)


# Mistakes -------------------------------------------------------------------------------------------------------------


def whole(rounds: int, n: int) -> Schedule:
    return Schedule.from_matrix(np.ones((rounds, n), dtype=bool))


def other_names(task: Task) -> ArrayRecord:
    return ArrayRecord({"w": Array(np.zeros(3, dtype=np.float32))})


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (lambda task: grid_of(task, objective="equal"), "objective must be 'examples' or 'uniform', got 'equal'"),
        (lambda task: grid_of(task, on_failure="go"), "on_failure must be 'absent' or 'stop', got 'go'"),
        (lambda task: grid_of(task, whole(1, 3)), "schedule has 3 clients but the task has"),
        (
            lambda task: played(task, stock.FedAvg(), grid_of(task, whole(2, N)), 3),
            "the schedule is over after 2 rounds",
        ),
        (
            lambda task: list(rounds(stock.FedAvg(), grid_of(task), other_names(task))),
            "the strategy's arrays are not the task's model: the ArrayRecord lacks array",
        ),
        (
            lambda task: grid_of(task).push_messages([Message(RecordDict(), N + 1, MessageType.TRAIN)]),
            "goes to node 9, but the nodes are 1 to 8",
        ),
        (
            lambda task: grid_of(task).push_messages([Message(RecordDict(), 1, MessageType.EVALUATE)]),
            "sets grid.t before each round",
        ),
        (lambda task: played(task, stock.FedProx(proximal_mu=float("nan")), grid_of(task)), "proximal-mu must be a"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(task: Task, do: Callable[[Task], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        do(task)
    assert "\n" not in str(raised.value)


def test_work_of_our_own_is_refused(task: Task) -> None:
    content = RecordDict({"arrays": initial_arrays(task), "fedsim": ConfigRecord({"scale": 2.0})})
    with pytest.raises(ValueError, match="beyond where to start"):
        grid_of(task).push_messages([Message(content, 1, MessageType.TRAIN)])


def test_the_grid_goes_on_and_begins_again(task: Task, schedule: Schedule) -> None:
    """A second start goes on with the schedule; grid.t = 0 begins again."""
    grid = grid_of(task, schedule)
    strategy = stock.FedAvg(**QUIET)
    first = strategy.start(grid, initial_arrays(task, SEED), num_rounds=2)
    assert grid.t == 2
    second = strategy.start(grid, first.arrays, num_rounds=T - 2)
    assert_near(flat(task, second.arrays), native(task, strategies.FedAvg(), schedule), 1e-6)


# The benchmark --------------------------------------------------------------------------------------------------------

FOLDER = Path(__file__).parent.parent / "benchmarks"


def test_the_committed_overhead_and_how_it_is_measured() -> None:
    """What was measured holds the claim; the script still compares two that compute the same."""
    committed = json.loads((FOLDER / "results" / "flower_overhead.json").read_text())
    benchmark = load_benchmark("flower_overhead")
    assert committed["large"]["clients"] == 1000
    assert committed["large"]["ratio_cpu"] <= benchmark.TARGET
    again = benchmark.compare(12, benchmark.LOGISTIC, 2, lambda line: None)
    assert again.keys() <= committed["tiny"].keys()
    assert again["local"].replace(", curriculum=None", "") == committed["tiny"]["local"]  # there was none then
    assert again["largest_difference_of_the_models"] < 1e-5


EXAMPLE = """
import fedsim
from fedsim.flower import CohortGrid, initial_arrays
from flwr.serverapp.strategy import FedAdam

task = fedsim.federate("digits", clients=100)
present = fedsim.participation.Bernoulli(0.2).draw(n=100, rounds=5, seed=1)
grid = CohortGrid(task, fedsim.LocalSGD(lr=0.1, steps=5), schedule=present)
print(FedAdam(fraction_evaluate=0.0).start(grid, initial_arrays(task), num_rounds=5))
"""


def test_a_program_of_a_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    exec(EXAMPLE, {})
    assert "Aggregated ClientApp-side Train Metrics" in capsys.readouterr().out
