"""benchmarks/aggregation.py and benchmarks/engine/memory.py at a tiny size."""

from __future__ import annotations

import subprocess
import sys

import pytest
from test_gpu_benchmark import script


def test_what_a_step_and_a_mixing_must_touch() -> None:
    """Three times k P numbers; the models twice, and in all once for every neighbour, itself and the result."""
    made = script("aggregation.py")
    for row in made.strategies(4, 12, 50, 1):
        assert row["touched"] == 3 * 4 * 50 * 4
        assert row["ratio"] == pytest.approx(row["seconds"] * row["copy_bytes_per_second"] / row["touched"])
    ring, random = made.mixing(20, 30, 1)
    assert ring["touched"] == random["touched"] == 2 * 20 * 30 * 4
    assert (ring["traffic"], random["traffic"]) == ((2 + 2) * 20 * 30 * 4, (4 + 2) * 20 * 30 * 4)


def test_medians_are_of_each_by_turns() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    found = script("aggregation.py").by_turns(calls, times=2, warm=1)
    assert order == ["a", "b"] * 3
    assert set(found) == {"a", "b"}


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_a_way_is_in_force_in_the_process_it_is_meant_for() -> None:
    made = script("engine/memory.py")
    assert made.prelude("as it comes") == []
    code = made.prelude("mallopt")
    assert code[1].count("assert libc.mallopt(") == 3
    told = subprocess.run([sys.executable, *code, "-"], capture_output=True, text=True, check=False, input="")
    assert "FileNotFoundError" in told.stderr, "the calls have succeeded when the script is sought"
    for way, variables in made.WAYS.items():
        environment = made.environment(way)
        assert variables.items() <= environment.items()
        assert environment["OMP_NUM_THREADS"] == "1"
    assert set(made.kernels(20, 10, 1)) == {"copy to old memory", "copy to new memory", "mixing"}
