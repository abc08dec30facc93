"""Who wins and who loses: every number against one worked out by hand, and a run's own against plain loops."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim import clients, compare, experiment, federate
from fedsim.data import Digits, split
from fedsim.data.partition import Dirichlet, LabelSwap, Parts, hold_out
from fedsim.measure import PerClient, per_client
from fedsim.participation import Bernoulli, Schedule
from fedsim.task import Task

# --- parts of the clients ---------------------------------------------------------------------------------------------


def test_deciles_are_tenths_in_order() -> None:
    values = np.array([5, 1, 4, 1, 3, 2, 9, 8, 7, 6, 0, 10])
    found = clients.deciles(values)
    assert [len(part) for part in found] == [2, 2, 1, 1, 1, 1, 1, 1, 1, 1]
    assert [part.tolist() for part in found[:3]] == [[10, 1], [3, 5], [4]]  # 0 and 1; the other 1 and 2; 3
    assert sorted(np.concatenate(found).tolist()) == list(range(12))


@pytest.mark.parametrize("n", [0, 1, 3, 9, 10, 11, 99, 100])
def test_deciles_are_equally_large(n: int) -> None:
    """Equal values: by index."""
    found = clients.deciles(np.ones(n))
    assert len(found) == min(n, 10)
    assert np.concatenate([np.arange(0), *found]).tolist() == list(range(n))
    sizes = [len(part) for part in found]
    assert max(sizes, default=0) - min(sizes, default=0) <= 1


def test_groups() -> None:
    assert {label: who.tolist() for label, who in clients.groups([0.5, 0.1, 0.5]).items()} == {0.1: [1], 0.5: [0, 2]}
    assert clients.dominating([[0, 3, 1], [2, 2, 0], [0, 0, 5]]).tolist() == [1, 0, 2]


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_the_worst_tenth() -> None:
    values = np.random.default_rng(0).permutation(25) / 10
    assert clients.lowest(values) == pytest.approx(0.1)  # three of 25: 0, 0.1, 0.2
    assert clients.highest(values) == pytest.approx(2.3)
    assert clients.lowest(values[:10]) == values[:10].min()  # one of ten, not two by rounding
    assert clients.lowest(np.arange(30)) == 1.0
    assert clients.lowest([4.0]) == clients.highest([4.0]) == 4.0
    assert math.isnan(clients.lowest([]))
    assert math.isnan(clients.lowest([1.0, np.nan]))
    assert clients.highest([1.0, np.inf]) == np.inf


def test_gini_has_its_closed_forms() -> None:
    assert clients.gini([0.3] * 7) == pytest.approx(0.0, abs=1e-15)
    assert clients.gini([0, 0, 0, 5]) == pytest.approx(1 - 1 / 4)
    assert clients.gini([1, 3]) == pytest.approx(0.25)
    n = 50
    assert clients.gini(np.arange(1, n + 1)) == pytest.approx((n - 1) / (3 * n))
    assert clients.gini([0, 0]) == 0.0
    assert math.isnan(clients.gini([]))
    assert math.isnan(clients.gini([np.nan, 1.0]))
    with pytest.raises(ValueError, match="of values of at least 0, got -1"):
        clients.gini([1.0, -1.0])


def test_gini_is_its_definition() -> None:
    values = np.random.default_rng(1).random(40)
    pairs = np.abs(values[:, None] - values).sum()
    assert clients.gini(values) == pytest.approx(pairs / (2 * 40 * values.sum()))
    assert clients.gini(7 * values) == pytest.approx(clients.gini(values))


def test_harm_by_hand() -> None:
    own: dict[str, Any] = {"held_out": [0, 0, 0, 0], "accuracy": [0.5, 0.6, 0.7, 0.9], "loss": [1.0, 1.0, 1.0, 3.0]}
    alone = {"held_out": [0, 0, 0, 0], "accuracy": [0.5, 0.7, 0.9, 0.1], "loss": [2.0, 1.0, 0.5, 1.0]}
    found = clients.harm(own, alone)
    assert found["accuracy"] == {"worse": 0.5, "difference": pytest.approx(0.125)}  # as good is not worse
    assert found["loss"] == {"worse": 0.5, "difference": pytest.approx(1.5 / 4)}
    some = {"held_out": [1, 0, 1, 0]}  # two clients have nothing to be measured on
    nan = np.nan
    found = clients.harm(own | some | {"accuracy": [0.5, nan, 0.7, nan]}, alone | some)
    assert found["accuracy"] == {"worse": 0.5, "difference": pytest.approx(-0.1)}
    assert list(clients.harm({"held_out": [0], "loss": [1.0]}, {"held_out": [0], "loss": [2.0]})) == ["loss"]
    lost = clients.harm({"held_out": [0], "loss": [np.inf]}, {"held_out": [0], "loss": [np.inf]})
    assert math.isnan(lost["loss"]["worse"])


def figures(accuracy: list[float] | None, loss: list[float]) -> PerClient:
    values = torch.tensor(loss, dtype=torch.float64)
    share = None if accuracy is None else torch.tensor(accuracy, dtype=torch.float64)
    there = ~values.isnan()
    return PerClient(values, share, there, "training" if bool(there.all()) else "held-out")


def test_metrics_by_hand() -> None:
    found = clients.metrics(figures([0.2, 0.4, 0.9], [3.0, 2.0, 1.0]), [0.5, 0.25, 0.25], [0.3, 0.1, 0.2])
    assert found == {
        "client_loss": pytest.approx(2.25),
        "client_accuracy": pytest.approx(0.425),
        "worst_decile_loss": 3.0,
        "worst_decile_accuracy": 0.2,
        "least_decile_accuracy": 0.4,  # who comes least
        "client_accuracy_gini": pytest.approx(2 * (0.2 + 0.5 + 0.7) / (2 * 3 * 1.5)),
    }


def test_metrics_leave_out_who_is_not_measured() -> None:
    """The rest keep their weights among each other; nothing is said of a tenth in which nobody is measured."""
    nan = math.nan
    found = clients.metrics(figures([nan, 0.4, 0.8], [nan, 2.0, 1.0]), [0.5, 0.125, 0.375], [0.1, 0.2, 0.3])
    assert found["client_accuracy"] == pytest.approx(0.7)
    assert found["client_loss"] == pytest.approx(1.25)
    assert found["worst_decile_accuracy"] == 0.4
    assert "least_decile_accuracy" not in found
    assert clients.metrics(figures([nan], [nan]), [1.0], [1.0]) == {}
    assert clients.metrics(figures(None, [1.0, 3.0]), [0.5, 0.5], [1.0, 1.0]) == {
        "client_loss": 2.0, "worst_decile_loss": 3.0,
    }  # fmt: skip


# --- tables -----------------------------------------------------------------------------------------------------------


def made(n: int = 20) -> dict[str, Any]:
    """A table in which accuracy rises with the rate and falls with the size."""
    i = np.arange(n)
    return {
        "client": i,
        "examples": 2 * n - i,
        "held_out": np.zeros(n, dtype=int),
        "rate": i / n,
        "probability": np.where(i < 5, 0.25, 0.75),
        "group": i % 3,
        "loss": 1.0 - i / n,
        "accuracy": i / n,
    }


def test_a_summary_is_its_table() -> None:
    found = clients.summary(made())
    assert (found["on"], found["clients"], found["unmeasured"], found["listed"]) == ("training", 20, 0, True)
    assert found["accuracy_mean"] == pytest.approx(0.475)
    assert found["accuracy_std"] == pytest.approx(np.std(np.arange(20) / 20))
    assert found["worst_decile_accuracy"] == found["least_decile_accuracy"] == pytest.approx(0.025)
    assert found["worst_decile_loss"] == pytest.approx(0.975)
    by_rate, by_size = found["by_participation"], found["by_size"]
    assert len(by_rate) == len(by_size) == 10
    assert by_rate[3] == {
        "clients": 2, "measured": 2, "examples": 33.5, "held_out": 0.0, "rate": pytest.approx(0.325),
        "probability": 0.75, "loss": pytest.approx(0.675), "accuracy": pytest.approx(0.325),
    }  # fmt: skip
    assert [part["accuracy"] for part in by_size] == [part["accuracy"] for part in reversed(by_rate)]
    assert [(part["group"], part["clients"]) for part in found["by_group"]] == [(0, 7), (1, 7), (2, 6)]
    assert [(part["probability"], part["clients"]) for part in found["by_probability"]] == [(0.25, 5), (0.75, 15)]
    assert found["by_probability"][0]["accuracy"] == pytest.approx(0.1)
    json.dumps(found)  # plain numbers only


def test_many_probabilities_are_no_groups() -> None:
    for distinct, there in ((6, True), (7, False)):
        found = clients.summary(made() | {"probability": np.arange(20) % distinct / 10})
        assert ("by_probability" in found) == there
    bare = {name: column for name, column in made().items() if name not in ("probability", "group", "accuracy")}
    found = clients.summary(bare)
    assert not {"by_probability", "by_group", "accuracy_mean"} & set(found)
    assert found["loss_mean"] == pytest.approx(0.525)


def test_a_column_that_is_added_is_averaged() -> None:
    found = clients.summary(made() | {"effective_weight": np.arange(20) * 2.0})
    assert found["by_participation"][0]["effective_weight"] == 1.0


def test_who_is_not_measured_is_counted_and_left_out() -> None:
    """Rates and sizes are still of all."""
    table = made()
    table["held_out"][3:] = 1
    table["accuracy"][:3] = table["loss"][:3] = np.nan
    found = clients.summary(table)
    assert (found["on"], found["unmeasured"]) == ("held-out", 3)
    assert found["accuracy_mean"] == pytest.approx(np.arange(3, 20).mean() / 20)
    first, second, third = found["by_participation"][:3]
    assert (first["clients"], first["measured"], first["rate"]) == (2, 0, 0.025)
    assert math.isnan(first["accuracy"])
    assert math.isnan(found["least_decile_accuracy"])
    assert (second["measured"], second["accuracy"], second["rate"]) == (1, pytest.approx(0.15), pytest.approx(0.125))
    assert third["accuracy"] == pytest.approx(0.225)


def test_a_loss_without_bounds_is_told_as_it_is() -> None:
    found = clients.summary(made() | {"loss": np.full(20, np.inf)})
    assert found["loss_mean"] == found["worst_decile_loss"] == np.inf
    assert math.isnan(found["loss_std"])


def test_more_clients_than_are_listed_are_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "LISTED", 19)
    assert clients.summary(made())["listed"] is False


def test_the_table_of_a_run() -> None:
    task = federate("digits", clients=12, partition=Dirichlet(0.3), model="logistic", seed=1, holdout=0.25)
    schedule = Bernoulli(0.3).draw(12, 30, seed=1)
    found = clients.table(task, schedule, per_client(task, task.fresh(1)))
    assert found["rate"].tolist() == schedule.matrix().numpy().mean(0).tolist()
    assert found["probability"].tolist() == [0.3] * 12
    assert task.held is not None
    for i in range(12):
        here, apart = (part.rows[part.first[i] : part.first[i] + part.size[i]] for part in (task, task.held))
        assert (found["examples"][i], found["held_out"][i]) == (len(here), len(apart))
        labels = torch.cat([task.targets[here], task.targets[apart]])
        assert found["group"][i] == torch.bincount(labels, minlength=10).argmax()
    without = clients.table(task, Schedule.from_matrix(np.ones((2, 12), bool)), per_client(task, task.fresh(1)))
    assert "probability" not in without


# --- held out ---------------------------------------------------------------------------------------------------------


def client_rows(task: Task, i: int) -> tuple[set[int], set[int]]:
    """What a client trains on, and what it holds out."""
    assert task.held is not None
    one, other = (part.rows[part.first[i] : part.first[i] + part.size[i]].tolist() for part in (task, task.held))
    assert len(set(one)) == len(one)
    return set(one), set(other)


def test_what_is_held_out_is_a_share_of_each_client() -> None:
    whole = federate("digits", clients=40, partition=Dirichlet(0.2), seed=2)
    task = federate("digits", clients=40, partition=Dirichlet(0.2), seed=2, holdout=0.2)
    for i in range(40):
        train, held = client_rows(task, i)
        all_of = set(whole.rows[whole.first[i] : whole.first[i] + whole.size[i]].tolist())
        assert not train & held
        assert train | held == all_of
        assert train
        assert abs(len(held) - 0.2 * len(all_of)) <= 1
        assert len(held) > 0 or len(all_of) == 1
    torch.testing.assert_close(task.weights(), task.size.double() / task.size.sum())  # of those trained on
    np.testing.assert_array_equal(task.histogram(), whole.histogram())


@pytest.mark.parametrize(
    ("size", "share", "held"), [(1, 0.5, 0), (2, 0.01, 1), (2, 0.99, 1), (10, 0.2, 2), (10, 0.96, 9)]
)
def test_something_stays_on_either_side(size: int, share: float, held: int) -> None:
    sizes = np.array([size, 1])
    parts = Parts(np.arange(size + 1), np.array([0, size]), sizes, np.zeros(size + 1), moved=1)
    kept, apart = hold_out(parts, share, seed=1)
    assert kept.targets is parts.targets
    assert kept.moved == 1
    assert kept.size.tolist() == [size - held, 1]
    if held:
        assert apart is not None
        assert apart.size.tolist() == [held, 0]
        assert sorted([*kept.rows, *apart.rows]) == list(range(size + 1))
        assert (np.diff(kept.rows) > 0).all()
    else:
        assert apart is None


def test_what_is_held_out_depends_on_seed_and_client_only() -> None:
    def held(sizes: list[int], client: int, seed: int) -> list[int]:
        """Places among the client's own examples."""
        size = np.array(sizes)
        first = np.cumsum(size) - size
        _, apart = hold_out(Parts(np.arange(size.sum()), first, size), 0.3, seed)
        assert apart is not None
        rows = apart.rows[apart.first[client] : apart.first[client] + apart.size[client]]
        return (rows - first[client]).tolist()

    assert held([50, 40, 60], 1, seed=1) == held([7, 40], 1, seed=1)
    assert held([50, 40, 60], 1, seed=1) != held([50, 40, 60], 1, seed=2)
    assert held([40, 40], 0, seed=1) != held([40, 40], 1, seed=1)


