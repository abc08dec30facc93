"""The committed results of benchmarks/ are what the code gives today: a slice of each is run again."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


def script(name: str) -> ModuleType:
    """A benchmark as a module."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("which", ["logistic", "cnn"])
def test_fedau_fashion_mnist(which: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rounds of FedAvg and FedAU with the first seed. To 1e-3: other processors round otherwise."""
    monkeypatch.setenv("FEDSIM_DATA", str(data_dir))
    committed = json.loads((FOLDER / "results" / f"fedau_fashion_mnist_{which}.json").read_text())
    benchmark = script("fedau_fashion_mnist")
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
    assert script("fedau_fashion_mnist").interval(differences)["mean"] == pytest.approx(
        result["difference_to_FedAvg"]["test_loss"]["FedAU"]["mean"]
    )
