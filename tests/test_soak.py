"""The soak's experiments are ones that run, and what it sees of a process is what there is."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType

import pytest

from fedsim import experiment

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("soak", BENCHMARKS / "soak.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_experiments(script: ModuleType) -> None:
    for scale in (1.0, 0.001):
        made = {name: experiment.parse(tables) for name, tables in script.cases(scale).items()}
        assert list(made) == ["rounds", "clients", "nodes", "runs"]
    full = script.cases()
    assert full["rounds"]["run"]["rounds"] == 100_000
    assert full["clients"]["task"]["clients"] == 1_000_000
    assert full["nodes"]["task"]["clients"] == 10_000
    assert len(full["runs"]["strategy"]) * len(full["runs"]["run"]["seeds"]) == 200


def test_a_short_one(script: ModuleType, tmp_path: Path) -> None:
    """It is stopped in the middle, or ends well; one that fails is an error that says why."""
    if script.memory(os.getpid()) is None:
        pytest.skip("the system has no /proc")
    found = script.soak(script.cases(0.001)["rounds"], 1.5, tmp_path)
    assert not found["ended_by_itself"]
    assert found["rounds"] >= 200
    assert found["runs"] == 5
    assert found["evaluations"] >= 10
    assert 50 < min(found["memory_mb"]) <= found["largest_mb"] < 5000
    assert 0.8 < found["growth"] < 1.3
    (tmp_path / "wrong").mkdir()
    wrong = script.cases(0.001)["rounds"]
    wrong["task"]["clients"] = 0
    with pytest.raises(RuntimeError, match="clients"):
        script.soak(wrong, 1.0, tmp_path / "wrong")


def test_what_was_measured(script: ModuleType) -> None:
    measured = json.loads((BENCHMARKS / "results" / "soak.json").read_text())
    assert measured["scale"] == 1.0
    assert list(measured["cases"]) == list(script.cases())
    grown = [name for name, case in measured["cases"].items() if case["growth"] > script.MOST]
    assert grown == ["clients"]  # as its docstring says
