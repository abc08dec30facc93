"""What a run says of its own speed: its counts against what is written out plainly, its shares, what it leaves out."""

from __future__ import annotations

import dataclasses
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import quadratics
from rich.console import Console
from test_tables import THREE, folder

from fedsim import LocalSGD, compare, experiment, federate, keyed, speed
from fedsim.cli.summary import print_summary
from fedsim.data.partition import Dirichlet
from fedsim.engine.plan import minibatches, width
from fedsim.participation import Row
from fedsim.report.page import write_page
from fedsim.task import Task

EXPERIMENT: dict[str, Any] = {
    "task": {"clients": 6, "data": "digits", "model": "logistic"},
    "local": {"steps": 3, "batch": 7},
    "participation": {"name": "uniform", "k": 4},
    "run": {"rounds": 5, "seeds": [1, 2], "eval-every": 2},
    "strategy": [{"name": "FedAvg"}, {"name": "FedVARP", "local": {"steps": 2}}],
}


def finished(change: dict[str, Any] | None = None) -> list[compare.Finished]:
    events = compare.compare(experiment.parse(EXPERIMENT | (change or {})))
    return [event for event in events if isinstance(event, compare.Finished)]


@pytest.fixture(scope="module")
def task() -> Task:
    """Clients of very different sizes."""
    return federate("digits", clients=20, partition=Dirichlet(alpha=0.2), model="mlp", seed=3)


# --- what is counted --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("local", [
    LocalSGD(steps=4, batch=7), LocalSGD(steps=30, batch=16), LocalSGD(epochs=2, batch=16), LocalSGD(epochs=1, batch=1),
    LocalSGD(steps=3, batch=None), LocalSGD(epochs=3, batch=10_000),
])  # fmt: skip
@pytest.mark.parametrize("partial", [False, True])
def test_steps_and_examples_are_those_of_the_minibatches(task: Task, local: LocalSGD, partial: bool) -> None:
    """Which the engine plans, step by step."""
    who = torch.arange(0, 20, 2)
    effort = torch.linspace(0.1, 1, 10) if partial else torch.ones(10)
    steps = examples = 0
    for i, e in zip(who.tolist(), effort.tolist(), strict=True):
        for s in range(local.count(task.sizes[i], e)):
            given = (torch.tensor([[v]]) for v in (keyed.seed(1), task.sizes[i], task.firsts[i], s))
            _, counted, _ = minibatches(*given, torch.ones(1, 1, dtype=torch.bool), width(task, local))
            steps, examples = steps + 1, examples + int(counted.sum())
    assert speed.work(task, local, Row(who, who, effort), who) == (steps, examples)


def test_who_did_not_answer_is_not_counted(task: Task) -> None:
    who, local = torch.arange(4), LocalSGD(steps=3, batch=5)
    row = Row(who, who, torch.tensor([1.0, 0.0, 1.0, 1.0]))
    assert speed.work(task, local, row, torch.tensor([0, 2]))[0] == 6
    assert speed.work(task, local, row, torch.tensor([0, 2, 19]))[0] == 9  # a strategy's own choice does all its work
    assert speed.work(task, local, row, who[:0]) == (0, 0)


@pytest.mark.parametrize(("model", "expected"), [
    ("logistic", 2 * 2 * 64 * 10),  # forwards, and backwards to the weights: nobody asks for the inputs' gradient
    ("mlp", 2 * 2 * 64 * 200 + 3 * 2 * 200 * 10),
])  # fmt: skip
@pytest.mark.parametrize("batch", [1, 8])
def test_operations_of_an_example(model: str, expected: int, batch: int) -> None:
    made = federate("digits", clients=10, model=model)
    assert speed.flop(made, LocalSGD(steps=1, batch=batch)) == expected


