"""Where a comparison stands between two rounds, saved so that it can go on from there: `fedsim resume`.

    checkpoints/000007.safetensors   the tensors: of every run under way its state, and its ledger's
    checkpoints/000007.json          everything else, and the SHA-256 of both; written last, it makes the pair whole

    for event in compare(experiment):                              for event in compare(experiment, since=latest(run)):
        if isinstance(event, Stand) and <it is time>:                  ...
            save(run, event)

Data, partitions, schedules and minibatches are not saved: the experiment makes them again, the same. What is saved is
held against what is made.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.checkpoint import take_apart, taken_together
from fedsim.events import Clients, Stand
from fedsim.files import flush_folder, write_atomically, writing

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.ledger import Book
    from fedsim.participation import Schedule
    from fedsim.task import Task

FORMAT = 2  # of 1 the evaluations of the last fifth were kept one by one
FOLDER = "checkpoints"
KEPT = 2  # should the last one be damaged, there is one before it


@dataclass
class Late:
    """The mean of some evaluations, of each metric that all of them have. However many they are it takes no more."""

    count: int = 0
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, metrics: Mapping[str, float]) -> None:
        """One more."""
        before = self.sums if self.count else dict.fromkeys(metrics, 0.0)
        self.sums = {name: total + metrics[name] for name, total in before.items() if name in metrics}
        self.count += 1

    def mean(self) -> dict[str, float]:
        """Their means, by metric; none while there are no evaluations."""
        return {name: total / self.count for name, total in self.sums.items()}


@dataclass
class Progress:
    """How far a run is: what it needs to go on, beside what the experiment makes anew."""

    state: Any  # the strategy's
    book: Book | None = None
    done: int = 0  # rounds that are over
    trainings: int = 0  # of clients, in all
    up: int = 0  # bits, in all
    down: int = 0
    spent: dict[str, float] = field(
        default_factory=lambda: {"training": 0.0, "aggregation": 0.0, "evaluation": 0.0}
    )  # seconds
    recording: float = 0.0  # seconds in which others wrote down what happened
    steps: int = 0  # that clients took, in all
    examples: int = 0  # in these steps
    late: Late = field(default_factory=Late)  # the evaluations of the last fifth of the rounds

    def numbers(self) -> dict[str, Any]:
        """What of it is neither state nor ledger, as JSON holds it."""
        kept = ("done", "trainings", "up", "down", "spent", "recording", "steps", "examples")
        return {name: getattr(self, name) for name in kept} | {"late": vars(self.late)}


def fingerprint(task: Task, schedule: Schedule) -> str:
    """A hash of who holds what and who is present when."""
    found = hashlib.sha256(schedule.digest().encode())
    for part in (task.rows, task.targets):
        found.update(part.cpu().contiguous().numpy().data)
    found.update(json.dumps([task.sizes, list(task.inputs.shape)]).encode())
    return found.hexdigest()


def save(run: Path, stand: Stand, also: Mapping[str, Any] | None = None) -> Path:
    """Writes a checkpoint into a run folder, and lets go of all but the last `KEPT`; `also` is kept with it, and is
    anything that JSON holds. Raises OSError with one line where it cannot be written, and leaves those before it."""
    from fedsim.tensors import hashed, written

    folder = run / FOLDER
    with writing(folder):
        folder.mkdir(exist_ok=True)
    number = max(_numbers(folder), default=0) + 1
    path = folder / f"{number:06}.json"
    tensors: dict[str, Tensor] = {}
    runs = []
    for i, ((label, seed), progress) in enumerate(stand.under_way.items()):
        state = take_apart(progress.state, f"{i}.state", tensors)
        twin = None if progress.book is None else take_apart(progress.book.twin, f"{i}.ledger", tensors)
        runs.append({"strategy": label, "seed": seed, **progress.numbers(), "state": state, "ledger": twin})
    digest = hashlib.sha256()
    write_atomically(path.with_suffix(".safetensors"), hashed(written(tensors), digest))
    alone = [
        {"strategy": said.strategy, "seed": seed, "table": {name: _listed(c) for name, c in said.table.items()}}
        for seed, said in stand.alone.items()
    ]
    content = {
        "format": FORMAT,
        "tensors": digest.hexdigest(),
        "worlds": {str(seed): world for seed, world in stand.worlds.items()},
        "over": [list(each) for each in stand.over],
        "alone": alone,
        "runs": runs,
        "also": also or {},
    }
    text = json.dumps(content)
    write_atomically(path, json.dumps({"sha256": _text_digest(text), "content": content}).encode())
    flush_folder(folder)
    for old in sorted(_numbers(folder))[:-KEPT]:
        _remove(folder, old)
    return path


def discard(run: Path) -> None:
    """Takes a run folder's checkpoints away: it is over, or begins again."""
    folder = run / FOLDER
    if folder.is_dir():
        for path in folder.iterdir():
            if re.fullmatch(r"\.?\d{6,}\.(json|safetensors)(\.\d+\.tmp)?", path.name):
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # somebody laid something else in it
            folder.rmdir()


