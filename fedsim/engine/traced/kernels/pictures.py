"""Convolutions and pooling, with channels last in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fedsim import native
from fedsim.engine.traced.kernels.way import Call, Way, floats

if TYPE_CHECKING:
    from torch import Tensor

FEW = 16  # channels below which fedsim's own convolutions are faster than oneDNN's


def last(value: Any) -> Any:
    """Pictures with their channels last in memory; whatever else as it is. Of one channel all layouts are alike, and
    torch takes them for channels first unless the strides say otherwise."""
    import torch

    if not isinstance(value, torch.Tensor) or value.ndim != 4:
        return value
    value = value.contiguous(memory_format=torch.channels_last)
    _, channels, height, width = value.shape
    return value if channels > 1 else value.as_strided(value.shape, (height * width, 1, width, 1))


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Way | None:
    """Of pictures by one model: with channels last, which pooling is faster with."""
    import torch

    if x.ndim != 4 or rest[-1] != 1:
        return None
    if (own := convolved(x, weight, bias, *rest)) is not None:
        return own
    return Way(lambda *args: last(torch.ops.aten.convolution.default(*map(last, args))))


def convolved_back(g: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> Way | None:
    """Of a convolution's gradients: the picture's and the weights' apart where there are few channels, since they are
    fast in different layouts; the bias's by a sum, which oneDNN is slow at."""
    import torch

    if x.ndim != 4 or rest[-2] != 1:
        return None
    if (own := owned_back(g, x, weight, *rest)) is not None:
        return own
    back = torch.ops.aten.convolution_backward.default

    def run(g: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor | None, ...]:
        *settings, (picture, weights, bias) = rest
        g = last(g)
        apart = picture and weights and x.shape[1] < FEW
        of_x, of_weight, _ = back(g, last(x), last(weight), *settings, [picture and not apart, weights, False])
        if apart:
            of_x = back(g.contiguous(), x.contiguous(), weight.contiguous(), *settings, [True, False, False])[0]
        return last(of_x), of_weight, g.sum((0, 2, 3)) if bias else None

    return Way(run)


def rectified(convolution: Way, args: tuple[Any, ...]) -> Way:
    """Of a convolution's positive part: the convolution's own memory is left as it is, and not copied first."""
    import torch

    def into(buffer: Tensor, _: tuple[Any, ...]) -> list[Call]:
        if convolution.positive is not None:
            return convolution.positive(buffer, args)
        return [(lambda: torch.ops.aten.relu.out(convolution.run(*args), out=buffer), (), {})]

    return Way(torch.relu, into)


def pooled(x: Tensor, window: Sequence[int], step: Sequence[int] = (), *rest: Any) -> Way | None:
    """Of the maximum over windows, and where it is."""
    import torch

    operators = native.operators() if x.ndim == 4 and floats(x) else None
    if operators is None or rest not in ((), ([0, 0],), ([0, 0], [1, 1]), ([0, 0], [1, 1], False)):
        return None
    sizes = [*pair(window), *pair(step or window)]
    if not lies_last(x) or any(have < wanted for have, wanted in zip(x.shape[2:], sizes[:2], strict=True)):
        return None
    n, c, *size = x.shape
    size = [(have - wide) // by + 1 for have, wide, by in zip(size, sizes[:2], sizes[2:], strict=True)]

    def run(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        out = last(torch.empty((n, c, *size)))
        at = last(torch.empty((n, c, *size), dtype=torch.int64))
        operators.pool.default(out, at, x, *sizes)
        return out, at

    return Way(run, lambda buffers, args: [(operators.pool.default, (*buffers, args[0], *sizes), {})])


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


# --- by fedsim's own operators ----------------------------------------------------------------------------------------


def pair(sizes: Sequence[int]) -> list[int]:
    """Of height and width, which may be given as one."""
    return list(sizes) * (2 // len(sizes))


def lies_last(x: Tensor) -> bool:
    """Whether pictures fill their memory, channels last."""
    import torch

    return x.is_contiguous(memory_format=torch.channels_last)


def simple(x: Tensor, weight: Tensor, steps: Any, borders: Any, apart: Any, transposed: bool) -> bool:
    """Whether a convolution is one that fedsim's own operators compute, and compute faster."""
    sizes = [have + 2 * border for have, border in zip(x.shape[2:], pair(borders), strict=True)]
    return (
        floats(x, weight) and weight.is_contiguous() and not transposed and x.shape[1] < FEW and x.numel() > 0
        and set(steps) == {1} and set(apart) == {1} and min(borders) >= 0
        and all(have >= wide for have, wide in zip(sizes, weight.shape[2:], strict=True))
    )  # fmt: skip


def convolved(
    x: Tensor, weight: Tensor, bias: Tensor | None, steps: Any, borders: Any, apart: Any, transposed: bool, *_: Any
) -> Way | None:
    """Of a convolution."""
    import torch

    operators = native.operators()
    if operators is None or not simple(x, weight, steps, borders, apart, transposed):
        return None
    down, right = pair(borders)
    none = torch.empty(0)
    height, width = (
        have + 2 * border - wide + 1
        for have, border, wide in zip(x.shape[2:], (down, right), weight.shape[2:], strict=True)
    )

    def write(out: Tensor, positive: bool, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        operators.convolve.default(out, last(x), weight, none if bias is None else bias, down, right, positive)

    def run(x: Tensor, weight: Tensor, bias: Tensor | None, *_: Any) -> Tensor:
        out: Tensor = last(torch.empty((len(x), len(weight), height, width)))
        write(out, False, x, weight, bias)
        return out

    return Way(
        run,
        lambda buffer, args: [(write, (buffer, False, *args[:3]), {})],
        lambda buffer, args: [(write, (buffer, True, *args[:3]), {})],
    )


def owned_back(
    g: Tensor, x: Tensor, weight: Tensor, of_bias: Any, steps: Any, borders: Any, apart: Any, transposed: bool,
    beyond: Any, groups: int, wanted: Sequence[bool],
) -> Way | None:  # fmt: skip
    """Of a convolution's gradients."""
    import torch

    operators = native.operators()
    if operators is None or not floats(g) or not simple(x, weight, steps, borders, apart, transposed):
        return None
    down, right = pair(borders)
    picture, weights, bias = wanted
    none = torch.empty(0)

    def calls(buffers: Sequence[Tensor | None], g: Tensor, x: Tensor, weight: Tensor) -> None:
        of_x, of_weight, of_bias = buffers
        g = last(g)
        if of_x is not None:
            operators.convolve_input.default(of_x, g, weight, down, right)
        if of_weight is not None:
            into = none if of_bias is None else of_bias
            operators.convolve_weight.default(of_weight, into, g, last(x), down, right)
        elif of_bias is not None:
            torch.sum(g, (0, 2, 3), out=of_bias)

    def run(g: Tensor, x: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        buffers = (
            torch.empty_like(last(x)) if picture else None, torch.empty_like(weight) if weights else None,
            torch.empty(g.shape[1]) if bias else None,
        )  # fmt: skip
        calls(buffers, g, x, weight)
        return buffers

    return Way(run, lambda buffers, args: [(lambda *given: calls(buffers, *given), args[:3], {})])
