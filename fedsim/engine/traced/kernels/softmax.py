"""Log-softmax over few classes, across examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedsim.engine.traced.kernels.way import Call, Way

if TYPE_CHECKING:
    from torch import Tensor

SHORT = 32  # classes up to which log-softmax is faster across examples than along classes,
MANY = 8  # examples and more


def few(x: Tensor, dim: int) -> bool:
    """Whether classes are so few that torch, which takes them in one by one where they lie side by side, is faster with
    the examples side by side. However many models: their number is to change no bits."""
    return x.ndim in (2, 3) and dim % x.ndim == x.ndim - 1 and x.shape[-1] <= SHORT and x.shape[-2] >= MANY


def turned(x: Tensor) -> tuple[Tensor, list[Call]]:
    """A tensor [..., b, C] with its last two axes exchanged, [..., C, b] and contiguous, and the calls to make it."""
    import torch

    if x.mT.is_contiguous():
        return x.mT, []
    made = x.new_empty(x.mT.shape)
    return made, [(torch.ops.aten.copy_.default, (made, x.mT), {})]


def log_softmax(x: Tensor, dim: int, half: bool) -> Way | None:
    """Of few classes, many times."""
    import torch

    if not few(x, dim) or half:
        return None
    aten = torch.ops.aten._log_softmax

    def into(buffer: Tensor, args: tuple[Any, ...]) -> list[Call]:
        across, calls = turned(args[0])
        return [*calls, (aten.out, (across, x.ndim - 2, False), {"out": buffer.mT})]

    return Way(lambda x, *_: aten.default(x.mT.contiguous(), x.ndim - 2, False).mT, into)


def log_softmax_back(g: Tensor, value: Tensor, dim: int, dtype: Any) -> Way | None:
    """Of its gradient."""
    import torch

    if not few(g, dim) or dtype != g.dtype:
        return None
    aten = torch.ops.aten._log_softmax_backward_data

    def into(buffer: Tensor, args: tuple[Any, ...]) -> list[Call]:
        (slope, first), (across, second) = turned(args[0]), turned(args[1])
        return [*first, *second, (aten.out, (slope, across, g.ndim - 2, dtype), {"out": buffer.mT})]

    return Way(lambda g, v, *_: aten.default(g.mT.contiguous(), v.mT.contiguous(), g.ndim - 2, dtype).mT, into)
