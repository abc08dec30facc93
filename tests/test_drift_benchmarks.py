"""benchmarks/fedprox_stragglers.py and momentum_noniid.py: tiny runs from end to end, their rules by hand, and what is
committed; and the data of the first, Synthetic(alpha, beta)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import load_benchmark

from fedsim import data, experiment, federate, paired

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks find what lies beside them."""
    monkeypatch.syspath_prepend(str(FOLDER))


def committed(name: str) -> dict[str, Any]:
    found = json.loads((FOLDER / "results" / f"{name}.json").read_text())
    return found  # type: ignore[no-any-return]


# The data ------------------------------------------------------------------------------------------------------------


def test_synthetic_is_what_its_docstring_says() -> None:
    d = data.load("synthetic", clients=40, spread=0.5, seed=3)
    sizes = np.array([len(rows) for rows in d.natural or ()])
    assert d.inputs.shape == (sizes.sum(), 60)
    assert len(sizes) == 40
    assert sizes.min() >= 45  # nine tenths of at least 50
    assert abs(len(d.test_inputs) / (len(d.inputs) + len(d.test_inputs)) - 0.1) < 0.02
    centred = torch.cat([d.inputs[rows] - d.inputs[rows].mean(0) for rows in map(torch.as_tensor, d.natural or ())])
    deviation = centred.std(0) * math.sqrt(sizes.sum() / (sizes.sum() - 40))
    torch.testing.assert_close(deviation, torch.arange(1, 61).pow(-0.6), rtol=0.06, atol=0.0)
    again, other = data.load("synthetic", clients=40, spread=0.5, seed=3), data.load("synthetic", seed=4)
    assert torch.equal(d.inputs, again.inputs)
    assert len(other.inputs) != len(d.inputs)


def test_beta_moves_the_inputs_and_alpha_nothing() -> None:
    def spread_of_means(beta: float) -> float:
        d = data.load("synthetic", alpha=0.0, beta=beta, clients=60, spread=0.2, seed=1)
        middles = torch.stack([d.inputs[torch.as_tensor(rows)].mean() for rows in d.natural or ()])
        return float(middles.std())

    assert spread_of_means(0.0) < 0.3  # 1/sqrt(60) for the entries of v alone
    assert spread_of_means(3.0) == pytest.approx(3.0, rel=0.3)
    one, two = (data.load("synthetic", alpha=alpha, clients=5, seed=2) for alpha in (0.0, 2.0))
    assert torch.equal(one.inputs, two.inputs)
    assert torch.equal(one.targets, two.targets)  # u_k (Σ x + 1) is added to the score of every class


def test_a_client_of_synthetic_is_separable() -> None:
    """Labels are an argmax of a linear model: its own logistic regression learns them by heart."""
    from sklearn.linear_model import LogisticRegression

    d = data.load("synthetic", clients=3, spread=0.1, seed=5)
    rows = (d.natural or ())[0]
    x, y = d.inputs[rows].numpy(), d.targets[rows].numpy()
    assert LogisticRegression(C=1e5, max_iter=5000).fit(x, y).score(x, y) == 1.0
    task = federate(d, clients=3, partition=data.partitions.Natural(), model="logistic")
    assert task.sizes == [len(each) for each in d.natural or ()]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"alpha": -1.0}, "alpha must be at least 0"),
        ({"beta": float("inf")}, "beta must be at least 0"),
        ({"spread": float("nan")}, "spread must be at least 0"),
        ({"clients": 0}, "clients must be at least 1"),
        ({"classes": 1}, "classes must be at least 2"),
    ],
)
def test_impossible_data_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        data.Synthetic(**settings)


# fedprox_stragglers --------------------------------------------------------------------------------------------------


def test_fedprox_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """From end to end, small: FedAvg and FedProx, μ = 0, are one without stragglers and differ with them."""
    bench = load_benchmark("fedprox_stragglers")
    monkeypatch.setattr(bench, "LEVELS", (0.0, 0.9))
    found = bench.run(seeds=(1,), rounds=2, spread=0.1)
    for metric in bench.METRICS:
        none, most = (found["levels"][level][metric] for level in ("0", "0.9"))
        assert none[bench.AVG] == none[bench.KEPT]
        assert set(most) == {bench.AVG, bench.KEPT, bench.PULLED}
    assert found["levels"]["0.9"]["train_objective"][bench.AVG] != found["levels"]["0.9"]["train_objective"][bench.KEPT]
    assert "90% stragglers, seed 1" in capsys.readouterr().out


def test_fedprox_measures_by_hand() -> None:
    """Evaluations at rounds 0, 2, ..., 10: the last fifth is round 10; rises are 0.5 and 0.25 in five steps."""
    bench = load_benchmark("fedprox_stragglers")
    curves = {"train_objective": [3.0, 2.0, 2.5, 1.0, 1.25, 1.0], "test_accuracy": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}
    found = bench.measures(curves, 10)
    assert found == pytest.approx({"train_objective": 1.0, "test_accuracy": 0.6, "rises": 0.15})


