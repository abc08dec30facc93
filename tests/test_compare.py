"""Comparing on common random numbers: a run is what `simulate` gives by hand, and does not depend on its company."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim import clients, compare, experiment, federate, ledger, measure, models, strategies
from fedsim.data import Clusters, Dataset, split
from fedsim.data.partition import Dirichlet
from fedsim.engine import Stacked
from fedsim.local import LocalSGD
from fedsim.mixing import Alone
from fedsim.participation import Bernoulli, LabelCorrelated, Schedule
from fedsim.simulation import prepare, simulate
from fedsim.task import make_task

TABLES: dict[str, Any] = {
    "task": {
        "data": {"name": "clusters", "classes": 3, "dimension": 4, "examples": 60, "test-examples": 30},
        "clients": 6,
        "model": "logistic",
        "partition": {"name": "dirichlet", "alpha": 0.3},
        "objective": "uniform",
    },
    "participation": {"name": "bernoulli", "probabilities": {"name": "label-correlated", "mean": 0.4}},
    "local": {"lr": 0.1, "steps": 2, "batch": 4},
    "strategy": [
        {"name": "FedAvg", "weights": "known"},
        {"name": "MIFA", "local": {"lr": 0.05}},
        {"name": "DPSGD", "topology": "ring"},
    ],
    "run": {"rounds": 5, "seeds": [3, 4], "eval-every": 2, "device": "cpu", "eval-nodes": 4, "chunk": 2},
}


def events(*labels: str, **run: Any) -> list[compare.Event]:
    """What comparing the strategies named gives, Began and all."""
    chosen = [entry for entry in TABLES["strategy"] if entry["name"] in labels]
    made = experiment.parse({**TABLES, "strategy": chosen, "run": {**TABLES["run"], **run}})
    return list(compare.compare(made))


@pytest.fixture(scope="module")
def everything() -> list[compare.Event]:
    return events("FedAvg", "MIFA", "DPSGD")


def measured(found: list[compare.Event], label: str, seed: int) -> dict[int, dict[str, float]]:
    return {e.round: e.metrics for e in found if isinstance(e, compare.Measured) and (e[0], e[1]) == (label, seed)}


def by_hand(label: str, seed: int) -> tuple[dict[int, dict[str, float]], Any]:
    """The same run without experiment or compare."""
    dataset: Dataset = Clusters(classes=3, dimension=4, examples=60, test_examples=30).load()
    parts = split(dataset, Dirichlet(0.3), 6, seed)

    def module() -> torch.nn.Module:
        return models.build("logistic", (4,), 3)

    task = make_task(dataset, parts, module(), seed_module=lambda key: models.fresh(module, key))
    schedule = Bernoulli(LabelCorrelated(mean=0.4)).draw(6, 5, seed, histogram=task.histogram())
    strategy: Any = {
        "FedAvg": strategies.FedAvg(weights=experiment.names("weights")["known"]()),
        "MIFA": strategies.MIFA(),
    }[label]
    local = LocalSGD(lr=0.05 if label == "MIFA" else 0.1, steps=2, batch=4)
    p = torch.full((6,), 1 / 6, dtype=torch.float64)
    found = {}
    for step in simulate(task, strategy, schedule, local, seed=seed, p=p, engine=Stacked(2)):
        found[step.t + 1] = measure.test(task, step.model) | {"train_objective": measure.objective(task, step.model, p)}
    return found, schedule


@pytest.mark.parametrize("label", ["FedAvg", "MIFA"])
@pytest.mark.parametrize("seed", [3, 4])
def test_a_run_is_what_simulate_gives(everything: list[compare.Event], label: str, seed: int) -> None:
    hand, schedule = by_hand(label, seed)
    began = next(e for e in everything if isinstance(e, compare.Began) and e.seed == seed)
    assert began.schedule.digest() == schedule.digest()
    found = measured(everything, label, seed)
    assert list(found) == [0, 2, 4, 5]
    for round in (2, 4, 5):
        assert {name: found[round][name] for name in hand[round]} == hand[round]


@pytest.mark.parametrize("label", ["FedAvg", "MIFA", "DPSGD"])
def test_company_changes_nothing(everything: list[compare.Event], label: str) -> None:
    alone = events(label, seeds=[4])
    assert measured(alone, label, 4) == measured(everything, label, 4)


def test_the_order_of_events(everything: list[compare.Event]) -> None:
    """Side by side all runs play a round before any plays the next; one by one a run ends before the next begins."""
    rounds = [["Played"], ["Measured", "Timed", "Played"], ["Played"], ["Measured", "Timed", "Played"]]
    last = ["Measured", "Timed", "Played", "Clients", "Finished"]
    beside = ["Measured", "Timed"] * 6
    for one in (*rounds, last):
        beside += [*6 * one, "Stand"]
    assert [type(e).__name__ for e in everything] == ["Planned", "Began", "Began", *beside]
    single = events("FedAvg", "MIFA", "DPSGD", together=1)
    run = ["Measured", "Timed", *(kind for one in (*rounds, last) for kind in (*one, "Stand"))]
    assert [type(e).__name__ for e in single] == ["Planned", "Began", *3 * run, "Began", *3 * run]


def test_a_round_says_how_many_took_part(everything: list[compare.Event]) -> None:
    began = {e.seed: e.schedule for e in everything if isinstance(e, compare.Began)}
    played = [e for e in everything if isinstance(e, compare.Played)]
    assert [e.present for e in played] == [len(began[e.seed][e.round - 1].chosen) for e in played]
    assert len({e.present for e in played}) > 1


# --- how clients fare -------------------------------------------------------------------------------------------------


def compared(changes: dict[str, dict[str, Any]], *entries: dict[str, Any]) -> list[compare.Event]:
    """What comparing these entries gives, with keys of [task] and [run] changed."""
    tables = {**TABLES, "strategy": list(entries) or [{"name": "FedAvg"}]}
    return list(compare.compare(experiment.parse(tables | {k: {**TABLES[k], **v} for k, v in changes.items()})))


def ends(found: list[compare.Event]) -> dict[tuple[str, int], tuple[compare.Clients, compare.Finished]]:
    """Every run's last two events, by (strategy, seed)."""
    pairs = {}
    for before, event in itertools.pairwise(found):
        if isinstance(event, compare.Finished):
            assert isinstance(before, compare.Clients)
            assert before[:2] == event[:2]
            pairs[event.strategy, event.seed] = (before, event)
    return pairs


