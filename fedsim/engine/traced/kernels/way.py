"""What another way to compute an operator's value is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class Way(NamedTuple):
    """A way to compute an operator's value."""

    run: Callable[..., Any]  # (*args) -> the value, in new memory
    into: Callable[[Any, tuple[Any, ...]], list[Call]] | None = None  # (buffers, args) -> calls that write it there
    positive: Callable[[Any, tuple[Any, ...]], list[Call]] | None = None  # the same for its positive part


def floats(*given: Tensor) -> bool:
    """Whether these are all tensors of the kind that fedsim's own operators take."""
    import torch

    return all(one.dtype == torch.float32 and one.device.type == "cpu" for one in given)
