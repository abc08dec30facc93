"""Threads that train lanes side by side on a CPU, each with one of torch's threads of its own.

Who trains a client changes nothing in its numbers. torch lets go of Python's lock while it computes, so lanes of
different workers do run at the same time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from fedsim.engine import heap
from fedsim.engine.plan import deal

if TYPE_CHECKING:
    import torch

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
    """Threads that stay."""
    return ThreadPoolExecutor(many, thread_name_prefix="fedsim")


def each(work: Callable[[list[int]], None], parts: Sequence[list[int]], device: torch.device) -> None:
    """Has the work done on every part, at the same time; raises what any of them raises. On a CPU torch computes with
    one thread in each, however many parts there are: with how many it does can change the last bits."""
    import torch

    if device.type == "cpu":
        heap.keep()
    threads = torch.get_num_threads()
    if device.type != "cpu" or (threads == 1 and len(parts) == 1):
        for part in parts:
            work(part)
        return
    torch.set_num_threads(1)
    try:
        if len(parts) == 1:
            work(parts[0])
        else:
            for done in [pool(len(parts)).submit(work, part) for part in parts]:
                done.result()
    finally:
        torch.set_num_threads(threads)
