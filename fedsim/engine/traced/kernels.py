"""Other ways to compute what a traced operator computes, where they are faster on a CPU: the same to rounding.

Which way is taken follows from the shapes and from the processor, never from a clock, so that a machine gives the same
bits every time. Measured on one core of an AMD processor with AVX-512, torch 2.13 (benchmarks/engine/NOTES.md).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import Node

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]

HEAVY = 1_500_000  # multiplications in a product of matrices from which oneDNN is worth its 10 microseconds a call
NARROW = 16  # columns below which a product is faster computed as its transpose
SHORT = 32  # classes up to which log-softmax is faster across examples than along classes,
MANY = 8  # examples and more


class Way(NamedTuple):
    """A way to compute an operator's value."""

    run: Callable[..., Any]  # (*args) -> the value, in new memory
    into: Callable[[Any, tuple[Any, ...]], list[Call]] | None = None  # (buffers, args) -> calls that write it there


def way(node: Node, args: tuple[Any, ...]) -> Way | None:
    """The faster way to compute an operator of these tensors; None: its own."""
    import torch

    made = WAYS.get(str(node.target))
    if made is None or not isinstance(args[0], torch.Tensor) or args[0].device.type != "cpu":
        return None
    return made(*args)


# --- products of matrices ---------------------------------------------------------------------------------------------


@functools.cache
def onednn() -> bool:
    """Whether oneDNN multiplies large matrices faster than MKL, which torch uses: MKL has no AVX-512 for processors of
    AMD's, and runs at half their speed."""
    import torch

    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    cpu = Path("/proc/cpuinfo")
    return cpu.is_file() and "AuthenticAMD" in cpu.read_text() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def heavy(a: Tensor, b: Tensor) -> bool:
    """Whether a product a [..., m, k] @ b [..., k, n] is one for oneDNN."""
    import torch

    size = a.shape[-2] * a.shape[-1] * b.shape[-1]
    return a.device.type == "cpu" and a.dtype == torch.float32 and size >= HEAVY and onednn()


