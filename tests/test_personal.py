"""Personalisation: what is shared, what is kept, what clients are measured with, and fine-tuning before that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import F64
from torch import nn

from fedsim import LocalSGD, compare, experiment, federate, finetune, ledger, measure, mixing, parts, simulate
from fedsim.checkpoint import load_checkpoint, save_checkpoint
from fedsim.engine import Loop, Stacked
from fedsim.finetune import FineTune
from fedsim.participation import Bernoulli
from fedsim.simulation import begin, prepare
from fedsim.strategies import DPSGD, MIFA, SCAFFOLD, FedAdam, FedAvg, FedAvgM, FedProx, Personal
from fedsim.strategy import Work
from fedsim.task import Task, layout_of

N, T = 8, 6
LOCAL = LocalSGD(lr=0.1, steps=3, batch=8)
ENGINE = Stacked(4)


@pytest.fixture(scope="module")
def task() -> Task:
    return federate("digits", clients=N, model="mlp", seed=1, holdout=0.25, dtype=F64)


@pytest.fixture(scope="module")
def schedule() -> Any:
    found = Bernoulli(0.4).draw(N, T, seed=4)
    assert 0 < found.rates().max() < 1  # nobody is always there
    return found


def play(task: Task, schedule: Any, strategy: Any, **more: Any) -> tuple[Any, list[Any]]:
    """The strategy made ready, and all its steps with states of their own."""
    ready = prepare(strategy, task, schedule)
    steps = []
    for step in simulate(task, ready, schedule, LOCAL, seed=3, engine=ENGINE, **more):
        own = ready.own(step.state, torch.arange(N)).clone()
        steps.append((step.model.clone(), own, step.traffic, step.round))
        last = step.state
    return (ready, last), steps


# Names ---------------------------------------------------------------------------------------------------------------


def test_patterns_and_words_mean_parameters() -> None:
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 2)
    )
    layout = layout_of(dict(module.named_parameters()))
    assert parts.named(layout, ("head",)) == ("5.weight", "5.bias")
    assert parts.named(layout, ("norm",)) == ("1.weight", "1.bias", "3.weight", "3.bias")
    assert parts.named(layout, ("*.bias", "4.*")) == ("0.bias", "1.bias", "3.bias", "4.weight", "4.bias", "5.bias")
    assert parts.named(layout, ("*",)) == layout.names
    assert parts.named(layout, ()) == ()
    split = parts.split(layout, ("1.*",), torch.device("cpu"))
    flat = torch.arange(float(layout.size))
    both = split.join(flat[split.others], flat[split.meant])
    assert torch.equal(both, flat)
    moved = layout.views(split.join(0 * flat[split.others], flat[split.meant] + 1))
    assert [name for name, view in moved.items() if view.any()] == ["1.weight", "1.bias"]


def test_a_layer_that_is_called_head_is_meant_by_its_name() -> None:
    layout = layout_of({"head": torch.zeros(2), "body.weight": torch.zeros(3)})
    assert parts.named(layout, ("head",)) == ("head",)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("3.wieght", "\"3.wieght\" is no parameter of the model; did you mean '3.weight'"),
        ("haed", "did you mean 'head'"),
        ("norm", "the model has none"),
    ],
)
def test_a_pattern_that_means_nothing_is_refused(task: Task, schedule: Any, pattern: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        begin(prepare(Personal(keep=(pattern,)), task, schedule), task)
    with pytest.raises(ValueError, match=said):
        finetune.tuned(task, lambda who: who, FineTune(steps=1, only=(pattern,)), LOCAL, ENGINE)


def test_without_layers_and_without_a_server_it_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Personal\(layout=task.layout\)"):
        Personal().init(torch.zeros(3), torch.ones(2) / 2)
    with pytest.raises(ValueError, match="wraps a strategy with a server"):
        Personal(DPSGD())


# Laws ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", [FedAvg(), MIFA(), SCAFFOLD(), FedAvgM(FedProx(mu=0.1))], ids=repr)
def test_with_nothing_kept_it_is_the_strategy_inside(task: Task, schedule: Any, inner: Any) -> None:
    """Bit for bit, traffic included."""
    _, ours = play(task, schedule, Personal(inner, keep=()))
    _, theirs = play(task, schedule, inner)
    for (a, own, bits, _), (b, _, other, _) in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
        assert bits == other
        assert torch.equal(own, b.expand(N, -1))


@pytest.mark.parametrize("inner", [FedAvg(), MIFA(), SCAFFOLD(), FedAdam()], ids=repr)
def test_with_everything_kept_everybody_trains_alone(task: Task, schedule: Any, inner: Any) -> None:
    """Bit for bit, and nothing is sent. Control variates are 0 here, but their steps are rounded otherwise."""
    _, ours = play(task, schedule, Personal(inner, keep=("*",)))
    _, alone = play(task, schedule, DPSGD(mixing=mixing.Alone(nodes=N)))
    for (_, own, bits, _), (nodes, _, _, _) in zip(ours, alone, strict=True):
        if inner == SCAFFOLD():
            torch.testing.assert_close(own, nodes, rtol=1e-12, atol=1e-12)
        else:
            assert torch.equal(own, nodes)
        assert bits == (0, 0)
    p = task.weights()
    torch.testing.assert_close(ours[-1][0], p @ alone[-1][0], rtol=1e-12, atol=1e-12)  # what is evaluated is the mean


def test_a_part_is_shared_and_a_part_is_kept(task: Task, schedule: Any) -> None:
    """FedPer by hand: the body is FedAvg's over those present, each head only ever moves with its own client."""
    _, steps = play(task, schedule, Personal())
    split = parts.split(task.layout, ("head",), task.device)
    p = task.weights()
    x = begin(prepare(FedAvg(), task, schedule), task, seed=3).x
    body, heads = x[split.others], x[split.meant].repeat(N, 1)
    for model, own, bits, round in steps:
        who = round.who
        assert torch.equal(round.start, split.join(body.expand(len(who), -1), heads[who]))
        if len(who):
            w = p[who] / p[who].sum()
            body = body + w @ round.delta[:, split.others]
        heads[who] += round.delta[:, split.meant]
        torch.testing.assert_close(own, split.join(body.expand(N, -1), heads), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(model, split.join(body, p @ heads), rtol=1e-12, atol=1e-12)
        body = own[0, split.others]
        assert bits.up == bits.down == len(who) * len(split.others) * 64
    assert (heads != heads[0]).any()


def test_control_variates_leave_the_local_part_alone(task: Task, schedule: Any) -> None:
    strategy = prepare(Personal(SCAFFOLD()), task, schedule)
    (_, state), _ = play(task, schedule, Personal(SCAFFOLD()))
    who = torch.arange(N)
    shift = strategy.send(state, who).shift
    split = parts.split(task.layout, ("head",), task.device)
    assert not shift[:, split.meant].any()
    assert shift[:, split.others].any()
    assert state.inner.c.data.shape[1] == len(split.others)  # and memory of the shared part only
    assert state.h.data.shape[1] == len(split.meant)


class Rolling(FedAvg):
    """A server that hands out a velocity."""

    def send(self, state: Any, who: torch.Tensor) -> Work:
        start = state.x.expand(len(who), -1)
        return Work(start, velocity=torch.ones_like(start))


def test_what_has_no_meaning_for_the_local_part_is_refused(task: Task, schedule: Any) -> None:
    ready = prepare(Personal(Rolling()), task, schedule)
    with pytest.raises(ValueError, match="Rolling tells clients a velocity"):
        ready.send(begin(ready, task), torch.arange(2))
    nothing_kept = prepare(Personal(Rolling(), keep=()), task, schedule)
    assert nothing_kept.send(begin(nothing_kept, task), torch.arange(2)).velocity is not None


def test_an_optimiser_outside_moves_the_shared_part_only(task: Task, schedule: Any) -> None:
    (ready, state), _ = play(task, schedule, FedAdam(Personal()))
    (inside, other), _ = play(task, schedule, Personal(FedAdam()))
    who = torch.arange(N)
    assert torch.equal(ready.own(state, who), inside.own(other, who))
    assert ready.personal
    assert inside.personal
    assert not FedAdam(FedAvg()).personal


@pytest.mark.parametrize("strategy", [Personal(MIFA()), FedAdam(Personal(SCAFFOLD(), keep=("*.bias",)))], ids=repr)
def test_a_checkpoint_goes_on_bit_for_bit(task: Task, schedule: Any, strategy: Any, tmp_path: Path) -> None:
    (ready, whole), _ = play(task, schedule, strategy)
    for step in simulate(task, ready, schedule, LOCAL, seed=3, engine=ENGINE):
        if step.t == 2:
            save_checkpoint(tmp_path / "c.safetensors", step.state, 3)
            break
    state, t, _ = load_checkpoint(tmp_path / "c.safetensors", begin(ready, task, seed=3))
    (_, again), steps = play(task, schedule, strategy, state=state, t=t)
    assert len(steps) == T - 3
    who = torch.arange(N)
    assert torch.equal(ready.own(again, who), ready.own(whole, who))


def test_the_ledger_follows_what_is_shared(task: Task, schedule: Any) -> None:
    """The weights with which clients' moves have entered the shared part are those of the strategy inside."""
    ready = prepare(Personal(MIFA()), task, schedule)
    assert not ready.linear
    assert ready.twin() == Personal(MIFA(), ())
    ours, inner = (ledger.Book(one, task.weights(), schedule.rates(), 5) for one in (ready, MIFA()))
    for _, _, _, round in play(task, schedule, Personal(MIFA()))[1]:
        ours.enter(round)
        inner.enter(round)
    a, b = ours.shares(), inner.shares()
    assert a is not None
    assert b is not None
    assert torch.equal(a, b)


# Measuring -----------------------------------------------------------------------------------------------------------


def test_models_given_by_a_function_are_measured_as_a_stack_is(task: Task) -> None:
    x = torch.stack([task.fresh(i) for i in range(N)])
    asked: list[int] = []

    def theirs(who: torch.Tensor) -> torch.Tensor:
        asked.extend(who.tolist())
        return x[who]

    a, b = measure.per_client(task, x), measure.per_client(task, theirs)
    assert a.accuracy is not None
    assert b.accuracy is not None
    assert torch.equal(a.loss, b.loss)
    assert torch.equal(a.accuracy, b.accuracy)
    assert sorted(asked) == list(range(N))
    losses = measure.training_losses(task, theirs)
    for i in range(N):
        rows = task.rows[task.first[i] : task.first[i] + task.size[i]]
        mine = task.losses(task.layout.views(x[i]), task.inputs[rows], task.targets[rows]).mean()
        assert float(losses[i]) == pytest.approx(float(mine))


@pytest.mark.parametrize("engine", [Loop(), Stacked(3)], ids=["loop", "stacked"])
@pytest.mark.parametrize("only", [(), ("head",)], ids=["all", "head"])
@pytest.mark.parametrize("local", [LOCAL, LocalSGD(lr=0.1, steps=3, batch=8, momentum=0.5, weight_decay=0.1)], ids=repr)
def test_fine_tuning_is_a_turn_of_each_client_by_itself(task: Task, engine: Any, only: Any, local: Any) -> None:
    """Held against torch's SGD on the same minibatches."""
    from fedsim import keyed
    from fedsim.engine.loop import batch_rows, rows_of

    x = task.fresh(0)
    rule = FineTune(steps=2, lr=0.05, only=only)
    after = finetune.tuned(task, lambda who: x.expand(len(who), -1), rule, local, engine, seed=9, t=4)
    who = torch.tensor([5, 1, 2])
    found = after(who)
    for j, client in enumerate(who.tolist()):
        params = {name: view.clone().requires_grad_() for name, view in task.layout.views(x).items()}
        trained = [value for name, value in params.items() if not only or name.startswith("3.")]
        sgd = torch.optim.SGD(trained, lr=0.05, momentum=local.momentum, weight_decay=local.weight_decay)
        key = keyed.fold(9, "finetune", 4, who)[j]
        for s in range(2):
            here = batch_rows(task, rule.local(local), rows_of(task, client), key, s)
            sgd.zero_grad()
            task.losses(params, task.inputs[here], task.targets[here]).mean().backward()
            sgd.step()
        torch.testing.assert_close(found[j], task.layout.flat(params).detach(), rtol=1e-10, atol=1e-10)
    alone = after(torch.tensor([1]))[0]
    torch.testing.assert_close(alone, found[1], rtol=0 if engine == Loop() else 1e-12, atol=1e-12)


TABLES: dict[str, Any] = {
    "task": {"clients": 6, "holdout": 0.25, "partition": {"name": "dirichlet", "alpha": 0.2}},
    "local": {"lr": 0.1, "steps": 3, "batch": 8},
    "run": {"rounds": 4, "eval-every": 2, "device": "cpu", "chunk": 3},
    "finetune": {"epochs": 1, "lr": 0.05, "only": ["head"]},
    "strategy": [
        {"name": "Personal", "label": "FedPer"},
        {"name": "Personal", "label": "nothing kept", "local": {"lr": 0.1}},
        {"name": "FedAvg"},
        {"name": "DPSGD", "label": "alone", "mixing": "alone"},
    ],
}


def test_an_experiment_measures_clients_before_and_after() -> None:
    made = experiment.parse(TABLES)
    assert experiment.parse(made.document()).finetune == FineTune(epochs=1, lr=0.05, only=("head",))
    events = list(compare.compare(made))
    tables = {e.strategy: e.table for e in events if type(e).__name__ == "Clients"}
    finals = {e.strategy: e.final for e in events if type(e).__name__ == "Finished"}
    assert not [e for e in events if type(e).__name__ == "Failed"]
    for label, table in tables.items():
        for name in ("loss", "accuracy", "tuned_loss", "tuned_accuracy"):
            assert len(table[name]) == 6, (label, name)
        assert finals[label]["tuned_client_loss"] != finals[label]["client_loss"]
    for label, final in finals.items():  # what the comparison is about
        assert final["personal_accuracy"] == final["client_accuracy"], label
    assert finals["FedPer"]["bytes_up"] < finals["FedAvg"]["bytes_up"]
    assert finals["FedPer"]["client_accuracy"] != finals["FedAvg"]["client_accuracy"]
    assert "weight_distance" in finals["FedPer"]
    summary = next(e for e in events if type(e).__name__ == "Finished" and e.strategy == "FedAvg").clients
    assert "tuned_accuracy" in summary["by_size"][0]


def test_the_measured_models_are_the_clients_own() -> None:
    """A run's client_accuracy is that of `own`, found by hand."""
    tables = TABLES | {"strategy": [{"name": "Personal"}], "run": TABLES["run"] | {"dtype": "float64"}}
    tables.pop("finetune")
    events = list(compare.compare(experiment.parse(tables)))
    (table,) = [e.table for e in events if type(e).__name__ == "Clients"]
    (began,) = [e for e in events if type(e).__name__ == "Began"]
    task = federate("digits", clients=6, model="mlp", seed=1, holdout=0.25, dtype=F64,
                    partition=experiment.parse(tables).task.partition)  # fmt: skip
    ready = prepare(Personal(), task, began.schedule)
    local = LocalSGD(lr=0.1, steps=3, batch=8)
    for step in simulate(task, ready, began.schedule, local, seed=1, engine=Stacked(3)):
        last = step.state
    held = task.held
    assert held is not None
    for i in range(6):
        rows = held.rows[held.first[i] : held.first[i] + held.size[i]]
        params = task.layout.views(ready.own(last, torch.tensor([i]))[0])
        hits = task.outputs(params, task.inputs[rows]).argmax(1) == task.targets[rows]
        assert table["accuracy"][i] == pytest.approx(float(hits.double().mean()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"finetune": {"steps": 1, "epochs": 1}}, "give either steps or epochs"),
        ({"finetune": {}}, "give either steps or epochs"),
        ({"finetune": {"step": 1}}, "did you mean 'steps'"),
        ({"finetune": {"steps": 1, "lr": -1.0}}, "lr must be"),
        ({"finetune": 3}, "finetune must be a table"),
    ],
)
def test_mistakes_in_the_table_are_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        experiment.parse(TABLES | {"strategy": [{"name": "FedAvg"}]} | change)


def test_the_minimum_is_of_one_model_for_all() -> None:
    tables = TABLES | {"strategy": [{"name": "Personal"}]}
    tables["task"] = tables["task"] | {"model": "logistic"}
    tables["run"] = tables["run"] | {"optimum": True}
    (failed,) = [e for e in compare.compare(experiment.parse(tables)) if type(e).__name__ == "Failed"]
    assert "clients have their own" in failed.reason
