"""Other ways to compute what a traced operator computes, where they are faster on a CPU: the same to rounding.

Which way is taken follows from the shapes, the processor and whether fedsim's own operators are there, never from a
clock, so that a machine gives the same bits every time. Measured on one core of an AMD processor with AVX-512, torch
2.13 (benchmarks/engine/NOTES.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fedsim import native
from fedsim.engine.traced.kernels import pictures, products, softmax
from fedsim.engine.traced.kernels.pictures import rectified
from fedsim.engine.traced.kernels.products import subtract, taken_apart
from fedsim.engine.traced.kernels.way import Call, Way

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import Node

__all__ = ["Call", "Way", "rectified", "subtract", "take", "taken_apart", "way"]

LONG = 256  # bytes of a row from which it is worth asking for the next while one is copied

WAYS: dict[str, Callable[..., Way | None]] = {
    "aten.bmm.default": products.matrices,
    "aten.mm.default": products.matrix,
    "aten.addmm.default": products.affine,
    "aten.convolution.default": pictures.convolution,
    "aten.convolution_backward.default": pictures.convolved_back,
    "aten.max_pool2d_with_indices.default": pictures.pooled,
    "aten.max_pool2d_with_indices_backward.default": pictures.pooled_back,
    "aten._log_softmax.default": softmax.log_softmax,
    "aten._log_softmax_backward_data.default": softmax.log_softmax_back,
}


def way(node: Node, args: tuple[Any, ...]) -> Way | None:
    """The faster way to compute an operator of these tensors; None: its own."""
    import torch

    made = WAYS.get(str(node.target))
    if made is None or not isinstance(args[0], torch.Tensor) or args[0].device.type != "cpu":
        return None
    return made(*args)


def take(out: Tensor, pool: Tensor, places: Tensor) -> None:
    """out [k, ...] = pool[places [k]]."""
    import torch

    operators = native.operators() if pool.device.type == "cpu" else None
    if operators is not None and pool.is_contiguous() and pool[0].numel() * pool.itemsize >= LONG:
        operators.take.default(out, pool, places)
    else:
        torch.index_select(pool, 0, places, out=out)
