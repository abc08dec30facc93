"""The gradient of a chunk's losses, as functions of tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.task import Task

Gradient = Callable[..., tuple[dict[str, Any], Any]]


def of_chunk(task: Task, ready: bool) -> Callable[..., Any]:
    """(y, inputs, targets, weights, keys, rates?) -> the gradients and losses of a chunk, as a room computes them."""
    gradient = gradients(task, ready=ready)

    def step(y: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor, keys: Tensor, *rates: Tensor) -> list[Tensor]:
        slopes, value = gradient(task.layout.views(y), inputs, targets, weights, keys, rates[0] if rates else None)
        return [slopes[name] for name in task.layout.names] + [value]

    return step


def alone(task: Task, ready: bool) -> Callable[..., Any]:
    """`of_chunk` for a chunk of one model, without batching it."""
    gradient = of_one(task, ready=ready)

    def step(y: Tensor, *given: Tensor) -> list[Tensor]:
        inputs, targets, weights, keys, *rates = (one[0] for one in given)
        worth = rates[0] if rates else None
        slopes, value = gradient(task.layout.views(y[0]), inputs, targets, weights, keys, worth)
        return [slopes[name][None] for name in task.layout.names] + [value[None]]

    return step


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
