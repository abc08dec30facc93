"""Bad weather: full disks, folders that vanish or cannot be written, memory that runs out, clients that diverge."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import command, small

from fedsim import cli, compare, experiment
from fedsim.engine import Stacked
from fedsim.record import RunFolder, read_metrics, read_result, read_times

FILE = small(
    "FedAvg", "MIFA", presence='name = "everyone"',
    run="""
rounds = 12
eval-every = 2
checkpoint-every = 3
chunk = 2
threads = 1
device = "cpu"
""",
)  # fmt: skip


pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("experiment") / "small.toml"
    path.write_text(FILE)
    return path


@pytest.fixture(scope="module")
def calm(file: Path) -> Path:
    """A run that nothing happened to."""
    assert command("run", file, "--out", file.parent / "run", "--quiet") == 0
    return file.parent / "run"


def at(evaluation: int, monkeypatch: pytest.MonkeyPatch, happens: Any) -> None:
    """Something happens just before an evaluation is recorded."""
    measured, seen = RunFolder.measured, [0]

    def watched(self: RunFolder, *arguments: Any) -> None:
        seen[0] += 1
        if seen[0] == evaluation:
            happens(self.path)
        measured(self, *arguments)

    monkeypatch.setattr(RunFolder, "measured", watched)


def same(one: Path, other: Path) -> None:
    for name in ("metrics.csv", "hashes.csv", "clients.csv"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_full_disk_ends_a_run_and_room_lets_it_go_on(
    file: Path, calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whole lines are left, and nothing that was saved is lost."""
    append, full = RunFolder._append, [False]

    def no_room(self: RunFolder, handle: Any, path: Path, data: bytes) -> None:
        if not full[0]:
            append(self, handle, path, data)
            return
        monkeypatch.setattr(os.path, "samestat", lambda a, b: True)
        with open("/dev/full", "wb", buffering=0) as device:
            append(self, device, path, data)

    monkeypatch.setattr(RunFolder, "_append", no_room)
    at(9, monkeypatch, lambda path: full.__setitem__(0, True))
    run = tmp_path / "run"
    assert command("run", file, "--out", run) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"the results so far are in {run}; go on with: fedsim resume {run}" in error
    assert f"fedsim: cannot write {run / 'metrics.csv'}: No space left on device; make room or choose" in error
    assert (run / "metrics.csv").read_text().endswith("\n")
    assert read_metrics(run)
    monkeypatch.undo()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedsim.report.write_figures", lambda folder: [])
        patch.setattr("fedsim.report.page.write_page", lambda folder: folder)
        assert command("resume", run, "--quiet") == 0
    same(run, calm)


def test_no_room_for_a_checkpoint_is_said_once_and_the_run_goes_on(
    file: Path, calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, f"cannot write {path.parent}: No space left on device")

    monkeypatch.setattr("fedsim.standing.write_atomically", full)
    run = tmp_path / "run"
    assert command("run", file, "--out", run, "--quiet") == 0
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("fedsim: no checkpoint: ")
    assert "No space left on device" in error
    same(run, calm)
    assert not (run / "checkpoints").exists()


