"""benchmarks/star_or_gossip.py: a slice of the committed runs again, and what was concluded from all of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers import load_benchmark

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """The script as a module."""
    return load_benchmark("star_or_gossip")


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    """The results file."""
    return json.loads((FOLDER / "results" / "star_or_gossip.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("way", ["star", "one-peer", "tracking", "top-k"])
def test_the_first_evaluations(bench: ModuleType, data_dir: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """With the first seed and Dirichlet labels. To 2e-3: other processors round otherwise. Where that changes which
    coordinates are the largest, as top-k sends them, accuracies are some 0.01 apart, consensus distances 3 % and the
    objective 0.2 after 21 rounds, between our own engines too."""
    exact = way != "top-k"
    near = 2e-3 if exact else 5e-2
    monkeypatch.setenv("FEDSIM_DATA", str(data_dir))
    runs = bench.read()
    case = next(c for c in runs if (c.alpha, c.way, c.seed) == (0.1, way, 1))
    again = bench.run(case, within=12 if way == "tracking" else 6)
    assert len(again["round"]) == (2 if way == "tracking" else 1)
    for name in ("round", "bytes"):
        assert again[name] == runs[case][name][: len(again[name])]
    for name in ("accuracy", "mean model", "consensus", *(["objective"] if exact else [])):
        assert again[name] == pytest.approx(runs[case][name][: len(again[name])], abs=near, rel=near), name


def test_the_conclusions_follow_from_the_runs(bench: ModuleType, committed: dict[str, Any]) -> None:
    runs = bench.read()
    assert set(bench.tuning()) | set(bench.finals(runs)) == set(runs)
    assert json.loads(json.dumps(bench.summary(runs))) == committed["summary"]
    assert json.loads(json.dumps(bench.verdicts(runs))) == committed["verdicts"]
    assert committed["seconds"] == pytest.approx(sum(line["seconds"] for line in runs.values()), abs=0.1)


def test_bytes_are_those_of_the_graphs(bench: ModuleType) -> None:
    """Models a round, P = 7850: the star's 40 up and 40 down, a link's two, 6 and 1 a node of the exponential graphs,
    two vectors in tracking; top-k 785 numbers of 32 + 13 bits to each of two neighbours."""
    models = {"star": 80, "ring": 80, "torus": 160, "static exp": 240, "one-peer": 40, "Géant": 122, "tracking": 160}
    each = {way: count * 7850 * 4 for way, count in models.items()} | {"top-k": 80 * 785 * 45 // 8}
    for case, line in bench.read().items():
        assert line["bytes"] == [t * each[case.way] for t in line["round"]]
        assert line["bytes"][-1] <= 200 * 40 * 7850 * 4
        assert line["round"][-1] == 300 or line["bytes"][-1] + each[case.way] > 200 * 40 * 7850 * 4


def test_gaps(bench: ModuleType) -> None:
    """By hand: ring and torus have the eigenvalues of circles; the exponential graph's SLEM for even n is 5/7."""

    def circle(n: int) -> float:
        return math.cos(2 * math.pi / n)

    assert bench.gap("ring") == pytest.approx(1 - (1 + 2 * circle(40)) / 3)
    assert bench.gap("torus") == pytest.approx(1 - (1 + 2 + 2 * circle(8)) / 5)
    assert bench.gap("static exp") == pytest.approx(2 / 7)
    shifts = [abs(math.prod((1 + complex(math.cos(a * 2**s), math.sin(a * 2**s))) / 2 for s in range(6)))
              for a in (2 * math.pi * m / 40 for m in range(1, 40))]  # fmt: skip
    assert bench.gap("one-peer") == pytest.approx(1 - max(shifts) ** (1 / 6))
    assert {way: bench.busiest(way) for way in bench.GRAPHS} == {
        "star": 80, "ring": 4, "torus": 8, "static exp": 12, "one-peer": 2, "Géant": 20,
    }  # fmt: skip


def test_crossings(bench: ModuleType) -> None:
    line = {"bytes": [100, 200, 400], "accuracy": [0.5, 0.6, 0.8]}
    assert bench.crossing(line, 0.4) == bench.Reached(100, False)
    assert bench.crossing(line, 0.7).bytes == pytest.approx(200 * math.sqrt(2))
    assert bench.crossing(line, 0.9) == bench.Reached(400, True)


def test_a_lower_bound_is_never_first(bench: ModuleType) -> None:
    """What has not got there cannot be called sooner, however small its bound."""
    early, late = ([bench.Reached(b * x, False) for x in (1.0, 1.1, 0.9)] for b in (10, 100))
    assert bench.sooner(early, late) == "right"
    assert bench.sooner(late, early) == "wrong"
    bound = [r._replace(least=True) for r in early]
    assert bench.sooner(bound, late) == "open"
    assert bench.sooner(late, bound) == "open"
    assert bench.sooner(early, [r._replace(least=True) for r in late]) == "right"


def test_the_test_images_are_drawn_once(bench: ModuleType, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSIM_DATA", str(data_dir))
    assert len(bench.dataset().test_targets) == 2500
    assert int(torch.bincount(torch.as_tensor(bench.dataset().test_targets)).min()) > 200  # of every class


def test_what_the_readme_says(bench: ModuleType, committed: dict[str, Any]) -> None:
    """Who beats the star and who does not, and what the gap is good for."""
    plain = {"ring", "torus", "static exp", "one-peer", "Géant", "tracking"}
    for verdict in committed["verdicts"].values():
        star = verdict["against the star"]
        assert set(star["accuracy at the end"]["loses"]) >= plain
        assert set(star["bytes to the target, accuracy"]["loses"]) >= plain
        assert set(star["rounds to the target, accuracy"]["loses"]) == plain | {"top-k"}
        assert verdict["rounds follow the gap"]["wrong"] == ["one-peer < torus"]
    iid, skewed = (committed["verdicts"][f"logistic, {labels}"] for labels in ("IID", "Dirichlet(0.1)"))
    assert iid["against the star"]["bytes to the target, accuracy"]["beats"] == ["top-k"]
    assert "top-k" in skewed["against the star"]["bytes to the target, accuracy"]["loses"]
    busiest = "bytes of the busiest machine to the target, accuracy"
    assert iid["against the star"][busiest]["beats"] == ["ring", "torus", "one-peer", "top-k"]
    assert skewed["against the star"][busiest]["beats"] == ["torus", "static exp", "one-peer"]
    assert skewed["against the star"][busiest]["loses"] == ["Géant"]
    counts = [[len(found["bytes follow the gap"][k]) for k in ("right", "wrong")] for found in (iid, skewed)]
    assert counts == [[9, 4], [8, 0]]
    counts = [[len(found["rounds follow the gap"][k]) for k in ("right", "wrong")] for found in (iid, skewed)]
    assert counts == [[7, 1], [9, 1]]