def test_fedprox_verdicts_by_hand() -> None:
    bench = load_benchmark("fedprox_stragglers")

    def gap(low: float, high: float) -> Any:
        return paired.difference("a", "b", "m", {1: 0.0, 2: 0.0}, {1: 0.0, 2: 0.0})._replace(low=low, high=high)

    assert bench.verdict([gap(-2, -1), gap(-3, -0.1)]) == "holds"
    assert bench.verdict([gap(-2, -1), gap(-3, 0.1)]) == "not clear"
    assert bench.verdict([gap(-2, -1), gap(0.1, 0.2)]) == "does not hold"


def test_fedproxs_stragglers_do_one_to_nineteen_epochs_of_twenty() -> None:
    bench = load_benchmark("fedprox_stragglers")
    whole = experiment.parse(bench.table(0.9, 1, 50))
    schedule = whole.participation.draw(30, 50, 1)
    share = np.concatenate([row.effort.numpy() for row in schedule])
    assert (share == 1).sum() == 50
    assert 0 < share[share < 1].min() < 0.05
    assert 0.9 < share[share < 1].max() <= 0.95
    assert [entry.strategy.mu for entry in whole.entries] == [0.0, 0.0, 1.0]  # type: ignore[union-attr]


def test_what_is_committed_of_fedprox_says_what_the_docstring_says(capsys: pytest.CaptureFixture[str]) -> None:
    bench, found = load_benchmark("fedprox_stragglers"), committed("fedprox_stragglers")
    assert bench.summary(found) == {name: found[name] for name in ("verdicts", "differences")}
    assert set(found["levels"]["0.9"]["rises"][bench.AVG]) == {str(seed) for seed in bench.SEEDS}
    assert found["rounds"] == bench.ROUNDS
    bench.show(found)
    for line in capsys.readouterr().out.splitlines()[:5]:
        assert line in bench.__doc__
    assert set(found["verdicts"].values()) == {"not clear"}


# momentum_noniid -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("beside")
def test_momentum_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From end to end on digits: a rate is chosen by the lowest measure, and the claims are read off fresh seeds."""
    bench = load_benchmark("momentum_noniid")
    monkeypatch.setattr(bench, "SETTINGS", {name: ("task.clients=4", *said) for name, said in bench.SETTINGS.items()})
    found = bench.run("digits", tmp_path, seeds=(1, 2), rounds=1, rates=(0.01, 0.1))
    assert list(found) == ["iid", "skewed", "partial"]
    for setting, cell in found.items():
        for label in bench.STRATEGIES[setting]:
            assert cell["tried"][label][f"{cell['rates'][label]:g}"] == min(cell["tried"][label].values())
            assert set(cell["values"][label]) == {1, 2}
    claims = bench.summary(found)
    heavy, plain = (
        [found["skewed"]["values"][label][s] - found["iid"]["values"][label][s] for s in (1, 2)]
        for label in ("FedAvg-M", "FedAvg")
    )
    assert claims["1 momentum takes the cost away"]["mean"] == pytest.approx(np.mean(heavy) - np.mean(plain))
    assert claims["2 none is left"]["mean"] == pytest.approx(np.mean(heavy) - bench.MARGIN)


@pytest.mark.usefixtures("beside")
def test_the_settings_of_momentum_differ_as_they_say(tmp_path: Path) -> None:
    bench = load_benchmark("momentum_noniid")
    rates = dict.fromkeys(("FedAvg", "FedAvg-M", "SCAFFOLD", "SCAFFOLD-M"), 0.3)
    made = {s: bench.made("cifar10", s, rates, [1], 80, tmp_path).document() for s in bench.SETTINGS}
    assert {s: document["task"].pop("partition")["name"] for s, document in made.items()} == {
        "iid": "iid", "skewed": "dirichlet", "partial": "dirichlet",
    }  # fmt: skip
    assert made["partial"]["participation"] == {"name": "uniform", "k": 2}
    assert made["iid"] == made["skewed"]
    assert all(each["local"]["lr"] == 0.3 for each in made["partial"]["strategy"])
    assert [each["label"] for each in made["partial"]["strategy"]] == ["SCAFFOLD", "SCAFFOLD-M"]


@pytest.mark.usefixtures("beside")
def test_a_run_that_diverges_counts_as_the_worst(tmp_path: Path) -> None:
    bench = load_benchmark("momentum_noniid")
    made = bench.made("digits", "iid", {"FedAvg": 1e30, "FedAvg-M": 0.1}, [1], 3, tmp_path)
    found = bench.play(made, "iid")
    assert found["FedAvg"][1] == math.inf
    assert found["FedAvg-M"][1] < 10


@pytest.mark.usefixtures("beside")
def test_what_is_committed_of_momentum_says_what_the_docstring_says(capsys: pytest.CaptureFixture[str]) -> None:
    bench, found = load_benchmark("momentum_noniid"), committed("momentum_noniid")
    assert found["rounds"] == bench.ROUNDS
    assert set(found["data"]) == set(bench.DATA)
    for which, each in found["data"].items():
        assert bench.summary(each) == found["claims"][which]
        for cell in each.values():
            assert all(set(values) == {str(seed) for seed in bench.SEEDS} for values in cell["values"].values())
            for label, rate in cell["rates"].items():
                tried = [value for value in cell["tried"][label].values() if value is not None]
                assert cell["tried"][label][f"{rate:g}"] == min(tried)
    bench.show(found)
    for line in capsys.readouterr().out.splitlines():
        assert line in bench.__doc__
