"""`fedsim participation`: the schedule that a run would draw, reported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import command, small

from fedsim import compare
from fedsim.experiment import load
from fedsim.participation import Schedule

SMALL = small(
    "FedAvg", task='model = "logistic"\npartition = { name = "dirichlet", alpha = 0.3 }',
    presence='name = "markov"\nprobabilities = { name = "label-correlated", mean = 0.4 }',
    run="rounds = 30\nseeds = [4, 2]",
)  # fmt: skip


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "small.toml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "small.toml"


def test_it_reports_the_schedule_that_a_run_draws(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = load(experiment)
    began = {e.seed: e.schedule for e in compare.compare(made) if isinstance(e, compare.Began)}
    for seed, given in ((4, ()), (2, ("--seed", "2"))):
        assert command("participation", experiment, "--json", *given) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["experiment"], found["seed"]) == ("small", seed)
        assert found["schedule"] == began[seed].digest()
        assert {"size", "labels", "floor"} <= found.keys()
    assert [path.name for path in experiment.parent.iterdir()] == ["small.toml"]


def test_the_folder(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("participation", experiment, "--set", "run.rounds=12", "--set", "participation.memory=0.5") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "small, seed 4: 6 clients, 12 rounds" in out
    (folder,) = (experiment.parent / "runs").iterdir()
    assert folder.name.startswith("small-participation-")
    assert out.endswith(f"folder: runs/{folder.name}\n")
    report = json.loads((folder / "report.json").read_text())
    schedule = Schedule.load(folder / "schedule-seed4.npz")
    assert report["schedule"] == schedule.digest()
    assert (len(schedule), report["rounds"]) == (12, 12)
    assert (folder / "participation.svg").stat().st_size > 1000

    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert command("participation", experiment, "--out", folder) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "already holds a report" in err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before

    assert command("participation", folder / "schedule-seed4.npz", "--json", "--out", "again") == 0
    again = json.loads(capsys.readouterr().out)
    assert again == {key: value for key, value in report.items() if key not in ("experiment", "seed", "size", "labels")}
    assert sorted(path.name for path in Path("again").iterdir()) == sorted(
        path.name for path in folder.iterdir() if path.suffix != ".npz"
    )


def test_a_task_without_classes(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("task.data=quadratic", "task.model=scalar", "task.partition=natural", "task.clients=4",
             "participation.probabilities=0.5")  # fmt: skip
    changes = [word for change in given for word in ("--set", change)]
    assert command("participation", experiment, "--json", *changes) == 0
    found = json.loads(capsys.readouterr().out)
    assert "labels" not in found
    assert found["floor"] == {"probability": 0.5, "share": 1.0}
