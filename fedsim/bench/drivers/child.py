"""The process of a contender: reads its workload from files and plays a round when a line of standard input says so.

    python child.py with_pfl.py WORLD SETTING     (a folder that fedsim.bench.world wrote; JSON)

Needs NumPy and the standard library only: it runs in environments that have no fedsim. A driver is a file with a
function `drive(world, turns)` that sets everything up and then calls `turns.lap()` between rounds, once before the
first: `lap` reports the round that is over, waits for its turn and returns when the next may begin. So a contender that
owns its loop calls it from a hook of its own. Answers are lines of JSON on what was standard output; all else that is
printed goes to standard error.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


class World(NamedTuple):
    """A workload as a contender finds it."""

    workload: dict[str, Any]  # the fields of fedsim.bench.workloads.Workload
    setting: dict[str, Any]  # how this contender is to run: threads, processes, ...
    folder: Path
    inputs: Array  # [N, 1, 28, 28]  uint8
    targets: Array  # [N]             int64
    mean: float
    std: float
    rows: Array  # [n, size]       who holds which example
    cohorts: Array  # [T, k]          who is there in a round; in gossip [0, 0]
    neighbours: Array  # [n, degree]     [n, 0] where there is a server
    first: Array  # [P]             where everybody begins, in the order of torch's parameters

    def normalised(self) -> Array:
        """All examples [N, 1, 28, 28] as float32."""
        return ((self.inputs.astype(np.float32) / 255 - self.mean) / self.std).astype(np.float32)

    def module(self) -> Any:
        """The model in PyTorch, with the first parameters in it."""
        import torch

        made = torch_module(str(self.workload["model"]))
        torch.nn.utils.vector_to_parameters(torch.from_numpy(self.first.copy()), made.parameters())
        return made

    def minibatches(self, i: int, draw: np.random.Generator) -> Array:
        """Places in the pool [steps, batch] of a client's minibatches: every epoch in an order of its own."""
        steps, batch = int(self.workload["steps"]), int(self.workload["batch"])
        size = self.rows.shape[1]
        epochs = -(-steps * batch // size)
        order = np.concatenate([draw.permutation(size) for _ in range(epochs)])[: steps * batch]
        places: Array = self.rows[i][order].reshape(steps, batch)
        return places


def read(folder: Path, setting: dict[str, Any]) -> World:
    """What fedsim.bench.world wrote."""
    spec = json.loads((folder / "spec.json").read_text())
    images, own = np.load(spec["images"]), np.load(folder / "world.npz")
    return World(
        spec["workload"], setting, folder, images["inputs"], images["targets"], spec["mean"], spec["std"],
        own["rows"], own["cohorts"], own["neighbours"], own["first"],
    )  # fmt: skip


def torch_module(model: str) -> Any:
    """The models of the workloads in PyTorch, for images [1, 28, 28] and 10 classes: what fedsim.models builds."""
    from torch import nn

    if model == "logistic":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    if model == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 10))
    if model == "lenet5":
        return nn.Sequential(
            nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
        )  # fmt: skip
    if model == "mcmahan-cnn":
        return nn.Sequential(
            nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 10),
        )  # fmt: skip
    raise ValueError(f"no module for {model!r}")


# Clocks ---------------------------------------------------------------------------------------------------------------


def descendants(pid: int) -> list[int]:
    """Processes that descend from one, as far as /proc tells; none where there is no /proc."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:  # gone
            continue
        parents.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    found, new = [], [pid]
    while new:
        new = [child for parent in new for child in parents.get(parent, [])]
        found += new
    return found


def cpu_clocks() -> dict[int, float]:
    """CPU seconds so far of this process (0) and of every process that descends from it, by id."""
    clocks = {0: time.process_time()}
    for pid in descendants(os.getpid()):
        try:
            clocks[pid] = time.clock_gettime((~pid << 3) | 2)  # Linux: the id of another process' CPU clock
        except OSError:  # gone
            continue
    return clocks


def peak_mb() -> float:
    """The most memory this process and its descendants have held, in MB: the sum of the peaks of each, so that what
    processes share counts once for each."""
    total = 0.0
    for pid in (os.getpid(), *descendants(os.getpid())):
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        peaks = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
        total += sum(float(peak) for peak in peaks) * 1.024e-3
    if total:
        return total
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1e-6 if sys.platform == "darwin" else 1.024e-3)  # bytes there, kibibytes elsewhere


# Turns ----------------------------------------------------------------------------------------------------------------


class Turns:
    """What a driver tells, and what it is told."""

    def __init__(self, answers: Any, orders: Iterator[str]) -> None:
        self._answers, self._orders = answers, orders
        self._clocks: dict[int, float] | None = None  # as they were before the stint
        self._marks: list[float] = []  # when its rounds began, and the last was over
        self._left = 0  # rounds of it
        self.model: Callable[[], Array] | None = None  # gives the parameters [P]; of gossip the nodes' mean
        self.notes: dict[str, Any] = {}  # what is worth knowing about how it runs
        self.closing: list[Callable[[], Any]] = []  # what is to be done before the process ends

    def versions(self, *names: str) -> None:
        """Notes the versions of packages."""
        self.notes["versions"] = {name: importlib.metadata.version(name) for name in names}

    def say(self, **answer: Any) -> None:
        """A line of JSON to whoever holds the other end."""
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()

    def lap(self) -> None:
        """A round is over, or all is set up: says so and waits, after the last round of a stint. Ends the process when
        told to."""
        self._marks.append(time.perf_counter())
        self._left -= 1
        if self._left > 0:
            return
        if self._clocks is None:
            self.say(ready=True)
        else:
            spent = {pid: now - self._clocks.get(pid, 0.0) for pid, now in cpu_clocks().items()}
            seconds = [after - before for before, after in itertools.pairwise(self._marks)]
            self.say(seconds=seconds, cpu_seconds=sum(spent.values()) / len(seconds))
        for order in self._orders:
            if order.startswith("rounds "):
                self._left = int(order.removeprefix("rounds "))
                self._clocks = cpu_clocks()
                self._marks = [time.perf_counter()]
                return
            if order.startswith("model "):
                assert self.model is not None
                np.save(order.removeprefix("model "), self.model())
                self.say(saved=True)
            elif order == "tell":
                self.say(peak_mb=peak_mb(), **self.notes)
            else:
                raise ValueError(f"there is no order {order!r}")
        for close in self.closing:
            close()
        os._exit(0)  # whatever loop is around this one


def main(arguments: Sequence[str]) -> None:
    """Drives what the first argument names."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    script, folder, setting = arguments
    sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != Path(__file__).resolve().parent]
    place = Path(__file__).resolve().parent / script
    spec = importlib.util.spec_from_file_location(place.stem, place)
    assert spec is not None
    assert spec.loader is not None
    driver = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(driver)
    driver.drive(read(Path(folder), json.loads(setting)), Turns(answers, (line.strip() for line in sys.stdin)))


if __name__ == "__main__":
    main(sys.argv[1:])
