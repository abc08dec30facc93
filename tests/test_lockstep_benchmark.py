"""benchmarks/lockstep.py plays what it says, and its committed numbers say what the README does."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from helpers import load_benchmark

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return load_benchmark("lockstep")


def test_a_case(bench: ModuleType, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a case at a small size; within it both ways are held to the same bits."""
    monkeypatch.setenv("FEDSIM_DATA", str(data_dir))
    found = bench.case("logistic", 2, 2, "cpu", seeds=2)
    assert found["runs"] == 16
    assert (found["alone"]["chunk"], found["lockstep"]["chunk"]) == (2, 32)
    assert found["ratio"] > 0
    assert found["lockstep"]["cpu_seconds"] > 0


def test_what_the_readme_says() -> None:
    committed = json.loads((BENCHMARKS / "results" / "lockstep.json").read_text())
    ratios = {(case["model"], case["clients_a_round"]): case["cpu_ratio"] for case in committed["cases"]}
    assert set(ratios) == {(model, k) for model in ("logistic", "mlp", "lenet5") for k in (5, 10, 30)}
    readme = (BENCHMARKS.parent / "README.md").read_text()
    for k in (5, 10, 30):
        assert f"{ratios['logistic', k]:.2f}" in readme
    docstring = (BENCHMARKS / "lockstep.py").read_text()
    for (model, k), ratio in ratios.items():
        assert f"{model:8} {k:>8} {ratio:>12.2f}" in docstring
