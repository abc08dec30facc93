"""The committed results of benchmarks/ are what the code gives today: a slice of each is run again."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import load_benchmark

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize("which", ["logistic", "cnn"])
def test_fedau_fashion_mnist(which: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rounds of FedAvg and FedAU with the first seed. To 1e-3: other processors round otherwise."""
    monkeypatch.setenv("FEDSIM_DATA", str(data_dir))
    committed = json.loads((FOLDER / "results" / f"fedau_fashion_mnist_{which}.json").read_text())
    benchmark = load_benchmark("fedau_fashion_mnist")
    rounds = {"logistic": 80, "cnn": 5}[which]
    again = benchmark.run(which, rounds=rounds, seeds=[1])
    assert again["experiment"]["local"] == committed["experiment"]["local"]
    for run in again["runs"]:
        same = next(r for r in committed["runs"] if (r["strategy"], r["seed"]) == (run["strategy"], run["seed"]))
        assert len(run["test_loss"]) > 1
        for t, loss in run["test_loss"].items():
            assert loss == pytest.approx(same["test_loss"][str(t)], abs=1e-3), (run["strategy"], t)


def test_the_claim_holds_in_the_committed_numbers() -> None:
    """FedAU below FedAvg in test loss, the paired interval clear of zero."""
    result = json.loads((FOLDER / "results" / "fedau_fashion_mnist_logistic.json").read_text())
    for label in ("FedAU", "FedAU, K = 50", "FedStale", "FedVARP", "MIFA", "known probabilities"):
        assert result["difference_to_FedAvg"]["test_loss"][label]["high"] < 0
    values = {label: [r["final_mean"]["test_loss"] for r in result["runs"] if r["strategy"] == label]
              for label in ("FedAvg", "FedAU")}  # fmt: skip
    assert len(values["FedAU"]) == 5
    differences = [a - b for a, b in zip(values["FedAU"], values["FedAvg"], strict=True)]
    assert load_benchmark("fedau_fashion_mnist").interval(differences)["mean"] == pytest.approx(
        result["difference_to_FedAvg"]["test_loss"]["FedAU"]["mean"]
    )