def test_clients_are_measured_with_every_evaluation(everything: list[compare.Event]) -> None:
    """client_loss is the objective, the table is of the last model, and the summary is the table's."""
    for label in ("FedAvg", "MIFA", "DPSGD"):
        for metrics in measured(everything, label, 3).values():
            assert set(metrics) >= {
                "client_loss", "client_accuracy", "client_accuracy_gini", "worst_decile_loss", "worst_decile_accuracy",
                "least_decile_accuracy",
            }  # fmt: skip
            if label != "DPSGD":  # whose objective is of the mean model, and whose clients have models of their own
                assert metrics["client_loss"] == pytest.approx(metrics["train_objective"], rel=1e-6)
        told, finished = ends(everything)[label, 3]
        table, final = told.table, finished.final
        assert list(table) == [
            "client", "examples", "held_out", "rate", "probability", "weight", "effective_weight", "group", "loss",
            "accuracy",
        ]  # fmt: skip
        assert table["weight"] == pytest.approx(np.full(6, 1 / 6))
        assert table["client"].tolist() == list(range(6))
        assert table["examples"].sum() == 60
        assert final["client_accuracy"] == pytest.approx(table["accuracy"].mean())  # objective "uniform"
        assert final["worst_decile_accuracy"] == table["accuracy"].min()  # a tenth of six clients is one
        assert final["least_decile_accuracy"] == table["accuracy"][table["rate"].argmin()]
        assert finished.clients == clients.summary(table)
        assert finished.clients is not None
        assert finished.clients["on"] == "training"


def test_the_objective_weighs_the_clients() -> None:
    """By size, not alike, where the objective is of the examples."""
    told, finished = ends(compared({"task": {"objective": "examples"}}))["FedAvg", 3]
    weights = told.table["examples"] / 60
    assert finished.final["client_accuracy"] == pytest.approx(weights @ told.table["accuracy"])
    assert abs(finished.final["client_accuracy"] - told.table["accuracy"].mean()) > 1e-3


def test_clients_that_are_not_measured_are_not_told_of() -> None:
    found = compared({"run": {"eval-train": False}})
    assert not any(isinstance(event, compare.Clients) for event in found)
    finished = [event for event in found if isinstance(event, compare.Finished)]
    assert len(finished) == 2
    for event in finished:
        assert event.clients is None
        assert "clients" not in compare.as_result(event)
        assert not any("client_" in name or "decile" in name for name in event.final)


