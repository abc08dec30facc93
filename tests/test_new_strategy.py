"""fedsim new strategy: what it writes is tested, checked and run as it stands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import command

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(("name", "more", "rivals"), [
    ("FedHalf", [], ["FedHalf", "FedAvg"]), ("RingHalf", ["--gossip"], ["RingHalf", "DPSGD"]),
])  # fmt: skip
def test_what_is_written_works_as_it_is(
    name: str, more: list[str], rivals: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from fedsim.compare import Measured, compare
    from fedsim.experiment import load
    from fedsim.record import read_metrics

    monkeypatch.chdir(tmp_path)
    assert command("new", "strategy", name, *more) == 0
    said = capsys.readouterr().out.splitlines()
    module = name.replace("Half", "_half").lower()
    files = {f"{module}.py", f"test_{module}.py", f"{module}.toml"}
    assert {path.name for path in tmp_path.iterdir()} == files
    assert said[1:] == [
        f"  python -m pytest test_{module}.py",
        f"  fedsim check {module}.py:{name}",
        f"  fedsim run {module}.toml",
    ]
    settings = ["--config", str(ROOT / "pyproject.toml"), "."]
    for words in (["check"], ["format", "--check"]):
        subprocess.run([sys.executable, "-m", "ruff", *words, *settings], check=True, capture_output=True)
    test = [sys.executable, "-m", "pytest", "-q", "-W", "error", f"test_{module}.py"]
    out = subprocess.run(test, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert out.returncode == 0, out.stdout
    assert "2 passed" in out.stdout
    if more:  # as written, without the figures
        measured = [event for event in compare(load(f"{module}.toml")) if isinstance(event, Measured)]
        end = {event.strategy: event.metrics["test_accuracy"] for event in measured if event.round == 40}
    else:
        assert command("run", f"{module}.toml", "--out", "out", "--quiet") == 0
        rows = read_metrics("out")
        end = {row.strategy: row.value for row in rows if row.metric == "test_accuracy" and row.round == 40}
    assert list(end) == rivals
    assert all(value > 0.5 for value in end.values()), end


def test_a_near_miss_fails_the_test_that_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("new", "strategy", "FedHalf") == 0
    text = Path("fed_half.py").read_text()
    Path("fed_half.py").write_text(text.replace("self.beta * s.m +", "self.beta * s.m -"))
    test = [sys.executable, "-m", "pytest", "-q", "-k", "hand", "test_fed_half.py"]
    out = subprocess.run(test, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert out.returncode == 1
    assert "1 failed" in out.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["strategy", "half"], "write it as FedHalf, a capital letter first"),
        (["strategy", "Half-way"], "write it as FedHalf, a capital letter first"),
        (["strategy", "Random"], "random.py would hide the module random that Python has already"),
        (["strategy", "Torch"], "torch.py would hide the module torch"),
        (["stratgy", "Half"], "did you mean 'strategy'?"),
        (["app", "half", "--gossip"], "--folder and --gossip go with a strategy"),
    ],
)  # fmt: skip
def test_mistakes(
    arguments: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("new", *arguments) == 2
    assert text in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fed_half.toml").write_text("mine")
    assert command("new", "strategy", "FedHalf", "--folder", str(tmp_path)) == 2
    assert "fed_half.toml is there already" in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
