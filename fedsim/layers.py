"""The torch modules of our own that models are made of."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from fedsim import keyed


class _Draws:
    """The key of one forward pass, and how many dropout layers have drawn from it."""

    def __init__(self, key: Tensor) -> None:
        self.key = key
        self.used = 0

    def uniform(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        layer = keyed.fold(self.key, self.used)
        self.used += 1
        return keyed.uniform(layer, torch.arange(math.prod(shape), device=device)).reshape(shape)


_DRAWS: ContextVar[_Draws | None] = ContextVar("fedsim_draws", default=None)


@contextlib.contextmanager
def drawing(key: Tensor | None) -> Iterator[None]:
    """Inside, keyed layers draw from the key (int64 scalar), each application in turn from a key of its own."""
    token = _DRAWS.set(None if key is None else _Draws(key))
    try:
        yield
    finally:
        _DRAWS.reset(token)


class KeyedDropout(nn.Module):
    """Dropout whose mask is a function of the key and of the place in the batch.

    The i-th application in a forward pass drops position j where keyed.uniform(fold(key, i), j) < p, j counting
    through the batch row by row; so an example's mask does not change when the batch is padded. With `channels`,
    inputs [b, channels, ...] lose whole channels. In evaluation mode it is the identity.
    """

    def __init__(self, p: float, channels: bool = False) -> None:
        super().__init__()
        self.p = p
        self.channels = channels

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training:
            return inputs
        draws = _DRAWS.get()
        if draws is None:
            raise RuntimeError("a keyed dropout layer trains through models.functional(module) with a key")
        shape = tuple(inputs.shape)
        if self.channels:
            if len(shape) < 3:
                raise ValueError(f"dropout of channels needs inputs [b, channels, ...], got {list(shape)}")
            shape = (*shape[:2], *[1] * (len(shape) - 2))
        keep = draws.uniform(shape, inputs.device) >= self.p
        return torch.where(keep, inputs / (1 - self.p) if self.p < 1 else inputs, 0.0)

    def extra_repr(self) -> str:
        return f"p={self.p}, channels={self.channels}"


class Point(nn.Module):
    """One number x; its output on an example (a, b) is the loss a/2 (x - b)^2."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor(float(start)))

    def forward(self, inputs: Tensor) -> Tensor:
        a, b = inputs[:, 0], inputs[:, 1]
        return 0.5 * a * (self.x - b) ** 2