@pytest.mark.parametrize("train", [True, False])
def test_held_out_examples_are_what_clients_are_measured_on(train: bool) -> None:
    found = compared({"task": {"holdout": 0.3}, "run": {"eval-train": train}})
    told, finished = ends(found)["FedAvg", 3]
    assert finished.clients is not None
    assert finished.clients["on"] == "held-out"
    assert (told.table["examples"] + told.table["held_out"]).sum() == 60
    assert ((told.table["held_out"] > 0) == ~np.isnan(told.table["loss"])).all()
    assert ("train_objective" in finished.final) == train
    whole = compared({})  # who holds what and who is there is what it is without
    for one, other in zip(found, whole, strict=False):
        if isinstance(one, compare.Began):
            assert isinstance(other, compare.Began)
            assert one.schedule.digest() == other.schedule.digest()


# --- with what weight their updates entered ---------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["FedAvg", "MIFA"])
def test_the_ledger_is_that_of_the_run(everything: list[compare.Event], label: str) -> None:
    """Entered by hand along `simulate`: the weights, how far off they are, and the objective worked on."""
    told, finished = ends(everything)[label, 3]
    dataset = Clusters(classes=3, dimension=4, examples=60, test_examples=30).load()
    parts = split(dataset, Dirichlet(0.3), 6, 3)

    def module() -> torch.nn.Module:
        return models.build("logistic", (4,), 3)

    task = make_task(dataset, parts, module(), seed_module=lambda key: models.fresh(module, key))
    schedule = Bernoulli(LabelCorrelated(mean=0.4)).draw(6, 5, 3, histogram=task.histogram())
    known = strategies.FedAvg(weights=experiment.names("weights")["known"]())
    strategy = prepare(known if label == "FedAvg" else strategies.MIFA(), task, schedule)
    p = torch.full((6,), 1 / 6, dtype=torch.float64)
    twin = ledger.open(strategy, p)
    local = LocalSGD(lr=0.05 if label == "MIFA" else 0.1, steps=2, batch=4)
    model = None
    for step in simulate(task, strategy, schedule, local, seed=3, p=p):
        twin, model = ledger.enter(strategy, twin, step.round, torch.arange(6)), step.model
    assert model is not None
    w = ledger.shares(strategy, twin)
    assert told.table["effective_weight"] == pytest.approx(w.numpy(), abs=1e-12)
    assert told.table["effective_weight"].sum() == pytest.approx(1.0)
    assert finished.final["weight_distance"] == pytest.approx(float((w - p).abs().sum() / 2))
    assert finished.final["implied_objective"] == pytest.approx(float(w @ measure.training_losses(task, model)))
    assert abs(finished.final["implied_objective"] - finished.final["train_objective"]) > 1e-4
    assert finished.clients is not None
    assert "effective_weight" in finished.clients["by_participation"][0]


def test_where_there_is_no_ledger_nothing_is_said() -> None:
    for found in (compared({"run": {"ledger": False}}), compared({}, {"name": "FedAdam", "lr": 0.01})):
        for told, finished in ends(found).values():
            assert "effective_weight" not in told.table
            assert "weight" in told.table
            assert not {"weight_distance", "implied_objective"} & set(finished.final)


def test_nothing_is_off_before_anything_has_entered(everything: list[compare.Event]) -> None:
    assert "weight_distance" not in measured(everything, "MIFA", 3)[0]
    assert "weight_distance" in measured(everything, "MIFA", 3)[5]


def test_evaluating_more_often_changes_no_weight(everything: list[compare.Event]) -> None:
    other = events("MIFA", **{"eval-every": 1})
    assert (ends(other)["MIFA", 3][0].table["effective_weight"] == ends(everything)["MIFA", 3][0].table[
        "effective_weight"
    ]).all()  # fmt: skip


# --- what keeps a model from the minimum ------------------------------------------------------------------------------

Q4: dict[str, Any] = {
    "task": {"data": "quadratic", "clients": 4, "model": "scalar", "partition": "natural", "objective": "uniform"},
    "participation": "everyone",
    "local": {"lr": 0.05, "steps": 5, "batch": "all"},
    "run": {"rounds": 60, "seeds": [1], "device": "cpu", "dtype": "float64", "eval-every": 30, "optimum": True},
}