def test_holding_nothing_out_changes_nothing() -> None:
    one, other = (federate("digits", clients=10, seed=3, **extra) for extra in ({}, {"holdout": 0.0}))
    assert one.held is None
    assert other.held is None
    assert torch.equal(one.rows, other.rows)
    for share in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match="holdout must be at least 0 and below 1"):
            federate("digits", clients=10, holdout=share)
        with pytest.raises(ValueError, match=r"holdout must be (at least 0 and below 1|a finite number)"):
            experiment.parse({"task": {"holdout": share}, "strategy": [{"name": "FedAvg"}]})


def test_labels_that_clients_swap_are_swapped_in_what_they_hold_out() -> None:
    """Everything swaps: an even client has no true label of its pair left, in either part."""
    partition = LabelSwap(fraction=1.0, even=(3, 4), odd=(5, 6))
    task = federate("digits", clients=6, partition=partition, seed=1, holdout=0.3)
    true = torch.as_tensor(Digits().load().targets)
    assert split(Digits().load(), partition, 6, 1).targets is not None
    assert task.held is not None
    swap = torch.arange(10)
    seen = 0
    for i in range(6):
        one, other = ((5, 6), (3, 4))[i % 2 == 0]
        swap = torch.arange(10)
        swap[one], swap[other] = other, one
        for part in (task, task.held):
            rows = part.rows[part.first[i] : part.first[i] + part.size[i]]
            assert torch.equal(task.targets[rows], swap[true[rows]])
            seen += int((task.targets[rows] != true[rows]).sum()) if part is task.held else 0
    assert seen > 20


# --- on the way -------------------------------------------------------------------------------------------------------


def test_a_table_survives_flower_s_log(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("flwr")
    from fedsim.flower import app

    table = made() | {"loss": np.array([np.nan, *np.arange(19) / 3])}
    app.tell(iter([compare.Clients("a", 1, table)]))
    (event,) = [found for line in capsys.readouterr().out.splitlines() if (found := app.told(line)) is not None]
    assert isinstance(event, compare.Clients)
    assert list(event.table) == list(table)
    for name, column in table.items():
        np.testing.assert_array_equal(event.table[name], column)
        assert event.table[name].dtype.kind == column.dtype.kind
    monkeypatch.setattr(app, "LISTED", 19)
    assert app.told_of(table) == {}


def test_clients_is_imported_without_torch() -> None:
    """Run folders need it, and `fedsim --help` may not wait for torch."""
    code = "import sys, fedsim.clients, fedsim.record; assert not {'torch', 'flwr', 'matplotlib'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0
