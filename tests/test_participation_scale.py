"""A million clients: to draw and report who is there costs what the appearances cost, whatever the process or stage."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from types import ModuleType

import pytest
import torch
from helpers import load_benchmark

from fedsim import keyed
from fedsim.participation.statistics import describe

FOLDER = Path(__file__).parent.parent / "benchmarks"


def script() -> ModuleType:
    return load_benchmark("participation_scale")


SCALE = script()


@pytest.mark.parametrize("case", SCALE.CASES[1:])
def test_it_costs_what_the_appearances_cost(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice of the benchmark: draws and bytes per client and appearance, where a table would take 1000 bytes each."""
    n, rounds, k = 20_000, 2000, 10
    process = SCALE.process(case, k / n, k, rounds)
    drawn, real = [], keyed.uniform

    def counting(*parts: object) -> torch.Tensor:
        u = real(*parts)  # type: ignore[arg-type]
        drawn.append(u.numel())
        return u

    monkeypatch.setattr(keyed, "uniform", counting)
    process.draw(n, 10, 1)  # imports and caches
    drawn.clear()
    tracemalloc.start()
    schedule = process.draw(n, rounds, 0)
    found = describe(schedule)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = n + rounds * k
    assert 0.8 * k < found["present"]["mean"] < 1.1 * k
    assert sum(drawn) < 16 * size
    assert most < 450 * size < n * rounds / 2


def test_the_claim_holds_in_the_committed_numbers() -> None:
    result = json.loads((FOLDER / "results" / "participation_scale.json").read_text())
    assert (result["clients"], result["rounds"], result["k"]) == (10**6, 10**4, 100)
    assert tuple(result["cases"]) == SCALE.CASES
    assert result["within_limits"]
    for case, found in result["cases"].items():
        assert sum(found["seconds"].values()) < 60
        assert max(found["peak_mb"].values()) < 1000
        assert case == "nothing" or 70 < found["present"] < 110
