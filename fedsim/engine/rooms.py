"""Where a chunk trains: buffers of its shapes, and the program that computes its gradients in them.

Made once for a model and a shape, then used in every round.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fedsim.engine.program import Program

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.task import Task

READY = 2**29  # bytes of normalised examples that are kept, so that no step normalises them again
KEPT = 4  # rooms of a model that wait for their next use


class Room:
    """Buffers for `chunk` clients with minibatches of `batch` examples."""

    def __init__(self, task: Task, chunk: int, batch: int, plain: bool) -> None:
        """`plain`: gradients come out times a rate for each client."""
        import torch

        self.shape = (chunk, batch, plain)
        self.owner = weakref.ref(task.outputs_of)
        self.fits = traits(task)
        device, pool = task.device, examples(task)
        self.y = torch.empty((chunk, task.layout.size), dtype=task.dtype, device=device)
        self.views = list(task.layout.views(self.y).values())
        self._inputs = pool.new_empty((chunk, batch, *pool.shape[1:]))
        self._targets = task.targets.new_empty((chunk, batch, *task.targets.shape[1:]))
        self._weights = torch.empty((chunk, batch), dtype=task.dtype, device=device)
        self._keys = torch.empty(chunk, dtype=torch.int64, device=device)
        self._rates = torch.empty((chunk, 1), dtype=task.dtype, device=device) if plain else None
        self._program: Program | None = None
        self.enter(task)

    def enter(self, task: Task) -> None:
        """Train this task's clients from now on; it has the traits the room was made for."""
        self._task, self._pool = task, examples(task)
        if self._program is not None and not self.traced:
            self._program.function = step_of(task)

    def leave(self) -> None:
        """Let go of the task; the program stays."""
        del self._task, self._pool
        if self._program is not None:
            self._program.function = None

    def gradients(self, rows: Tensor, weights: Tensor, keys: Tensor, rates: Tensor | None) -> Any:
        """The gradients at y of each client's loss, a tensor [c, ...] for each of the model's, and the losses [c].

        rows [c, b] are places in the pool, weights [c, b] what they count. Of a plain room the gradients are multiplied
        by rates [c] and taken off y, and there are only losses. They lie in buffers that the next call writes to.
        """
        import torch

        at = rows.reshape(-1)
        torch.index_select(self._pool, 0, at, out=self._inputs.view(-1, *self._inputs.shape[2:]))
        torch.index_select(self._task.targets, 0, at, out=self._targets.view(-1, *self._targets.shape[2:]))
        self._weights.copy_(weights)
        self._keys.copy_(keys)
        given = [self.y, self._inputs, self._targets, self._weights, self._keys]
        if self._rates is not None and rates is not None:
            given.append(self._rates.copy_(rates[:, None]))
        if self._program is None:
            twin = alone(self._task) if len(self.y) == 1 else None
            self._program = Program(step_of(self._task), given, self.views if self._rates is not None else (), twin)
        return self._program()

    @property
    def traced(self) -> bool:
        """Whether the program is one, and not the function it was to be made of."""
        return self._program is not None and self._program.calls is not None


_waiting: weakref.WeakKeyDictionary[Any, list[Room]] = weakref.WeakKeyDictionary()  # by the model


def take(task: Task, chunk: int, batch: int, plain: bool) -> Room:
    """A room that nobody else is in."""
    rooms = _waiting.get(task.outputs_of, [])
    for room in list(rooms):
        if room.shape == (chunk, batch, plain) and same_traits(room.fits, traits(task)):
            try:
                rooms.remove(room)
            except ValueError:  # somebody was faster
                continue
            room.enter(task)
            return room
    return Room(task, chunk, batch, plain)


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


def traits(task: Task) -> tuple[Any, ...]:
    """What a program knows of a task, beside its model."""
    pool = examples(task)
    normalised = pool is not task.inputs
    return (
        task.criterion, task.augment, None if normalised else task.mean, None if normalised else task.std,
        tuple(pool.shape[1:]), pool.dtype, tuple(task.targets.shape[1:]), task.targets.dtype, task.dtype, task.device,
    )  # fmt: skip


def same_traits(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Whether two tasks have them in common; tensors are the same only if they are one."""
    import torch

    return all(a is b if isinstance(a, torch.Tensor) else a == b for a, b in zip(one, other, strict=True))


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


def step_of(task: Task) -> Callable[..., Any]:
    """(y, inputs, targets, weights, keys, rates?) -> the gradients and losses of a chunk, as a room computes them."""
    gradient = gradients(task, ready=examples(task) is not task.inputs)

    def step(y: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor, keys: Tensor, *rates: Tensor) -> list[Tensor]:
        slopes, value = gradient(task.layout.views(y), inputs, targets, weights, keys, rates[0] if rates else None)
        return [slopes[name] for name in task.layout.names] + [value]

    return step


def alone(task: Task) -> Callable[..., Any]:
    """`step_of` for a chunk of one model, without batching it."""
    gradient = of_one(task, ready=examples(task) is not task.inputs)

    def step(y: Tensor, *given: Tensor) -> list[Tensor]:
        inputs, targets, weights, keys, *rates = (one[0] for one in given)
        worth = rates[0] if rates else None
        slopes, value = gradient(task.layout.views(y[0]), inputs, targets, weights, keys, worth)
        return [slopes[name][None] for name in task.layout.names] + [value[None]]

    return step


Gradient = Callable[..., tuple[dict[str, Any], Any]]


def gradients(task: Task, dropout: bool = True, ready: bool = False) -> Gradient:
    """(params [c, ...], inputs [c, b, ...], targets [c, b], weights [c, b], keys [c], worth [c, 1] or None) ->
    gradients, times `worth` where that is given, and losses [c]. `ready`: the inputs are normalised already."""
    from torch.func import vmap

    one = of_one(task, dropout, ready)
    batched = {True: vmap(one, randomness="error"), False: vmap(one, in_dims=(0, 0, 0, 0, 0, None), randomness="error")}

    def run(*given: Any) -> tuple[dict[str, Any], Any]:
        found: tuple[dict[str, Any], Any] = batched[given[5] is not None](*given)
        return found

    return run


def of_one(task: Task, dropout: bool = True, ready: bool = False) -> Gradient:
    """`gradients` of one model: no tensor has the axis [c]."""
    from torch.func import grad

    def loss(
        params: dict[str, Tensor], inputs: Tensor, targets: Tensor, weights: Tensor, key: Tensor, worth: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        answers = (task.answers if ready else task.outputs)(params, inputs, key if dropout else None)
        losses = task.criterion(answers, targets)
        value = (losses * weights).sum()
        return (value if worth is None else (losses * (weights * worth)).sum()), value

    def one(*given: Any) -> Any:
        return grad(loss, has_aux=True)(*given)

    return one
