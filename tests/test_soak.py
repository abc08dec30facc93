"""The soak's experiments are ones that run, and what it sees of a process is what there is."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from types import ModuleType

import pytest
from helpers import load_benchmark

from fedsim import compare, experiment, record, standing

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_benchmark("soak")


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
    assert found["bytes_a_round"][1] < found["bytes_a_round"][0], "its folder begins with what is there once"
    assert script.last_round(tmp_path / "run") == found["rounds"]
    (tmp_path / "wrong").mkdir()
    wrong = script.cases(0.001)["rounds"]
    wrong["task"]["clients"] = 0
    with pytest.raises(RuntimeError, match="clients"):
        script.soak(wrong, 1.0, tmp_path / "wrong")


def test_the_tables_of_clients_are_taken_off_to_the_byte(script: ModuleType, tmp_path: Path) -> None:
    """As many rows as clients had come, and what the strategy itself saved says the same; where it does not, an error
    says so."""
    tables = script.experiment(
        script.SMALL, 60, {"name": "uniform", "k": 3}, [{"name": "FedVARP"}, {"name": "SCAFFOLD"}], rounds=12
    )
    tables["run"]["eval-every"] = 3
    run, plan = tmp_path / "run", experiment.parse(tables)
    with record.RunFolder(run, plan.toml(), {}) as folder:
        for event in compare.compare(plan):
            if isinstance(event, compare.Began):
                folder.schedule(event.seed, event.schedule)
                came = [set[int]()]
                for row in event.schedule:
                    came.append(came[-1] | set(row.chosen.tolist()))
            if isinstance(event, compare.Stand) and event.under_way:
                last = standing.save(run, event)
                states = [progress.state for progress in event.under_way.values()]
                used = sum(
                    len(part.data[: int(part.used)]) * 21 * 4 for s in states for part in s if hasattr(part, "used")
                )
                (done,) = {progress.done for progress in event.under_way.values()}
                assert script.tables_at(run, [0, done]) == [0, used] == [0, 2 * len(came[done]) * 21 * 4]
    whole = json.loads(last.read_text())["content"]
    whole["runs"][0]["done"] = 1
    text = json.dumps(whole)
    last.write_text(json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "content": whole}))
    with pytest.raises(RuntimeError, match="rows after round 1, in which 3 had come"):
        script.tables_at(run, [1])


def test_what_was_measured(script: ModuleType) -> None:
    measured = json.loads((BENCHMARKS / "results" / "soak.json").read_text())
    assert measured["scale"] == 1.0
    assert list(measured["cases"]) == list(script.cases())
    assert measured["minutes"] == 30
    for name, case in measured["cases"].items():
        assert case["growth"] <= script.MOST, name
        assert case["bytes_a_round"][1] <= case["bytes_a_round"][0], name