def test_the_error_is_told_apart() -> None:
    """The minimum of the four quadratics is 1.5, five steps settle at 1.680542, and everybody is there: all drift."""
    adam = {"name": "FedAdam", "lr": 0.1}
    found = list(compare.compare(experiment.parse({**Q4, "strategy": [{"name": "FedAvg"}, adam]})))
    plain, adaptive = (event for event in found if isinstance(event, compare.Finished))
    off = 1.25 / 2 * 0.180542**2  # the mean of a is 1.25
    assert plain.final["suboptimality"] == pytest.approx(off, rel=1e-4)
    assert plain.final["distance_to_optimum"] == pytest.approx(0.180542, abs=1e-6)
    assert plain.error is not None
    assert plain.error["participation_bias"] == pytest.approx(0.0, abs=1e-9)
    assert plain.error["client_drift"] == pytest.approx(off, rel=1e-4)
    assert plain.error["sampling_noise"] == pytest.approx(0.0, abs=1e-6)
    assert adaptive.error == {
        "suboptimality": adaptive.final["suboptimality"],
        "distance": adaptive.final["distance_to_optimum"],
        "not_split": "its updates have no weights to enter",
    }
    assert compare.as_result(plain)["error"] == plain.error
    first = next(event for event in found if isinstance(event, compare.Measured))
    start = first.metrics["distance_to_optimum"]
    assert first.metrics["suboptimality"] == pytest.approx(1.25 / 2 * start**2)


def test_weight_decay_is_part_of_what_is_minimised() -> None:
    """x* = mean(a b) / (mean(a) + decay); and each entry has the minimum of its own."""
    tables = {**Q4, "strategy": [{"name": "FedAvg", "local": {"weight-decay": 0.5, "steps": 1}}, {"name": "MIFA"}]}
    decayed, plain = (e for e in compare.compare(experiment.parse(tables)) if isinstance(e, compare.Finished))
    assert decayed.final["suboptimality"] == pytest.approx(0.0, abs=5e-5)  # 60 rounds of one step
    assert plain.final["distance_to_optimum"] == pytest.approx(0.180542, abs=1e-3)


def test_a_negative_weight_is_no_convex_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger.Book, "shares", lambda self: torch.tensor([1.5, -0.5, 0.0, 0.0], dtype=torch.float64))
    (run,) = (
        event
        for event in compare.compare(experiment.parse({**Q4, "strategy": [{"name": "FedAvg"}]}))
        if isinstance(event, compare.Finished)
    )
    assert run.error is not None
    assert "below 0" in run.error["not_split"]


def test_nobody_asks_for_a_minimum_by_default(everything: list[compare.Event]) -> None:
    for event in everything:
        if isinstance(event, compare.Finished):
            assert event.error is None
            assert "error" not in compare.as_result(event)


# --- against training alone -------------------------------------------------------------------------------------------

ALONE = {"name": "DPSGD", "label": "alone", "mixing": "alone"}  # needs no topology


def test_taking_part_is_held_against_training_alone() -> None:
    """Seed by seed, wherever in the file it is listed; it goes first, and is not held against itself."""
    found = compared({}, {"name": "FedAvg"}, {"name": "MIFA"}, ALONE)
    order = [event.strategy for event in found if isinstance(event, compare.Finished)]
    assert order == 2 * ["alone", "FedAvg", "MIFA"]
    pairs = ends(found)
    shares = set()
    for seed in (3, 4):
        alone = pairs["alone", seed][0].table
        assert "harm" not in (pairs["alone", seed][1].clients or {})
        for label in ("FedAvg", "MIFA"):
            told, finished = pairs[label, seed]
            assert finished.clients is not None
            harm = finished.clients["harm"]
            assert harm["against"] == "alone"
            difference = told.table["accuracy"] - alone["accuracy"]
            assert harm["accuracy"] == {"worse": (difference < 0).mean(), "difference": difference.mean()}
            assert harm["loss"]["worse"] == (told.table["loss"] > alone["loss"]).mean()
            shares.add(harm["loss"]["difference"])
    assert len(shares) == 4


def test_without_anybody_alone_there_is_no_harm_to_tell(everything: list[compare.Event]) -> None:
    """Nor where training alone diverges."""
    assert all("harm" not in (finished.clients or {}) for _, finished in ends(everything).values())
    found = compared({"run": {"seeds": [3]}}, {**ALONE, "local": {"lr": 3e38, "weight-decay": 1.0}}, {"name": "FedAvg"})
    assert [type(e).__name__ for e in found if isinstance(e, (compare.Failed, compare.Finished))] == [
        "Failed", "Finished",
    ]  # fmt: skip
    assert "harm" not in (ends(found)["FedAvg", 3][1].clients or {})


