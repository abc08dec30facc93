"""Threads that train lanes side by side on a CPU, each with one of torch's threads of its own.

Who trains a client changes nothing in its numbers. torch lets go of Python's lock while it computes, so lanes of
different workers do run at the same time.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, TypeVar

from fedsim.engine import heap
from fedsim.engine.plan import deal

if TYPE_CHECKING:
    import torch

Part = TypeVar("Part")

SWITCH = 5e-4  # seconds after which a worker that waits for Python's lock is given it; usual are 5 ms, half a round
MOST = 8  # beyond, they wait for Python's lock more than they train


def shares(steps: Sequence[int], chunk: int, device: torch.device) -> list[list[int]]:
    """Clients [K] dealt to workers: as many as torch has threads, where the clients fill more lanes than one has, and
    as even in steps as longest-first makes them. On a GPU, or with one thread, all to one."""
    import torch

    many = min(torch.get_num_threads(), MOST, -(-len(steps) // chunk)) if device.type == "cpu" else 1
    if many <= 1:
        return [list(range(len(steps)))]
    return deal(steps, many)


@functools.cache
def pool(many: int) -> ThreadPoolExecutor:
    """So many threads that stay."""
    return ThreadPoolExecutor(many, thread_name_prefix="fedsim")


@contextlib.contextmanager
def single(device: torch.device) -> Iterator[None]:
    """On a CPU, operators of this thread use no other: with how many they compute can change the last bits, and those
    that helped keep a core busy for some milliseconds after, in case there is more to do."""
    import torch

    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def each(work: Callable[[Part], None], parts: Sequence[Part], device: torch.device) -> None:
    """Has the work done on every part, at the same time, on the first by this thread; raises what any of them raises,
    when all are over. To be called within `single`, from which the threads that do it have how many of torch's each may
    use."""
    if device.type == "cpu":
        heap.keep()
    if len(parts) == 1:
        work(parts[0])
        return
    patience = sys.getswitchinterval()
    sys.setswitchinterval(min(patience, SWITCH))
    try:
        others = [pool(len(parts) - 1).submit(work, part) for part in parts[1:]]
        try:
            work(parts[0])
        finally:
            wait(others)
        for other in others:
            other.result()
    finally:
        sys.setswitchinterval(patience)