def test_operations_of_a_convolution_and_of_none() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = torch.nn.Conv2d(1, 3, 3, padding=1)
            self.linear = torch.nn.Linear(3 * 8 * 8, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(torch.relu(self.convolution(x.view(-1, 1, 8, 8))).flatten(1))  # type: ignore[no-any-return]

    made = federate("digits", clients=10, model=Net())
    assert speed.flop(made, LocalSGD(steps=1, batch=4)) == 2 * 2 * 9 * 3 * 64 + 3 * 2 * 192 * 10
    bowls = quadratics(torch.ones(3, 2), torch.zeros(3, 2))  # no product of matrices in it
    assert speed.flop(bowls, LocalSGD(steps=1, batch=1)) == 0


def test_operations_are_counted_once(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    local = LocalSGD(steps=1, batch=9)
    first = speed.flop(task, local)
    monkeypatch.setattr("fedsim.engine.loop.slope_of", lambda *given: pytest.fail("counted again"))
    assert speed.flop(dataclasses.replace(task), local) == first


def test_a_model_that_cannot_be_counted_spoils_nothing(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*given: Any) -> Any:
        raise NotImplementedError("no formula")

    monkeypatch.setattr("fedsim.engine.loop.slope_of", fault)
    monkeypatch.setattr("fedsim.speed.WORTH", 0.0)
    meter = speed.Meter(dataclasses.replace(task, outputs_of=lambda *given: given[1]), LocalSGD(steps=1), Any)  # type: ignore[arg-type]
    assert meter.told(1.0)["why_no_flop"] == "the model's operations cannot be counted"


def test_the_peak_is_measured_once_and_is_about_that_of_a_product() -> None:
    cpu = torch.device("cpu")
    found = speed.peak(cpu, torch.float32)
    a = torch.rand(1024, 1024)
    times = []
    for _ in range(5):
        clock = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - clock)
    assert 0.3 < found * min(times) / (2 * 1024**3) < 5
    clock = time.perf_counter()
    assert speed.peak(cpu, torch.float32) == found
    assert time.perf_counter() - clock < 0.05


# --- what a run tells -------------------------------------------------------------------------------------------------


def test_a_run_tells_what_it_did() -> None:
    for run in finished():
        told = run.speed or {}
        each = 3 if run.strategy == "FedAvg" else 2
        assert told["steps"] == 5 * 4 * each
        assert told["examples"] == 7 * told["steps"]  # no client has fewer, and no epoch ends
        assert run.spent is not None
        assert told["steps_per_second"] == pytest.approx(told["steps"] / run.spent["training"])
        assert told["host_bytes"] > 50e6
        assert told["device_bytes"] is None
        assert "10 seconds" in told["why_no_flop"]
        assert "flop_per_second" not in told


def test_a_long_run_is_held_against_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim.speed.WORTH", 0.0)
    run = finished()[0]
    assert run.speed is not None
    assert run.spent is not None
    told = run.speed
    assert told["flop_per_example"] == 4 * 64 * 10
    assert told["flop_per_second"] == pytest.approx(4 * 64 * 10 * told["examples"] / run.spent["training"])
    assert 0 < told["flop_per_second"] < told["peak_flop_per_second"]
    assert "why_no_flop" not in told


def test_recording_is_what_the_caller_does_and_no_part_of_the_run() -> None:
    """A caller that takes a tenth of a second for every evaluation: rounds 0, 2, 4 and 5."""

    def slowly() -> Iterator[compare.Finished]:
        for event in compare.compare(experiment.parse(EXPERIMENT)):
            if isinstance(event, compare.Measured):
                time.sleep(0.1)
            if isinstance(event, compare.Finished):
                yield event

    for run in slowly():
        assert run.spent is not None
        assert list(run.spent) == ["training", "aggregation", "evaluation", "recording"]
        assert 0.4 <= run.spent["recording"] < 0.8
        assert run.seconds == pytest.approx(sum(run.spent.values()) - run.spent["recording"])


# --- how it is told ---------------------------------------------------------------------------------------------------


def result(speeds: dict[str, Any], n: int = 2) -> list[dict[str, Any]]:
    """Runs as result.json holds them: the second takes twice as long as the first."""
    return [
        {
            "strategy": "ab"[i], "seed": 1, "seconds": 3.5 * (i + 1), "client_trainings_per_second": 100.0 / (i + 1),
            "spent": {"training": 2.0 * (i + 1), "aggregation": 0.5, "evaluation": 1.0, "recording": 0.5},
            "speed": {"steps": 1200, "steps_per_second": 600 / (i + 1), "examples": 6000, "host_bytes": (4 + i) * 10**8,
                      "device_bytes": None} | speeds,
        }
        for i in range(n)
    ]  # fmt: skip


COUNTED = {"flop_per_example": 5e6, "flop_per_second": 1.5e10, "peak_flop_per_second": 1.2e11}


def test_the_lines_add_up_the_runs() -> None:
    """400 trainings and 2400 steps in 6 of 10 seconds, 12,000 examples of 5 million operations."""
    first, second = speed.lines(result(COUNTED))
    assert first == (
        "Speed: 66.7 client trainings/s, 400 steps/s. "
        "Time: 60 % training, 10 % aggregation, 20 % evaluation, 10 % recording."
    )
    assert second == ("Peak memory: 500 MB on the host. Training: 10.0 GFLOP/s, 8 % of this machine's 120 GFLOP/s.")
    with_device = speed.lines(result({"device_bytes": 3 * 10**9, "why_no_flop": "because"}))[1]
    assert with_device == "Peak memory: 500 MB on the host and 3.00 GB on the device. Training's FLOP/s: because."


def test_runs_of_older_versions_tell_nothing() -> None:
    assert speed.lines([{"strategy": "a", "seed": 1, "seconds": 2.0, "client_trainings_per_second": 3.0}]) == []


@pytest.mark.parametrize(("number", "text"), [
    (3.14159, "3.14 "), (99.96, "100 "), (999.4, "999 "), (999.6, "1.00 k"), (12_345, "12.3 k"), (2.5e14, "250 T"),
])  # fmt: skip
def test_amounts(number: float, text: str) -> None:
    assert speed.amount(number) == text


def test_the_summary_and_the_page_say_it(tmp_path: Path) -> None:
    path = folder(tmp_path / "run", THREE)
    written = json.loads((path / "result.json").read_text())
    for run in written["runs"]:
        run |= {key: value for key, value in result(COUNTED, 1)[0].items() if key not in ("strategy", "seed")}
    (path / "result.json").write_text(json.dumps(written))
    screen = Console(file=io.StringIO(), width=70)
    print_summary(path, screen)
    said = " ".join(screen.file.getvalue().split())  # type: ignore[attr-defined]
    assert said.endswith("Training: 15.0 GFLOP/s, 12 % of this machine's 120 GFLOP/s.")
    text = write_page(path).read_text()
    part = text[text.index('<section id="speed">') :]
    assert (
        "<td>3.5</td><td>100</td><td>600</td><td>15</td><td>12.5</td><td>50</td><td>12</td><td>25</td><td>12</td>"
        in part
    )
    assert "measured there, 120 GFLOP/s;" in part
    assert "At most 400 MB of host memory were in use." in part
    assert np.isclose(12.5, 100 * COUNTED["flop_per_second"] / COUNTED["peak_flop_per_second"])