def committed(name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary of a benchmark and the runs it was made from."""
    path = FOLDER / "results" / f"{name}.json"
    runs = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    return json.loads(path.read_text()), runs


def test_side_by_side_is_simulate() -> None:
    """Every strategy of participation_bias, each with a learning rate of its own, through an empty round and with
    batches that are not full, gives the model of a run alone."""
    from fedsim import LocalSGD, federate, simulate
    from fedsim.engine import Stacked
    from fedsim.participation import Bernoulli

    module, benchmark = load_benchmark("side_by_side"), load_benchmark("participation_bias")
    task = federate("digits", clients=40, model="logistic", seed=3)
    assert task.sizes != sorted(task.sizes, reverse=True)
    assert min(task.sizes) < 20
    local, p = LocalSGD(lr=1.0, steps=3, batch=20), task.weights("uniform")
    schedule = Bernoulli(0.04).draw(task.n, 8, seed=1)
    present = [len(row.chosen) for row in schedule]
    assert 0 in present
    assert max(present) > 2
    contenders = [
        module.Contender(make(1.5), 0.02 * (m + 1)) for m, make in enumerate(benchmark.STRATEGIES.values())
    ]  # fmt: skip
    *_, models = module.together(module.share(task), contenders, schedule, local, seed=2, p=p)
    for m, one in enumerate(contenders):
        mine = LocalSGD(lr=one.lr, steps=3, batch=20)
        *_, last = simulate(task, one.strategy, schedule, mine, seed=2, engine=Stacked(4), p=p)
        torch.testing.assert_close(models[m], last.model, rtol=0, atol=1e-6)


def test_side_by_side_refuses_what_it_cannot_do() -> None:
    from fedsim import LocalSGD, federate

    module = load_benchmark("side_by_side")
    with pytest.raises(ValueError, match="only models W"):
        module.share(federate("digits", clients=4, model="mlp"))
    shared = module.share(federate("digits", clients=4, model="logistic"))
    nobody, nothing = torch.arange(0), torch.zeros(1, shared.task.layout.size)
    for local in (LocalSGD(epochs=1), LocalSGD(steps=1, momentum=0.9), LocalSGD(steps=1, weight_decay=0.1)):
        with pytest.raises(ValueError, match="plain steps at a constant rate"):
            module.train(shared, nobody, nothing, nobody, local, [0.1])


def test_verdict() -> None:
    verdict = load_benchmark("side_by_side").verdict
    above, across, below = {"low": 0.1, "high": 0.2}, {"low": -0.1, "high": 0.2}, {"low": -0.2, "high": -0.1}
    assert verdict([above, above]) == "holds"
    assert verdict([above, across]) == "not clear"
    assert verdict([above, across, below]) == "does not hold"


@pytest.mark.parametrize("pattern", ["bernoulli", "cyclic"])
def test_participation_bias(pattern: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first 20 rounds of all strategies with the first seed, at the rates that the tuning runs choose."""
    monkeypatch.setenv("FEDSIM_DATA", str(data_dir))
    _, runs = committed("participation_bias")
    module, benchmark = load_benchmark("side_by_side"), load_benchmark("participation_bias")
    world = benchmark.make_world(1)
    tuned = benchmark.tuned(runs, pattern)
    contenders = [module.Contender(benchmark.STRATEGIES[name](eta), lr) for name, lr, eta in tuned]
    schedule = benchmark.draw(world.task, pattern, 1)
    steps = module.together(world.shared, contenders, schedule, benchmark.LOCAL, seed=1, p=world.p)
    *_, models = itertools.islice(steps, benchmark.EARLY[0])
    again = benchmark.test_metrics(world, torch.stack(list(models.values())))
    for m, (name, lr, eta) in enumerate(tuned):
        key = {"kind": "final", "pattern": pattern, "strategy": name, "seed": 1, "lr": lr, "eta": eta}
        same = next(r for r in runs if key.items() <= r.items())
        assert again[m]["test_loss"] == pytest.approx(same["test_loss"][str(benchmark.EARLY[0])], rel=1e-3), name


@pytest.mark.parametrize("name", ["participation_bias", "fedstale_heterogeneity"])
def test_verdicts_follow_from_the_committed_runs(name: str) -> None:
    result, runs = committed(name)
    assert len(result["seeds"]) >= 3
    again = json.loads(json.dumps(load_benchmark(name).summary(runs)))
    assert again == {key: value for key, value in result.items() if key in again}
    assert {"command", "commit", "versions", "seconds"} <= result.keys()


def test_fedstale_heterogeneity(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rounds of one cell of the map with the first seed; and where everybody is always there, the column that
    is not run, β changes nothing."""
    monkeypatch.setenv("FEDSIM_DATA", str(data_dir))
    _, runs = committed("fedstale_heterogeneity")
    module, benchmark = load_benchmark("side_by_side"), load_benchmark("fedstale_heterogeneity")
    shared = benchmark.make_shared(1, 1.0)
    contenders = [module.Contender(benchmark.FedStale(beta=beta), benchmark.LR) for beta in benchmark.BETAS]

    def model(p: float, rounds: int) -> torch.Tensor:
        schedule, weights = benchmark.draw(p, 1, rounds), shared.task.weights()
        *_, models = module.together(shared, contenders, schedule, benchmark.LOCAL, seed=1, p=weights)
        return torch.stack(list(models.values()))

    again = benchmark.metrics(shared, model(benchmark.PRESENT[-1], benchmark.EARLY))
    for beta, one in zip(benchmark.BETAS, again, strict=True):
        cell = (1.0, benchmark.PRESENT[-1], beta, 1)
        same = next(r for r in runs if (r["h"], r["p"], r["beta"], r["seed"]) == cell)
        assert one["objective"] == pytest.approx(same["early"], abs=1e-3), beta
    together = model(1.0, 4)
    torch.testing.assert_close(together, together[:1].expand_as(together), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("mode", "n", "degree", "ticks"), [("paper", 8, 7, 21), ("plain", 50, 8, 1)])
def test_vanishing_variance(
    mode: str, n: int, degree: int, ticks: int, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first ticks. Accuracy to 0.02: other processors round otherwise."""
    benchmark = load_benchmark("vanishing_variance")
    case = benchmark.Case(mode, None, 1, n, degree)
    again, committed = benchmark.run(case, ticks), benchmark.read()[case]
    seen = len(again["tick"])
    assert again["tick"] == committed["tick"][:seen] == list(range(0, ticks, benchmark.EVERY))
    assert again["accuracy"] == pytest.approx(committed["accuracy"][:seen], abs=0.02)
    for layer, values in again["variance"].items():
        assert values == pytest.approx(committed["variance"][layer][:seen], rel=2e-3), layer


def test_the_verdicts_on_vanishing_variance_follow_from_the_runs() -> None:
    """What is committed is what the committed runs give, and what the runs show to the eye."""
    benchmark = load_benchmark("vanishing_variance")
    result = json.loads((FOLDER / "results" / "vanishing_variance.json").read_text())
    runs = benchmark.read()
    order = [case for case in benchmark.cases() if case in runs]
    assert len(order) == len(runs)
    runs = {case: runs[case] for case in order}
    assert json.loads(json.dumps(benchmark.summary(runs))) == result["summary"]
    assert json.loads(json.dumps(benchmark.verdicts(runs))) == result["verdicts"]
    for alpha in (None, 0.5):
        plain, paper = (runs[benchmark.Case(mode, alpha)] for mode in ("plain", "paper"))
        assert max(plain["accuracy"]) < 0.2 < 0.7 < paper["accuracy"][-1]
        assert plain["variance"]["fc1.weight"][-1] == pytest.approx(1 / 50, rel=0.05)
        assert min(paper["variance"]["fc1.weight"]) > 0.95


def test_what_makes_a_verdict_on_vanishing_variance() -> None:
    """Runs made up: a delay is one against solo, a run that never gets there has at least what is left of it."""
    benchmark = load_benchmark("vanishing_variance")

    def runs(plain: list[float], paper: list[float], fl: float) -> Any:
        accuracy = {"solo": [0.1, 0.6, 0.7], "plain": plain, "paper": paper, "fl": [0.1, 0.7, fl]}
        return {benchmark.Case(m): {"tick": [0, 20, 40], "accuracy": a} for m, a in accuracy.items()}

    stalled = runs([0.1, 0.1, 0.1], [0.1, 0.5, 0.88], 0.9)
    assert str(benchmark.delay(stalled, benchmark.Case("plain"))) == "≥ 21"
    assert str(benchmark.delay(stalled, benchmark.Case("paper"))) == "0"
    found = benchmark.verdicts(stalled)
    assert (found["plateau"], found["corrected"], found["like-fl"], found["topology"], found["non-iid"]) == (
        "holds", "holds", "holds", "not run", "not run",
    )  # fmt: skip
    found = benchmark.verdicts(runs([0.1, 0.5, 0.7], [0.1, 0.1, 0.1], 0.9))
    assert (found["plateau"], found["corrected"], found["like-fl"]) == ("does not hold",) * 3
    assert benchmark.verdicts(runs([0.1, 0.1, 0.1], [0.1, 0.5, 0.87], 0.9))["like-fl"] == "does not hold"
    assert benchmark.verdict([True, False]) == "holds in part"
