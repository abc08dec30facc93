"""Targets of fuzz.py: the files of run folders and sweep folders, each damaged in a folder that is otherwise sound.

A file that is read must say what it said, or `fedsim verify` has to find what was changed (metrics.csv, result.json),
or going on with the run has to refuse (metrics.csv, hashes.csv, the checkpoint). A refusal names the file.
"""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ENVIRONMENT = {"python": "3", "packages": {"fedsim": "0"}, "processor": "x", "device": "cpu", "threads": 1,
               "started": "2026-01-01T00:00:00+00:00"}  # fmt: skip
ABSENCES = b"strategy,seed,round,client,reason\nFedAvg,1,1,2,late\nMIFA,1,2,0,late\n"
TUNE = {
    "budget": {"allowed": 8, "unit": "rounds", "trials": 2, "metric": "test_accuracy", "on": "held-out",
               "rungs": [{"trials": 2, "rounds": 2}, {"trials": 1, "rounds": 4}]},
    "strategies": [{
        "label": "MIFA", "grid": {"local.lr": [0.1, 0.2]}, "winner": {"local.lr": 0.1}, "value": 0.5, "edge": [],
        "trials": [{"settings": {"local.lr": 0.1}, "rounds": 4, "value": 0.5, "failed": None},
                   {"settings": {"local.lr": 0.2}, "rounds": 2, "value": 0.4, "failed": None}],
    }],
}  # fmt: skip
TABLES = b"""
name = "small"
[task]
data = { name = "clusters", classes = 3, dimension = 2, examples = 30, test-examples = 9 }
clients = 3
holdout = 0.2
[participation]
name = "bernoulli"
probabilities = 0.6
[local]
lr = 0.1
steps = 1
batch = 2
[[strategy]]
name = "FedAvg"
[[strategy]]
name = "MIFA"
[run]
rounds = 4
seeds = [1]
device = "cpu"
threads = 1
chunk = 1
together = 1
"""
SWEEP = (
    TABLES
    + b"""[sweep]
"local.lr" = [0.1, 0.2]
"task.clients" = [2, 3]
"""
)


@functools.cache
def sound() -> Path:
    """A run folder that is over, and in it where it stood when one of its runs was; no times in it, so that it is the
    same every time."""
    from fedsim import compare, experiment, standing
    from fedsim.record import RunFolder

    place = Path(tempfile.mkdtemp())
    (place / "e.toml").write_bytes(TABLES)
    made = compare.settle(experiment.load(place / "e.toml"))
    run = place / "run"
    with RunFolder(run, made.toml(), ENVIRONMENT) as folder:
        for event in compare.compare(made):
            match event:
                case compare.Planned():
                    folder.resolved(event.experiment.toml())
                case compare.Began(seed, schedule, _):
                    folder.schedule(seed, schedule)
                case compare.Measured():
                    folder.measured(*event)
                case compare.Timed(strategy, seed, round, _):
                    folder.timed(strategy, seed, round, float(round))
                case compare.Clients():
                    folder.clients(*event)
                case compare.Finished():
                    still = event._replace(seconds=1.0, spent={"training": 1.0}, speed=None)
                    folder.finished(compare.as_result(still._replace(client_trainings_per_second=2.0)))
                case compare.Stand() if event.over and [one.done for one in event.under_way.values()] == [2]:
                    for progress in event.under_way.values():
                        progress.spent, progress.recording = dict.fromkeys(progress.spent, 0.0), 0.0
                    standing.save(run, event, folder.mark())
        (run / "absences.csv").write_bytes(ABSENCES)
        (run / "tune.json").write_text(json.dumps(TUNE, indent=2))
    return run