def test_a_folder_deleted_meanwhile_ends_the_run_in_one_line(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rather than write for hours into files that nobody can see any more; and it is not made again."""
    at(5, monkeypatch, shutil.rmtree)
    run = tmp_path / "run"
    assert command("run", file, "--out", run, "--quiet") == 2
    where = run / "metrics.csv"
    said = f"fedsim: {where} is not there any more: the folder was deleted or moved while a run wrote to it\n"
    assert capsys.readouterr().err == said
    assert list(tmp_path.iterdir()) == []


def test_a_folder_moved_meanwhile_goes_on_where_it_is(
    file: Path, calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at(9, monkeypatch, lambda path: path.rename(tmp_path / "elsewhere"))
    assert command("run", file, "--out", tmp_path / "run", "--quiet") == 2
    assert "is not there any more" in capsys.readouterr().err
    assert command("resume", tmp_path / "elsewhere", "--quiet") == 0
    same(tmp_path / "elsewhere", calm)


READ_ONLY = """
import os, sys
from fedsim.record import RunFolder
if os.getuid() == 0:
    os.setuid(65534)  # whom rights mean something to
try:
    RunFolder(sys.argv[1], "", {})
except OSError as error:
    print(error)
"""


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """One that is there, and one that would have to be made."""
    here = str(Path(cli.__file__).parents[2])
    closed = Path("/etc") if os.access("/etc", os.R_OK) else tmp_path
    for path in (closed, closed / "run"):
        ran = subprocess.run([sys.executable, "-c", READ_ONLY, path], capture_output=True, text=True, cwd=here)
        assert ran.returncode == 0, ran.stderr
        assert "Permission denied; make room or choose another folder with --out" in ran.stdout
        assert ran.stdout.count("\n") == 1
    assert not (closed / "run").exists()


def test_a_folder_made_read_only_meanwhile(
    file: Path, calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is open grows on; what has to be made anew cannot be, and is said."""
    real, closed = open, [False]

    def opened(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if closed[0] and mode[0] in "wxa":
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return real(path, mode, *args, **kwargs)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at(3, patch, lambda path: closed.__setitem__(0, True))
        patch.setattr("builtins.open", opened)
        assert command("run", file, "--out", run, "--quiet") == 2
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("fedsim: no checkpoint: cannot write ")
    assert last.startswith(f"fedsim: cannot write {run / 'clients.csv'}: Read-only file system")
    assert command("resume", run, "--quiet") == 0
    same(run, calm)


# --- clients that diverge ---------------------------------------------------------------------------------------------

DIVERGING: dict[str, Any] = {
    "task": {
        "data": {"name": "clusters", "classes": 3, "dimension": 4, "examples": 60, "test-examples": 30},
        "clients": 6,
        "model": "logistic",
    },
    "participation": {"name": "everyone"},
    "local": {"lr": 0.1, "steps": 2, "batch": 4},
    "strategy": [{"name": "FedAvg"}, {"name": "MIFA"}, {"name": "DPSGD", "topology": "ring"}],
    "run": {"rounds": 4, "eval-every": 1, "device": "cpu", "chunk": 3},
}


def diverge(monkeypatch: pytest.MonkeyPatch, value: float, who: tuple[int, ...] = (2,), what: str = "delta") -> None:
    """From now on these clients answer with something that is no number, in the second round."""
    together = Stacked.together

    def poisoned(self: Stacked, jobs: Any) -> Any:
        answers = together(self, jobs)
        for job, answer in zip(jobs, answers, strict=True):
            if job.t == 1:
                rows = [list(range(len(answer.who)))[i] for i in who]
                getattr(answer, what)[rows] = value
        return answers

    monkeypatch.setattr(Stacked, "together", poisoned)


def of(events: list[Any], kind: type) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_client_that_diverges_ends_its_run_by_name(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    diverge(monkeypatch, value)
    found = list(compare.compare(experiment.parse(DIVERGING)))
    assert [(event.strategy, event.round) for event in of(found, compare.Failed)] == [
        ("FedAvg", 1), ("MIFA", 1), ("DPSGD", 1)
    ]  # fmt: skip
    for event in of(found, compare.Failed):
        assert event.reason.startswith("round 1: the update of client 2 is not finite (NaN or infinity)")
        assert 'on-divergence = "drop" leaves such clients out' in event.reason


@pytest.mark.parametrize(("value", "what"), [(float("nan"), "delta"), (float("inf"), "delta"), (float("nan"), "loss")])
def test_dropped_a_client_that_diverges_was_absent(monkeypatch: pytest.MonkeyPatch, value: float, what: str) -> None:
    """All that follows is what it would be had the client not answered; and it is told."""
    dropping = experiment.parse({**DIVERGING, "run": DIVERGING["run"] | {"on-divergence": "drop"}})
    straight = list(compare.compare(dropping))
    assert of(straight, compare.Absent) == []
    stop = list(compare.compare(experiment.parse(DIVERGING)))
    assert of(straight, compare.Measured) == of(stop, compare.Measured)  # where nobody diverges it changes nothing

    with monkeypatch.context() as patch:
        diverge(patch, value, what=what)
        dropped = list(compare.compare(dropping))
    together = Stacked.together

    def silent(self: Stacked, jobs: Any) -> Any:
        """Client 2 does not answer in the second round."""
        out = []
        for job, answer in zip(jobs, together(self, jobs), strict=True):
            keep = torch.tensor([not (job.t == 1 and i == 2) for i in range(len(answer.who))])
            parts = {name: getattr(answer, name)[keep] for name in ("who", "delta", "span", "loss")}
            out.append(answer._replace(**parts))
        return out

    monkeypatch.setattr(Stacked, "together", silent)
    monkeypatch.setattr("fedsim.lockstep.answers", unjoined)
    without = list(compare.compare(dropping))
    assert of(dropped, compare.Failed) == []
    assert of(dropped, compare.Measured) == of(without, compare.Measured) != of(straight, compare.Measured)
    why = "its update is not finite (NaN or infinity)"
    assert of(dropped, compare.Absent) == [compare.Absent(label, 1, 2, 2, why) for label in ("FedAvg", "MIFA", "DPSGD")]


def unjoined(jobs: Any, engine: Stacked, together: Any = None) -> Any:
    """As `lockstep.answers`, of jobs that are not put on one task, with answers' own `who`."""
    return [(answer, 0.0) for answer in engine.together(list(jobs))]


def test_a_round_in_which_all_diverge_is_an_empty_round(monkeypatch: pytest.MonkeyPatch) -> None:
    diverge(monkeypatch, float("nan"), tuple(range(6)))
    found = list(compare.compare(experiment.parse({**DIVERGING, "run": DIVERGING["run"] | {"on-divergence": "drop"}})))
    assert of(found, compare.Failed) == []
    assert len(of(found, compare.Absent)) == 3 * 6
    assert [event.present for event in of(found, compare.Played) if event.strategy == "MIFA"] == [6, 0, 6, 6]


def test_whom_it_dropped_stands_in_the_run_folder(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    diverge(monkeypatch, float("nan"))
    run = tmp_path / "run"
    assert command("run", file, "--out", run, "--set", "run.on-divergence=drop", "--set", "run.eval-every=6") == 0
    assert "2 times a client was asked and did not answer, or with nothing usable: " in " ".join(
        capsys.readouterr().err.split()
    )
    with open(run / "absences.csv", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [(row["strategy"], row["round"], row["client"]) for row in rows] == [
        ("FedAvg", "2", "2"),
        ("MIFA", "2", "2"),
    ]


def test_dropping_is_not_for_strategies_of_flower() -> None:
    with pytest.raises(ValueError, match=r'"drop" is not for strategies of Flower.*leave out flwr:FedAvg'):
        experiment.parse({
            **DIVERGING, "strategy": [{"name": "flwr:FedAvg"}], "run": DIVERGING["run"] | {"on-divergence": "drop"}
        })  # fmt: skip


# --- memory, clocks ---------------------------------------------------------------------------------------------------


def test_out_of_memory_ends_a_run_with_numbers_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own error for host memory. All at once fails, then one by one shows whose it was."""
    together, call = Stacked.together, Stacked.__call__

    def greedy(self: Stacked, jobs: Any) -> Any:
        if len(jobs) > 1:
            torch.empty(2**59)
        return together(self, jobs)

    def alone(self: Stacked, task: Any, who: Any, work: Any, *rest: Any) -> Any:
        if work.start.stride(0):  # gossip's: each its own
            torch.empty(2**59)
        return call(self, task, who, work, *rest)

    monkeypatch.setattr(Stacked, "together", greedy)
    monkeypatch.setattr(Stacked, "__call__", alone)
    found = list(compare.compare(experiment.parse(DIVERGING)))
    failed = of(found, compare.Failed)
    assert [event.strategy for event in failed] == ["DPSGD"]
    assert failed[0].reason == (
        "cpu is out of memory (tried to allocate 2305843009213693952 bytes, run.memory is 1GiB, run.chunk is 3); "
        "lower run.memory, or set run.chunk = 1"
    )
    assert [event.strategy for event in of(found, compare.Finished)] == ["FedAvg", "MIFA"]


def test_other_errors_of_torch_are_not_taken_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Stacked, jobs: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Stacked, "together", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        list(compare.compare(experiment.parse(DIVERGING)))


def test_a_clock_that_jumps_changes_no_number_and_no_duration(
    file: Path, calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wall clock goes back an hour at every look: durations and checkpoints go by one that only runs."""
    now = [time.time()]

    def back() -> float:
        now[0] -= 3600.0
        return now[0]

    monkeypatch.setattr(time, "time", back)
    run = tmp_path / "run"
    assert command("run", file, "--out", run, "--quiet") == 0
    same(run, calm)
    times = read_times(run)
    for label in ("FedAvg", "MIFA"):
        mine = [seconds for (strategy, *_), seconds in times.items() if strategy == label]
        assert mine == sorted(mine)
        assert mine[0] >= 0
    assert all(0 <= one["seconds"] < 60 for one in read_result(run))


def test_the_format_is_said_and_a_folder_of_one_to_come_is_refused(
    calm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert json.loads((calm / "environment.json").read_text())["format"] == 2
    run = tmp_path / "run"
    shutil.copytree(calm, run)
    environment = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps({**environment, "format": 3}))
    for name in ("resume", "report", "verify"):
        assert command(name, run) == 2
        error = capsys.readouterr().err
        assert error == f"fedsim: {run} is a run folder of format 3; this fedsim reads up to 2: use a newer one\n"
