"""Products of matrices: by fedsim's own operators, by oneDNN where those are not there, or by MKL transposed."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim import native
from fedsim.engine.traced.kernels.way import Call, Way, floats

if TYPE_CHECKING:
    from torch import Tensor

HEAVY = 1_500_000  # multiplications in a product of matrices from which oneDNN is worth its 10 microseconds a call
SLIM = 64  # rows, columns or terms up to which fedsim's own products are as fast as any,
SHORT = 128  # but sums of fewer terms than this, of matrices that can only be read along them, are not
NARROW = 16  # columns below which a product is faster computed as its transpose


def matrices(a: Tensor, b: Tensor) -> Way | None:
    """Of bmm: a [c, m, k] @ b [c, k, n]."""
    import torch

    if (own := owned(a, b)) is not None:
        return own
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
    own = owned(a, b)
    return own if own is not None else Way(multiplied) if heavy(a, b) else None


def affine(bias: Tensor, a: Tensor, b: Tensor) -> Way | None:
    """Of addmm."""
    if bias.ndim != 1:
        return None
    if (own := owned(a, b)) is not None and floats(bias):

        def into(buffer: Tensor, args: tuple[Any, ...]) -> list[Call]:
            assert own.into is not None
            return [*own.into(buffer, args[1:]), (buffer.add_, (args[0],), {})]

        return Way(lambda bias, a, b: own.run(a, b).add_(bias), into)
    return Way(lambda bias, a, b: multiplied(a, b, bias)) if heavy(a, b) else None


def taken_apart(a: Tensor, b: Tensor) -> bool:
    """Whether a product is best taken off something as it is computed: by fedsim's own operators, of one model, or by
    oneDNN."""
    return product_of(a, b) is not None or a.ndim == 2 or len(a) == 1 or heavy(a, b)


def subtract(target: Tensor, a: Tensor, b: Tensor) -> list[Call]:
    """The calls that do target -= a @ b, for each of a stack of models, or for one: what a step takes off weights."""
    import torch

    multiply = product_of(a, b)
    if multiply is not None and floats(target) and (dots(a, b) or sweeps(a, b, target)):
        return [(multiply, (target, a, b, True), {})]
    if target.ndim == 3:
        return [call for lane in zip(target, a, b, strict=True) for call in subtract(*lane)]
    if target.stride(-1) != 1 and target.stride(-2) == 1:
        return subtract(target.mT, b.mT, a.mT)
    if heavy(a, b):

        def one(target: Tensor, a: Tensor, b: Tensor) -> None:
            target.sub_(multiplied(a, b))

        return [(one, (target, a, b), {})]
    return [(torch.ops.aten.addmm.out, (target, a, b), {"alpha": -1, "out": target})]


# --- by fedsim's own operators ----------------------------------------------------------------------------------------


def product_of(a: Tensor, b: Tensor) -> Any:
    """The operator (out, a, b, off) that computes a @ b, or takes it off; None: there is none for these."""
    operators = native.operators() if floats(a, b) else None
    m, k, n = *a.shape[-2:], b.shape[-1]
    fast = min(m, k, n) <= SLIM and ((dots(a, b) and k >= SHORT) or sweeps(a, b))
    return operators.multiply.default if operators is not None and fast else None


def dots(a: Tensor, b: Tensor) -> bool:
    """Whether both can be read along their sums."""
    return a.stride(-1) == 1 and b.stride(-2) == 1


def sweeps(a: Tensor, b: Tensor, out: Tensor | None = None) -> bool:
    """Whether b can be read along its columns, and out [.., m, n] as well, or a and out along their rows."""
    rows, columns = a.stride(-2) == 1, b.stride(-1) == 1
    return columns if out is None else (columns and out.stride(-1) == 1) or (rows and out.stride(-2) == 1)


def owned(a: Tensor, b: Tensor) -> Way | None:
    """Of bmm and mm, by fedsim's own operator."""
    import torch

    multiply = product_of(a, b)
    if multiply is None:
        return None

    def run(a: Tensor, b: Tensor) -> Tensor:
        out = torch.empty((*a.shape[:-1], b.shape[-1]))
        multiply(out, a, b, False)
        return out

    return Way(run, lambda buffer, args: [(multiply, (buffer, *args, False), {})])


# --- by oneDNN --------------------------------------------------------------------------------------------------------


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
    size = a.shape[-2] * a.shape[-1] * b.shape[-1]
    return floats(a) and size >= HEAVY and onednn()


def multiplied(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a [m, k] @ b [k, n] + bias [n], by oneDNN."""
    import torch

    found: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.t(), bias, "none", [], "")
    return found
