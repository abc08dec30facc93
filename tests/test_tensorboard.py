"""The metrics for TensorBoard, read back with its own reader."""

from __future__ import annotations

import errno
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from fedsim import record
from fedsim.record import RunFolder
from fedsim.report import tensorboard

pytest.importorskip("tensorboard", reason="needs the extra tensorboard")


def folder(path: Path, environment: dict[str, Any] | None = None) -> Path:
    with RunFolder(path, "", environment or {"started": "2025-01-02T03:04:05+00:00"}) as run:
        for seed in (1, 2):
            for label in ("FedAvg", "FedAU, K = 5", "mine.py:Mine/2"):
                for t in (0, 5, 10):
                    run.measured(label, seed, t, {"test_accuracy": 0.1 * t + seed, "variance/0.weight": 1.0})
    return path


def scalars(path: Path) -> dict[str, list[Any]]:
    """All scalars of one event run by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(path))
    read.Reload()
    return {tag: read.Scalars(tag) for tag in read.Tags()["scalars"]}


def test_what_is_written_is_read_by_tensorboard(tmp_path: Path) -> None:
    assert tensorboard.write(folder(tmp_path / "run"), tmp_path / "out") == 3 * 2 * 3 * 2
    runs = sorted(path.parent.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("events*"))
    names = ["FedAU, K = 5", "FedAvg", "mine.py_Mine_2"]
    assert runs == [f"{name}/seed{seed}" for name in names for seed in (1, 2)]
    for run in runs:
        found = scalars(tmp_path / "out" / run)
        assert list(found) == ["test_accuracy", "variance/0.weight"]
        assert [event.step for event in found["test_accuracy"]] == [0, 5, 10]
        want = [0.1 * t + int(run[-1]) for t in (0, 5, 10)]
        assert [event.value for event in found["test_accuracy"]] == pytest.approx(want)  # float32


def test_the_clock_is_the_runs_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = folder(tmp_path / "run")
    began = 1735787045.0  # 2025-01-02T03:04:05Z
    tensorboard.write(run, tmp_path / "out")
    found = scalars(tmp_path / "out" / "FedAvg" / "seed2")["test_accuracy"]
    assert [event.wall_time for event in found] == 3 * [began]
    times = {("FedAvg", 2, t): t / 4 for t in (0, 5, 10)}
    monkeypatch.setattr(record, "read_times", lambda folder: times, raising=False)
    tensorboard.write(run, tmp_path / "out")  # in the place of the first, not beside it
    found = scalars(tmp_path / "out" / "FedAvg" / "seed2")["test_accuracy"]
    assert [event.wall_time for event in found] == [began, began + 1.25, began + 2.5]


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    run = folder(tmp_path / "run")
    written = []
    for name in ("one", "two"):
        tensorboard.write(run, tmp_path / name)
        written.append([path.read_bytes() for path in sorted((tmp_path / name).rglob("events*"))])
    assert written[0] == written[1]
    assert len(written[0]) == 6


def test_what_is_not_finite_is_there(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", "", {}) as run:
        run.measured("x", 1, 0, {"loss": math.nan})
        run.measured("x", 1, 1, {"loss": math.inf})
    assert tensorboard.write(tmp_path / "run", tmp_path / "out") == 2
    values = [event.value for event in scalars(tmp_path / "out" / "x" / "seed1")["loss"]]
    assert math.isnan(values[0])
    assert values[1] == math.inf


def test_labels_that_look_alike_have_folders_of_their_own() -> None:
    names = tensorboard._names(["a/b", "a:b", "A_b", "..", "a/b", "../../c"])
    assert names == {"a/b": "a_b", "a:b": "a_b-2", "A_b": "A_b-3", "..": "_", "../../c": "_.._c"}


def test_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"is no run folder: there is no metrics\.csv"):
        tensorboard.write(tmp_path, tmp_path / "out")
    run = folder(tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*file/FedAvg/seed1: Not a directory"):
        tensorboard.write(run, tmp_path / "file")
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(full))
    with pytest.raises(OSError, match=r"cannot write .*fedsim: No space left on device"):
        tensorboard.write(run, tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)
    with pytest.raises(ValueError, match=r"pip install 'fedsim\[tensorboard\]'"):
        tensorboard.write(run, tmp_path / "out")
