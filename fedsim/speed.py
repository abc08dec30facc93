"""How fast a run was: what it did for its time, and how near that comes to what the machine can do.

What is counted is work that was of use: the steps clients took and the examples in them, not lanes that were idle and
not what is computed twice. The floating point operations of an example are those of matrix products and convolutions,
forwards and backwards, and so is the peak they are held against.
"""

from __future__ import annotations

import functools
import sys
import time
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fedsim.local import LocalSGD
    from fedsim.participation import Row, Schedule
    from fedsim.task import Task

WORTH = 10.0  # seconds a run must take for its operations to be counted and the peak to be measured, which take one
TRIAL = 0.15  # seconds of matrix products that show the peak
SIDE = {"cpu": 1024, "cuda": 4096}  # of the matrices: larger ones were no faster


class Meter:
    """Counts what a run does from its first round on."""

    def __init__(self, task: Task, local: LocalSGD, schedule: Schedule) -> None:
        self._task, self._local, self._schedule = task, local, schedule
        self._begin = time.perf_counter()
        self.steps = self.examples = 0

    def played(self, t: int, who: Tensor) -> None:
        """In round t these clients [k] trained and answered."""
        steps, examples = work(self._task, self._local, self._schedule[t], who, t)
        self.steps, self.examples = self.steps + steps, self.examples + examples

    def told(self, training: float) -> dict[str, Any]:
        """How fast that was, of so many seconds of training, as result.json holds it: see the README."""
        task, local = self._task, self._local
        seconds = max(training, 1e-9)
        host, device = memory(task.device)
        found: dict[str, Any] = {
            "steps": self.steps,
            "steps_per_second": self.steps / seconds,
            "examples": self.examples,
            "host_bytes": host,
            "device_bytes": device,
        }
        if time.perf_counter() - self._begin < WORTH:
            return found | {"why_no_flop": f"only told of runs of {WORTH:g} seconds and more"}
        each = flop(task, local)
        if each is None:
            return found | {"why_no_flop": "the model's operations cannot be counted"}
        return found | {
            "flop_per_example": each,
            "flop_per_second": each * self.examples / seconds,
            "peak_flop_per_second": peak(task.device, task.dtype),
        }


def work(task: Task, local: LocalSGD, row: Row, who: Tensor, t: int = 0) -> tuple[int, int]:
    """How many steps the clients `who` [k] took in round t, and how many examples were in these."""
    share = {} if bool((row.effort == 1).all()) else dict(zip(row.chosen.tolist(), row.effort.tolist(), strict=True))
    steps = examples = 0
    each = ((local.used(task.sizes[i], t), share.get(i, 1.0)) for i in who.tolist())
    for (size, effort), many in Counter(each).items():
        taken = local.count(size, effort)
        epochs, rest = divmod(taken, local.batches(size))
        steps += many * taken
        examples += many * (epochs * size + rest * (local.batch or 0))  # an epoch's last minibatch may be smaller
    return steps, examples


_counted: weakref.WeakKeyDictionary[Any, dict[tuple[Any, ...], float | None]] = weakref.WeakKeyDictionary()  # by model


def flop(task: Task, local: LocalSGD) -> float | None:
    """Floating point operations for an example in a step, forwards and backwards, of all matrix products and
    convolutions (torch.utils.flop_counter; a multiplication and an addition are two). None: they cannot be counted.

    A step is taken for it, the first time a model is met with that size of minibatch.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from fedsim.engine.loop import slope_of
    from fedsim.engine.plan import width

    batch = width(task, local)
    known = _counted.setdefault(task.outputs_of, {})
    kind = (batch, tuple(task.inputs.shape[1:]))
    if kind not in known:
        at = torch.zeros(batch, dtype=torch.int64, device=task.device)
        y = torch.zeros(task.layout.size, dtype=task.dtype, device=task.device)
        try:
            with FlopCounterMode(display=False) as counter:
                slope_of(task, y, task.rows[at], at[0])
            known[kind] = counter.get_total_flops() / batch
        except (
            Exception
        ):  # whatever in a user's model the counter does not understand: a run has ended well all the same
            known[kind] = None
    return known[kind]


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations a second of the best product of two matrices, with all of torch's threads. Measured
    once in a process, for a fraction of a second."""
    import torch

    return _peak(str(device), str(dtype).removeprefix("torch."), torch.get_num_threads())


