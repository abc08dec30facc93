"""benchmarks/rank_reversal.py: a tiny comparison from end to end, its rules by hand, and the committed verdicts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from helpers import load_benchmark
from scipy import stats

from fedsim import experiment, record

FOLDER = Path(__file__).parent.parent / "benchmarks"
TINY = (
    'task.data="digits"', "task.clients=12", 'strategy=[{name="FedAvg", tune={lr=[0.5, 1.0]}}, {name="MIFA"}]',
    "run.rounds=10", "run.seeds=[1, 2]", "run.eval-every=1", "tune.rounds=2", "tune.trials=2", "tune.seeds=[101]",
    "tune.grid={local.lr=[0.1]}", 'run.engine="loop"', "local.steps=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """The script as a module."""
    return load_benchmark("rank_reversal")


def committed(name: str) -> dict[str, Any]:
    """A results file."""
    return json.loads((FOLDER / "results" / f"{name}.json").read_text())  # type: ignore[no-any-return]


def test_a_tiny_run(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run folder is gathered: late means over rounds 9 and 10, the tuning, who was there. Pictures and page, which
    take their time, have tests of their own."""
    monkeypatch.setattr("fedsim.report.write_figures", lambda folder: [])
    monkeypatch.setattr("fedsim.report.page.write_page", lambda folder: None)
    assert bench.run("uniform", tmp_path / "run", TINY) > 0
    found = bench.gathered(tmp_path / "run")
    assert found["clients a round"] == {"mean": 10, "least": 10, "most": 10}
    assert set(found["late"]) == set(bench.METRICS)
    rows = [m for m in record.read_metrics(tmp_path / "run") if m.metric == "test_accuracy" and m.strategy == "MIFA"]
    for seed in (1, 2):
        last = [m.value for m in rows if m.seed == seed and m.round > 8]
        assert len(last) == 2
        assert found["late"]["test_accuracy"]["MIFA"][seed] == pytest.approx(sum(last) / 2, abs=1e-6)
    tuned = found["tuning"]["FedAvg"]
    assert tuned["winner"]["lr"] in (0.5, 1.0)
    assert tuned["winner"]["local.lr"] == 0.1
    assert tuned["used"] <= tuned["allowed"]
    assert found["tuning"]["MIFA"]["value"] is None  # its grid has a single point


def test_the_settings_differ_in_presence_alone() -> None:
    both = [experiment.load(FOLDER / "rank_reversal.toml", changes).document() for changes in
            ([], ['participation={name="uniform", k=10}'])]  # fmt: skip
    assert both[0].pop("participation") != both[1].pop("participation")
    assert both[0] == both[1]


def values(*rows: tuple[float, ...]) -> dict[str, dict[int, float]]:
    """Strategies A, B, ... with seeds 1, 2, ..."""
    return {"ABCD"[i]: dict(enumerate(row, 1)) for i, row in enumerate(rows)}


def test_claim_1_by_hand(bench: ModuleType) -> None:
    """A − B is 0.2 ± 0.1 in three seeds: t(2) = 4.303, so 0.2 ± 0.248 is not clear; with ± 0.01 it is."""
    wide, narrow = values((0.7, 0.8, 0.9), (0.4, 0.6, 0.8)), values((0.71, 0.8, 0.89), (0.5, 0.6, 0.7))
    back = {"A": narrow["B"], "B": narrow["A"]}
    found = bench.changed({"uniform": narrow, "diurnal": back})
    assert (found["verdict"], found["best"]) == ("holds", {"uniform": "A", "diurnal": "B"})
    half = 4.302653 * 0.01 / math.sqrt(3)
    assert found["A − B"]["uniform"]["low"] == pytest.approx(0.2 - half, abs=1e-5)
    assert found["A − B"]["diurnal"]["high"] == pytest.approx(-0.2 + half, abs=1e-5)
    assert bench.changed({"uniform": wide, "diurnal": back})["verdict"] == "not clear"
    unsure = {"A": wide["B"], "B": wide["A"]}
    assert bench.changed({"uniform": narrow, "diurnal": unsure})["verdict"] == "not clear"
    assert bench.changed({"uniform": narrow, "diurnal": narrow})["verdict"] == "does not hold"