def multiplied(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a [m, k] @ b [k, n] + bias [n], by oneDNN."""
    import torch

    found: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.t(), bias, "none", [], "")
    return found


def matrices(a: Tensor, b: Tensor) -> Way | None:
    """Of bmm: a [c, m, k] @ b [c, k, n]."""
    import torch

    if heavy(a, b):

        def each(buffer: Tensor, args: tuple[Any, ...]) -> list[Call]:
            def one(out: Tensor, left: Tensor, right: Tensor) -> None:
                out.copy_(multiplied(left, right))

            return [(one, (*lane,), {}) for lane in zip(buffer, *args[:2], strict=True)]

        return Way(lambda a, b: torch.stack([multiplied(*lane) for lane in zip(a, b, strict=True)]), each)
    _, m, k, n = *a.shape, b.shape[-1]
    if n < NARROW and m > n and m * k * n >= HEAVY // 20 and b.stride(1) == 1:
        return Way(
            lambda a, b: torch.bmm(b.mT, a.mT).mT,
            lambda buffer, args: [(torch.ops.aten.bmm.out, (args[1].mT, args[0].mT), {"out": buffer.mT})],
        )
    return None


def matrix(a: Tensor, b: Tensor) -> Way | None:
    """Of mm."""
    return Way(multiplied) if heavy(a, b) else None


def affine(bias: Tensor, a: Tensor, b: Tensor) -> Way | None:
    """Of addmm."""
    return Way(lambda bias, a, b: multiplied(a, b, bias)) if bias.ndim == 1 and heavy(a, b) else None


def taken_apart(a: Tensor, b: Tensor) -> bool:
    """Whether a product is best taken off something model by model: of one model, or by oneDNN."""
    return a.ndim == 2 or len(a) == 1 or heavy(a, b)


def subtract(target: Tensor, a: Tensor, b: Tensor) -> list[Call]:
    """The calls that do target -= a @ b, for each of a stack of models, or for one: what a step takes off weights."""
    import torch

    if target.ndim == 3:
        return [call for lane in zip(target, a, b, strict=True) for call in subtract(*lane)]
    if target.stride(-1) != 1 and target.stride(-2) == 1:
        return subtract(target.mT, b.mT, a.mT)
    if heavy(a, b):

        def one(target: Tensor, a: Tensor, b: Tensor) -> None:
            target.sub_(multiplied(a, b))

        return [(one, (target, a, b), {})]
    return [(torch.ops.aten.addmm.out, (target, a, b), {"alpha": -1, "out": target})]


# --- convolutions and pooling -----------------------------------------------------------------------------------------


def last(value: Any) -> Any:
    """Pictures with their channels last in memory; whatever else as it is. Of one channel all layouts are alike, and
    torch takes them for channels first unless the strides say otherwise."""
    import torch

    if not isinstance(value, torch.Tensor) or value.ndim != 4:
        return value
    value = value.contiguous(memory_format=torch.channels_last)
    _, channels, height, width = value.shape
    return value if channels > 1 else value.as_strided(value.shape, (height * width, 1, width, 1))


def convolution(x: Tensor, weight: Tensor, *rest: Any) -> Way | None:
    """Of pictures by one model: with channels last, which pooling is faster with."""
    import torch

    if x.ndim != 4 or rest[-1] != 1:
        return None
    return Way(lambda *args: last(torch.ops.aten.convolution.default(*map(last, args))))


def convolved_back(g: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> Way | None:
    """Of a convolution's gradients: the picture's and the weights' apart where there are few channels, since they are
    fast in different layouts; the bias's by a sum, which oneDNN is slow at."""
    import torch

    if x.ndim != 4 or rest[-2] != 1:
        return None
    back = torch.ops.aten.convolution_backward.default

    def run(g: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor | None, ...]:
        *settings, (picture, weights, bias) = rest
        g = last(g)
        apart = picture and weights and x.shape[1] < NARROW
        of_x, of_weight, _ = back(g, last(x), last(weight), *settings, [picture and not apart, weights, False])
        if apart:
            of_x = back(g.contiguous(), x.contiguous(), weight.contiguous(), *settings, [True, False, False])[0]
        return last(of_x), of_weight, g.sum((0, 2, 3)) if bias else None

    return Way(run)


def rectified(convolve: Callable[..., Any], args: tuple[Any, ...]) -> Way:
    """Of a convolution's positive part: the convolution's own memory is left as it is, and not copied first."""
    import torch

    def into(buffer: Tensor, _: tuple[Any, ...]) -> list[Call]:
        return [(lambda: torch.ops.aten.relu.out(convolve(*args), out=buffer), (), {})]

    return Way(torch.relu, into)


def pooled_back(g: Tensor, x: Tensor, *rest: Any) -> Way | None:
    """Of the gradients of a maximum over windows, where the next layer gave them another layout."""
    import torch

    if x.ndim != 4 or g.is_contiguous(memory_format=torch.channels_last):
        return None
    aten = torch.ops.aten.max_pool2d_with_indices_backward
    return Way(
        lambda g, *rest: aten.default(last(g), *rest),
        lambda buffer, args: [(lambda g, *rest: aten.grad_input(last(g), *rest, grad_input=buffer), args, {})],
    )


# --- log-softmax ------------------------------------------------------------------------------------------------------


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


WAYS: dict[str, Callable[..., Way | None]] = {
    "aten.bmm.default": matrices,
    "aten.mm.default": matrix,
    "aten.addmm.default": affine,
    "aten.convolution.default": convolution,
    "aten.convolution_backward.default": convolved_back,
    "aten.max_pool2d_with_indices_backward.default": pooled_back,
    "aten._log_softmax.default": log_softmax,
    "aten._log_softmax_backward_data.default": log_softmax_back,
}