@functools.cache
def _peak(device: str, dtype: str, threads: int) -> float:
    import torch

    where = torch.device(device)
    side = SIDE.get(where.type, SIDE["cpu"])
    a, b, out = (torch.ones((side, side), dtype=getattr(torch, dtype), device=where) for _ in range(3))

    def once() -> float:
        clock = time.perf_counter()
        torch.mm(a, b, out=out)
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        return time.perf_counter() - clock

    once()  # libraries are loaded, memory is touched
    end, best = time.perf_counter() + TRIAL, once()
    while time.perf_counter() < end:
        best = min(best, once())
    return 2 * side**3 / best


def memory(device: torch.device) -> tuple[int | None, int | None]:
    """The most bytes this process has held so far: in host memory, and on the device (None: it is the host; or nobody
    can say)."""
    import torch

    on_device = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    if sys.platform == "win32":  # has no getrusage
        return None, on_device
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most, on_device


def lines(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What runs, as result.json holds them, tell of their speed together; none where they tell nothing."""
    told = [run for run in runs if run.get("speed") and run.get("spent")]
    if not told:
        return []
    spent = {
        name: sum(run["spent"].get(name, 0.0) for run in told)
        for name in dict.fromkeys(name for run in told for name in run["spent"])
    }
    training = max(spent.get("training", 0.0), 1e-9)
    speeds = [run["speed"] for run in told]
    trained = sum(run["client_trainings_per_second"] * run["spent"]["training"] for run in told) / training
    steps = sum(speed["steps"] for speed in speeds) / training
    whole = max(sum(spent.values()), 1e-9)
    shares = ", ".join(f"{100 * seconds / whole:.0f} % {name}" for name, seconds in spent.items())
    found = [f"Speed: {plain(trained)} client trainings/s, {plain(steps)} steps/s. Time: {shares}."]
    most = {
        where: max((speed[key] for speed in speeds if speed.get(key) is not None), default=None)
        for where, key in (("host", "host_bytes"), ("device", "device_bytes"))
    }
    held = [f"{amount(bytes)}B on the {where}" for where, bytes in most.items() if bytes is not None]
    counted = [run for run in told if run["speed"].get("peak_flop_per_second")]
    if counted:
        flop = sum(run["speed"]["flop_per_example"] * run["speed"]["examples"] for run in counted)
        rate = flop / max(sum(run["spent"]["training"] for run in counted), 1e-9)
        best = max(run["speed"]["peak_flop_per_second"] for run in counted)
        said = f"Training: {amount(rate)}FLOP/s, {share(rate, best)} of this machine's {amount(best)}FLOP/s"
    else:
        said = f"Training's FLOP/s: {speeds[0].get('why_no_flop', 'not known')}"
    return [*found, f"Peak memory: {' and '.join(held) or 'not known'}. {said}."]


def plain(number: float) -> str:
    """A number in three digits or more: 3.14, 31.4, 31,416."""
    return f"{number:,.0f}" if number >= 99.95 else _three(number)


def amount(number: float) -> str:
    """A number in about three digits, with the prefix that its unit follows: 12.3 k, 3.40 M."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * size:
            return f"{_three(number / size)} {prefix}"
    return f"{_three(number)} "


def _three(number: float) -> str:
    return f"{number:.{2 if number < 9.995 else 1 if number < 99.95 else 0}f}"


def share(part: float, whole: float) -> str:
    """A part in percent, one digit at least."""
    percent = 100 * part / whole
    return f"{percent:.0f} %" if percent >= 1 else f"{percent:.1g} %"