def test_pairs_that_change_sides(bench: ModuleType) -> None:
    """A and B swap, C is far behind in both; D is behind A and B, but clearly so in the second setting only."""
    a, b, c = (0.9, 0.901, 0.899), (0.8, 0.802, 0.801), (0.1, 0.102, 0.101)
    found = bench.sides({"uniform": values(a, b, c, (0.7, 0.9, 0.8)), "diurnal": values(b, a, c, (0.7, 0.701, 0.702))})
    assert found == {
        "changed": ["A > B"], "changed, by Holm": ["A > B"], "kept": ["A > C", "B > C", "D > C"],
        "open": ["A > D", "B > D"],
    }  # fmt: skip
    one, other = (0.772, 0.7, 0.628), (0.5, 0.5, 0.5)  # t = 0.2 √3 / 0.072 = 4.81, p = 0.041; Holm: twice that
    found = bench.sides({"uniform": values(one, other), "diurnal": values(other, one)})
    assert (found["changed"], found["changed, by Holm"]) == (["A > B"], [])


def test_claims_2_and_3_by_hand(bench: ModuleType) -> None:
    """Of six pairs one changes its order: τ = (5 − 1)/6. Seeds that are all alike leave no interval."""
    same = [
        values((0.4, 0.4), (0.3, 0.3), (0.2, 0.2), (0.1, 0.1)),
        values((0.3, 0.3), (0.4, 0.4), (0.2, 0.2), (0.1, 0.1)),
    ]
    found = bench.carried(dict(zip(bench.SETTINGS, same, strict=True)))
    assert found == {"verdict": "does not hold", "tau": 0.66667, "low": 0.66667, "high": 0.66667}
    x, y = np.random.default_rng(0).random((2, 5, 9))
    assert bench.tau(x, y) == pytest.approx([stats.kendalltau(a, b).statistic for a, b in zip(x, y, strict=True)])

    late = values((0.1, 0.2, 0.3), (0.11, 0.2, 0.31), (0.5, 0.4, 0.3))  # A − B varies by (−0.01, 0, −0.01)
    found = bench.worth({"uniform": late, "diurnal": late})
    a, b, c = (np.array(list(row.values())) for row in late.values())
    each = sorted(3 * (x.var() + y.var()) / (x - y).var() for x, y in ((a, b), (a, c), (b, c)))
    assert found["uniform"]["median"] == pytest.approx(each[1], rel=1e-4)
    assert found["verdict"] == "does not hold"  # C goes down where A and B go up: such pairs are worth less than 3
    late = values((0.1, 0.2, 0.3), (0.11, 0.2, 0.31), (0.1, 0.21, 0.31), (0.3, 0.2, 0.1))
    found = bench.worth({"uniform": late, "diurnal": late})
    assert found["uniform"]["least"] < 3 < found["uniform"]["median"]
    assert found["verdict"] == "holds"  # it is the median that counts


@pytest.mark.parametrize("name", ["rank_reversal", "rank_reversal_first"])
def test_the_verdicts_follow_from_the_committed_numbers(bench: ModuleType, name: str) -> None:
    result = committed(name)
    late = bench.of_first(result["settings"])
    assert json.loads(json.dumps(bench.concluded(late))) == result["verdicts"]
    assert json.loads(json.dumps(bench.analysed(result["settings"]))) == result["settings"]
    for setting in bench.SETTINGS:
        tuned = result["settings"][setting]["tuning"].values()
        assert len({each["allowed"] for each in tuned}) == 1  # the same budget for all
        assert all(each["used"] <= each["allowed"] for each in tuned)
        assert result["settings"][setting]["clients a round"]["mean"] == pytest.approx(10, abs=0.5)
    assert not result["commit"].endswith("+")


def test_the_committed_numbers_are_of_the_experiment(bench: ModuleType) -> None:
    """The file's strategies and seeds, settings from its grids; the table in the docstring is the numbers'."""
    result, plan = committed("rank_reversal"), experiment.load(FOLDER / "rank_reversal.toml")
    late = bench.of_first(result["settings"])
    assert plan.tuning is not None
    for setting in bench.SETTINGS:
        assert list(late[setting]) == [entry.label for entry in plan.entries]
        assert all(list(each) == list(plan.run.seeds) for each in late[setting].values())
        for grid in plan.tuning.grids:
            winner = result["settings"][setting]["tuning"][grid.label]["winner"]
            assert winner.keys() == grid.axes.keys()
            assert all(value in grid.axes[key] for key, value in winner.items())
    assert bench.table(result["settings"]) in (bench.__doc__ or "")