@functools.cache
def swept() -> Path:
    """A sweep folder of which two cells are over."""
    from fedsim.record import RunFolder
    from fedsim.sweep import folder as folders
    from fedsim.sweep import load

    place = Path(tempfile.mkdtemp())
    (place / "s.toml").write_bytes(SWEEP)
    sweep, folder, states = load(place / "s.toml"), place / "sweep", {}
    with folders.opened(folder, sweep):
        for cell, work in list(zip(sweep.cells, sweep.work, strict=True))[:2]:
            with RunFolder(folder / cell.name, sweep.experiment(cell).toml(), ENVIRONMENT) as record:
                for label in work.strategies:
                    found = {"test_accuracy": 0.5 + cell.number / 8, "test_loss": 1.5}
                    record.finished({"strategy": label, "seed": 1, "rounds": 4, "final": found, "final_mean": found})
            folders.mark(folder, sweep, cell)
            states[cell.number] = folders.state(folder, cell, work) or {}
        folders.write_index(folder, sweep, states)
    return folder


def corpus(name: str, of: Callable[[], Path] = sound) -> Callable[[], list[bytes]]:
    """The sound file."""
    return lambda: [next(of().glob(name)).read_bytes()]


@contextlib.contextmanager
def damaged(of: Path, name: str, by: Path) -> Iterator[Path]:
    """The folder with another file under a name. Raises AssertionError for a refusal that does not name the file."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "it"
        shutil.copytree(of, folder)
        path = next(folder.glob(name))
        shutil.copyfile(by, path)
        try:
            yield folder
        except (ValueError, OSError) as error:
            if path.name not in str(error) and path.stem not in str(error) and "run folder of format" not in str(error):
                raise AssertionError(f"a refusal that does not name {path.name}: {error}") from error
            raise


def alike(one: Any, other: Any) -> bool:
    """Whether two results say the same, means to twelve digits, which is how well `verify` can know them."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= 1e-11 * abs(other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(value, other[name]) for name, value in one.items())
    if isinstance(one, tuple) and isinstance(other, tuple):
        return all(alike(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def reads(name: str, also: Callable[[Path], Any] = lambda run: None) -> Callable[[Path], Any]:
    """Reads a run folder in which one file is damaged, as report, verify and resume do."""

    def read(by: Path) -> None:
        from fedsim import verify
        from fedsim.record import read_clients, read_metrics, read_result
        from fedsim.report import page, results

        with damaged(sound(), name, by) as run:
            also(run)
            results.gather(run)
            read_clients(run)
            page.page(page.tell([run]))
            wrong = verify.book(run)
            mine, sounds = (
                {
                    (one["strategy"], one["seed"]): (one.get("final"), one.get("final_mean"))
                    for one in read_result(folder)
                }
                for folder in (run, sound())
            )
            same = all(alike(one, sounds.get(name)) for name, one in mine.items())
            if repr(read_metrics(run)) != repr(read_metrics(sound())) or not same:
                assert wrong, "numbers were changed, and nothing is found"

    return read


def goes_on(name: str) -> Callable[[Path], Any]:
    """Takes a run up again in a folder in which one file is damaged: only as it was when it stood there."""

    def read(by: Path) -> None:
        from fedsim import standing
        from fedsim.cli.resume import go_on
        from fedsim.experiment import load
        from fedsim.record import RunFolder, lacking, read_metrics

        with damaged(sound(), name, by) as run:
            saved, wrong = standing.latest(run, lambda one: lacking(run, one.also))
            if saved is None:
                raise ValueError(wrong[0] if wrong else "000 is not there")
            load(run / "experiment.toml")
            assert callable(go_on)
            before = standing.Saved(next(sound().glob("checkpoints/*.json")))
            assert saved.also == before.also
            assert saved.over == before.over
            RunFolder.reopened(run, saved.also, saved.over, ENVIRONMENT).close()
            kept = (sound() / "metrics.csv").read_bytes()[: saved.also["sizes"]["metrics.csv"]]
            assert (run / "metrics.csv").read_bytes() == kept, "it goes on from other numbers"
            assert [m.strategy for m in read_metrics(run)]

    return read


def reads_sweep(name: str) -> Callable[[Path], Any]:
    """Reads a sweep folder in which one file is damaged, as `fedsim sweep --resume` does."""

    def read(by: Path) -> None:
        from fedsim.sweep import folder as folders
        from fedsim.sweep import grid, load

        with damaged(swept(), name, by) as folder:
            sweep = load(folder / folders.FILE)
            if len(sweep.cells) > 100:
                raise ValueError(f"{folders.FILE} asks for as much as it says")
            folders.check(folder, sweep)
            for cell, work in zip(sweep.cells, sweep.work, strict=True):
                state = folders.state(folder, cell, work)
                assert state is None or len(state["runs"]) == work.runs or "refused" in state
            folders.write_index(folder, sweep, {}) if name != "index.csv" else grid.read(folder, None)

    return read


def tunes(run: Path) -> None:
    from fedsim.report.figures import tried

    tried(run)


def boards(run: Path) -> None:
    from fedsim.report import tensorboard

    tensorboard._started(run)


CSV = (b",", b'"', b"\n", b"\r", b"\0", b"nan", b"FedAvg,1,2,", b"MIFA", b"1e308", b"-1", b"9" * 30, b"\xff", b"1_0")
JSON = (b"[" * 9, b"{", b'"', b"null", b"NaN", b"1e999", b"-1", b'"runs"', b"true", b"9" * 30, b"\xff", b"[]", b"{}")
TOML = (b"[", b"]", b"{", b"}", b'"', b"=", b"[[", b"name", b"true", b"inf", b"9" * 30, b"\xff", b"0.3", b"5")
CHECKPOINT = "checkpoints/*"
# name -> the file, of which folder, what reads it, the words of its format
FOLDERS: dict[str, tuple[str, Callable[[], Path], Callable[[Path], Any], tuple[bytes, ...]]] = {
    "run/metrics": ("metrics.csv", sound, reads("metrics.csv"), CSV),
    "run/hashes": ("hashes.csv", sound, reads("hashes.csv"), CSV),
    "run/times": ("times.csv", sound, reads("times.csv"), CSV),
    "run/clients": ("clients.csv", sound, reads("clients.csv"), CSV),
    "run/absences": ("absences.csv", sound, reads("absences.csv"), CSV),
    "run/result": ("result.json", sound, reads("result.json"), JSON),
    "run/environment": ("environment.json", sound, reads("environment.json", boards), JSON),
    "run/tune": ("tune.json", sound, reads("tune.json", tunes), JSON),
    "run/experiment": ("experiment.toml", sound, reads("experiment.toml"), TOML),
    "run/schedule": ("schedule-seed1.npz", sound, reads("schedule-seed1.npz"), (b"PK\x03\x04", b"\xff" * 8)),
    "resume/metrics": ("metrics.csv", sound, goes_on("metrics.csv"), CSV),
    "resume/hashes": ("hashes.csv", sound, goes_on("hashes.csv"), CSV),
    "resume/clients": ("clients.csv", sound, goes_on("clients.csv"), CSV),
    "resume/result": ("result.json", sound, goes_on("result.json"), JSON),
    "resume/experiment": ("experiment.toml", sound, goes_on("experiment.toml"), TOML),
    "resume/json": (f"{CHECKPOINT}.json", sound, goes_on(f"{CHECKPOINT}.json"), JSON),
    "resume/tensors": (f"{CHECKPOINT}.safetensors", sound, goes_on(f"{CHECKPOINT}.safetensors"), (b"F64", b"\0" * 8)),
    "sweep/index": ("index.csv", swept, reads_sweep("index.csv"), CSV),
    "sweep/cell": ("000-*/cell.json", swept, reads_sweep("000-*/cell.json"), JSON),
    "sweep/result": ("000-*/result.json", swept, reads_sweep("000-*/result.json"), JSON),
    "sweep/toml": ("sweep.toml", swept, reads_sweep("sweep.toml"), TOML),
}
