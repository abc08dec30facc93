"""The examples of a task as its model wants them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.task import Task

READY = 2**29  # bytes of normalised examples that are kept, so that no step normalises them again

_ready: Any = None  # inputs -> what they are normalised, and how


def examples(task: Task) -> Tensor:
    """The pool of examples as the model wants them, normalised once where there is room for it, else as they are."""
    from torch.utils.weak import WeakTensorKeyDictionary

    global _ready
    if _ready is None:
        _ready = WeakTensorKeyDictionary()
    as_is = task.inputs.dtype == task.dtype and task.mean is None
    if as_is or task.inputs.numel() * task.dtype.itemsize > READY:
        return task.inputs
    kept: list[tuple[tuple[Any, ...], Tensor]] = _ready.setdefault(task.inputs, [])
    for (mean, std, dtype), pool in kept:
        if mean is task.mean and std is task.std and dtype == task.dtype:
            return pool
    kept.append(((task.mean, task.std, task.dtype), task.ready(task.inputs)))
    return kept[-1][1]
