"""Rooms that are made once for a model and a shape, and used in every round."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from fedsim.engine.room import Room, Rule, traits

if TYPE_CHECKING:
    from fedsim.task import Task

KEPT = 4  # rooms of a model that wait for their next use

_waiting: weakref.WeakKeyDictionary[Any, list[Room]] = weakref.WeakKeyDictionary()  # by the model


def take(task: Task, chunk: int, batch: int, rule: Rule) -> Room:
    """A room that nobody else is in."""
    rooms = _waiting.get(task.outputs_of, [])
    for room in list(rooms):
        if room.shape == (chunk, batch, rule) and same_traits(room.fits, traits(task)):
            try:
                rooms.remove(room)
            except ValueError:  # somebody was faster
                continue
            room.enter(task)
            return room
    return Room(task, chunk, batch, rule)


def give_back(room: Room) -> None:
    """The room is free for others."""
    owner = room.owner()
    if owner is not None:
        room.leave()
        rooms = _waiting.setdefault(owner, [])
        rooms.append(room)
        del rooms[:-KEPT]


def clear() -> None:
    """Lets go of all rooms that wait, and of memory that torch keeps for them."""
    import torch

    _waiting.clear()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def same_traits(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Whether two tasks have them in common; tensors are the same only if they are one."""
    import torch

    return all(a is b if isinstance(a, torch.Tensor) else a == b for a, b in zip(one, other, strict=True))