def test_a_client_alone_is_a_federation_of_one() -> None:
    """Its model at the end is what FedAvg makes of its presence when nobody else ever comes."""
    task = federate("clusters", clients=4, model="logistic", partition=Dirichlet(0.3), seed=1)
    presence, local = Bernoulli(0.5).draw(4, 8, seed=1), LocalSGD(lr=0.1, steps=2, batch=4)
    together = list(simulate(task, strategies.DPSGD(mixing=Alone()), presence, local, seed=1))[-1].model
    for i in range(4):
        only = Schedule.from_matrix(presence.matrix().numpy() & (np.arange(4) == i))
        by_itself = list(simulate(task, strategies.FedAvg(), only, local, seed=1))[-1].model
        torch.testing.assert_close(together[i], by_itself, rtol=1e-6, atol=1e-7)
    assert (together[0] - together[1]).abs().max() > 1e-2


def test_the_first_five_numbers_of_a_finished_run_are_matched_by_place(everything: list[compare.Event]) -> None:
    """The pattern that the module, the README and users' loops have."""
    found = 0
    for event in everything:
        match event:
            case compare.Finished(strategy, seed, rounds, final, final_mean):
                assert (strategy, seed, rounds) == (event.strategy, event.seed, 5)
                assert final["test_loss"] > 0
                assert final_mean.keys() <= final.keys()
                found += 1
    assert found == 6


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_bytes_are_counted_from_the_start(everything: list[compare.Event]) -> None:
    parameters = 4 * 3 + 3
    for seed in (3, 4):
        began = next(e for e in everything if isinstance(e, compare.Began) and e.seed == seed)
        found = measured(everything, "FedAvg", seed)
        for done in (2, 4, 5):
            sent = sum(len(began.schedule[t].chosen) for t in range(done))
            assert found[done]["bytes_up"] == found[done]["bytes_down"] == sent * parameters * 4
            assert found[done]["present"] == len(began.schedule[done - 1].chosen)


def test_final_mean_is_over_the_last_fifth() -> None:
    found = events("FedAvg", rounds=20, **{"eval-every": 2, "seeds": [3]})
    history = measured(found, "FedAvg", 3)
    finished = found[-2]
    assert isinstance(finished, compare.Finished)
    assert finished.final == history[20]
    for name in ("test_loss", "test_accuracy", "train_objective", "present"):
        assert finished.final_mean[name] == pytest.approx((history[18][name] + history[20][name]) / 2)


def test_what_turns_out_not_to_go_together_fails_alone(tmp_path: Path) -> None:
    """Known only when it runs. The others go on."""
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom fedsim.strategies import FedAvg\n"
        "@dataclass(frozen=True)\nclass Never(FedAvg):\n"
        "    def step(self, s, r):\n        raise ValueError('not with this clip')\n"
    )
    tables = {**TABLES, "strategy": [{"name": "mine.py:Never", "label": "never"}, {"name": "FedAvg"}]}
    found = list(compare.compare(experiment.parse(tables, tmp_path)))
    failed = [e for e in found if isinstance(e, compare.Failed)]
    assert [(e.strategy, e.seed) for e in failed] == [("never", 3), ("never", 4)]
    assert all("clip" in e.reason and "\n" not in e.reason for e in failed)
    assert [e.strategy for e in found if isinstance(e, compare.Finished)] == ["FedAvg", "FedAvg"]


def test_a_strategy_that_cannot_begin_stops_everything(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom fedsim.strategies import FedAvg\n"
        "@dataclass(frozen=True)\nclass Never(FedAvg):\n"
        "    def init(self, x, p, key=0):\n        raise ValueError('not today')\n"
    )
    tables = {**TABLES, "strategy": [{"name": "FedAvg"}, {"name": "mine.py:Never", "label": "never"}]}
    with pytest.raises(ValueError, match=r"^never: not today$"):
        next(compare.compare(experiment.parse(tables, tmp_path)))


def test_engines_agree() -> None:
    """Another engine computes the same run, to rounding."""
    one = measured(events("MIFA", seeds=[3]), "MIFA", 3)
    other = measured(events("MIFA", seeds=[3], engine="loop"), "MIFA", 3)
    for round, metrics in one.items():
        assert other[round]["test_loss"] == pytest.approx(metrics["test_loss"], rel=1e-4)


def test_precision_is_chosen() -> None:
    single = measured(events("FedAvg", seeds=[3]), "FedAvg", 3)[5]["test_loss"]
    double = measured(events("FedAvg", seeds=[3], dtype="float64"), "FedAvg", 3)[5]["test_loss"]
    assert 0 < abs(single - double) < 1e-4


@pytest.mark.parametrize("device", ["cuda:99", "cuda"])
def test_an_absent_device_is_refused(device: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(ValueError, match=f'device "{device}" is not there: torch .* finds'):
        events("FedAvg", device=device)
