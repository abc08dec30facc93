"""Comparing on common random numbers: a run is what `simulate` gives by hand, and does not depend on its company."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsim import compare, experiment, measure, models, strategies
from fedsim.data import Clusters, Dataset, split
from fedsim.data.partition import Dirichlet
from fedsim.local import LocalSGD
from fedsim.participation import Bernoulli, LabelCorrelated
from fedsim.simulation import simulate
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
    "run": {"rounds": 5, "seeds": [3, 4], "eval-every": 2, "device": "cpu", "eval-nodes": 4},
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
    for step in simulate(task, strategy, schedule, local, seed=seed, p=p):
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
    kinds = [type(e).__name__ for e in everything]
    run = ["Measured", "Played", "Measured", "Played", "Played", "Measured", "Played", "Measured", "Played", "Finished"]
    assert kinds == 2 * ["Began", *3 * run]


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
    finished = found[-1]
    assert isinstance(finished, compare.Finished)
    assert finished.final == history[20]
    for name in ("test_loss", "test_accuracy", "train_objective", "present"):
        assert finished.final_mean[name] == pytest.approx((history[18][name] + history[20][name]) / 2)


def test_settings_that_do_not_go_together_fail_alone() -> None:
    """Known only when it runs: SCAFFOLD cannot do with clipped gradients. The others go on."""
    tables = {**TABLES, "strategy": [{"name": "SCAFFOLD", "local": {"clip": 1.0}}, {"name": "FedAvg"}]}
    found = list(compare.compare(experiment.parse(tables)))
    failed = [e for e in found if isinstance(e, compare.Failed)]
    assert [(e.strategy, e.seed) for e in failed] == [("SCAFFOLD", 3), ("SCAFFOLD", 4)]
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


def test_summaries() -> None:
    def run(label: str, seed: int, accuracy: float) -> compare.Finished:
        return compare.Finished(label, seed, 10, {}, {"test_accuracy": accuracy}, 1.0, 1.0)

    found = compare.summarise([run("a", 1, 0.5), run("b", 1, 0.9), run("a", 2, 0.7)])
    assert [(s.strategy, s.seeds) for s in found] == [("a", 2), ("b", 1)]
    assert found[0].mean["test_accuracy"] == pytest.approx(0.6)
    assert found[0].std["test_accuracy"] == pytest.approx(math.sqrt(0.02))
    assert math.isnan(found[1].std["test_accuracy"])


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