class Damaged(ValueError):
    """A checkpoint that is not what was written."""


class Saved:
    """A checkpoint, read and found whole. `also` is what it was saved with."""

    def __init__(self, path: Path) -> None:
        """Of a checkpoint's .json. Raises `Damaged` where it or its tensors are, ValueError where it is of another
        format, OSError where it cannot be read."""
        self.path = path
        try:
            whole = json.loads(path.read_text(encoding="utf-8"))
            content = whole["content"]
            if content["format"] not in range(1, FORMAT + 1):
                found = content["format"]
                raise ValueError(
                    f"{path} has checkpoint format {found}, this fedsim reads 1 to {FORMAT}: use a newer one"
                )
            if whole["sha256"] != _text_digest(json.dumps(content)):
                raise KeyError
            self._runs = {(run["strategy"], run["seed"]): run for run in content["runs"]}
            self.over: list[tuple[str, int]] = [(label, seed) for label, seed in content["over"]]
            self.also: dict[str, Any] = content["also"]
            self._worlds: dict[str, str] = content["worlds"]
            self._alone = content["alone"]
            digest = content["tensors"]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
            raise Damaged(f"{path} is damaged") from None
        self._tensors = path.with_suffix(".safetensors")
        if not self._tensors.is_file() or _digest(self._tensors) != digest:
            raise Damaged(f"{self._tensors} is damaged, or not there")

    @property
    def rounds(self) -> list[int]:
        """The rounds that the runs under way have played."""
        return [run["done"] for run in self._runs.values()]

    @property
    def under_way(self) -> list[tuple[str, int]]:
        """Strategy and seed of the runs under way."""
        return list(self._runs)

    def alone(self) -> dict[int, Clients]:
        """By seed, how clients fare who train by themselves, of the runs that are over."""
        return {
            one["seed"]: Clients(
                one["strategy"],
                one["seed"],
                {name: np.array(values, dtype=kind) for name, (kind, values) in one["table"].items()},
            )
            for one in self._alone
        }

    def check(self, seed: int, fingerprint: str) -> None:
        """Raises ValueError where a seed's world is not the one that the run began with."""
        if self._worlds.get(str(seed), fingerprint) != fingerprint:
            raise ValueError(
                f"{self.path.parent.parent} cannot go on: the data, the partition or the schedule of seed {seed} are "
                "not those it began with; give it the same files and the same version of fedsim, or run it anew"
            )

    def restore(self, label: str, seed: int, progress: Progress) -> bool:
        """Brings a run that has not begun to where it was; whether it was under way. Raises ValueError where what was
        saved does not fit it."""
        from safetensors import safe_open

        run = self._runs.get((label, seed))
        if run is None:
            return False
        with safe_open(self._tensors, framework="pt") as file:
            try:
                progress.state = taken_together(run["state"], progress.state, file.get_tensor)
                if (progress.book is None) != (run["ledger"] is None):
                    raise ValueError("its ledger is not of this run")
                if progress.book is not None:
                    progress.book.twin = taken_together(run["ledger"], progress.book.twin, file.get_tensor)
            except ValueError as error:
                raise ValueError(f"{self.path} does not fit {label}, seed {seed}: {error}") from None
        for name in progress.numbers().keys() - {"late"}:
            setattr(progress, name, run[name])
        if isinstance(run["late"], list):
            for metrics in run["late"]:
                progress.late.add(metrics)
        else:
            progress.late = Late(**run["late"])
        return True


def latest(run: Path, unfit: Callable[[Saved], str] = lambda saved: "") -> tuple[Saved | None, list[str]]:
    """The last checkpoint of a run folder that is whole, and not `unfit` for what it says; and what is wrong with those
    after it. Raises ValueError for one of another format."""
    wrong = []
    for number in sorted(_numbers(run / FOLDER), reverse=True):
        try:
            saved = Saved(run / FOLDER / f"{number:06}.json")
        except Damaged as error:
            wrong.append(str(error))
            continue
        if why := unfit(saved):
            wrong.append(why)
        else:
            return saved, wrong
    return None, wrong


def _numbers(folder: Path) -> Iterator[int]:
    """The numbers of a folder's checkpoints."""
    if folder.is_dir():
        for path in folder.iterdir():
            if re.fullmatch(r"\d{6,}\.json", path.name) and path.is_file():
                yield int(path.stem)


def _remove(folder: Path, number: int) -> None:
    """Take a checkpoint away, what makes it whole first."""
    for suffix in (".json", ".safetensors"):
        with contextlib.suppress(OSError):
            (folder / f"{number:06}{suffix}").unlink(missing_ok=True)


def _listed(column: Any) -> tuple[str, list[Any]]:
    """A column as JSON holds it: what its values are, and they themselves, floats to the last bit."""
    array = np.asarray(column)
    return str(array.dtype), array.tolist()


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
