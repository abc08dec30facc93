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


class Hadamard(nn.Module):
    """A linear or convolutional layer whose weight is the Hadamard product of two of rank R: `fedsim.models.fedpara`.

    Its parameters are w1_x, w1_y, w2_x, w2_y, of a convolution w1_t and w2_t too, and the layer's own bias.
    """

    def __init__(self, layer: nn.Module, rank: int, personal: bool = False) -> None:
        """In place of a layer, whose weight gives the shape and the size of the first entries."""
        super().__init__()
        weight: Tensor = layer.weight.detach()  # type: ignore[operator]
        self.bias: nn.Parameter | None = layer.bias  # type: ignore[assignment]
        self.shape, self.rank, self.personal = tuple(weight.shape), rank, personal
        self.call = {name: getattr(layer, name) for name in ("stride", "padding", "dilation") if weight.ndim == 4}
        m, n, *window = self.shape
        size = _entry(weight, personal)  # of the entries of W1 and of W2
        # their variance is R (R² of a convolution) times that of an entry of X, Y (and T) each, all alike
        std = (size / rank) ** 0.25 if not window else (size / rank**2) ** (1 / 6)
        for factor in ("w1", "w2"):
            shapes = {"x": (m, rank), "y": (n, rank)} | ({"t": (rank, rank, *window)} if window else {})
            for name, shape in shapes.items():
                self.register_parameter(f"{factor}_{name}", nn.Parameter(torch.randn(shape).to(weight) * std))

    @property
    def weight(self) -> Tensor:
        """W, in the layer's own shape."""
        first, second = self._factor("w1"), self._factor("w2")
        return first * (second + 1) if self.personal else first * second

    def _factor(self, which: str) -> Tensor:
        x, y = getattr(self, f"{which}_x"), getattr(self, f"{which}_y")
        if len(self.shape) == 2:
            return torch.mm(x, y.T)
        t = getattr(self, f"{which}_t")
        return torch.einsum("ap,pqkl,bq->abkl", x, t, y)

    def forward(self, inputs: Tensor) -> Tensor:
        if len(self.shape) == 2:
            return nn.functional.linear(inputs, self.weight, self.bias)
        return nn.functional.conv2d(inputs, self.weight, self.bias, **self.call)

    def extra_repr(self) -> str:
        return f"{list(self.shape)}, rank={self.rank}, personal={self.personal}"


def _entry(weight: Tensor, personal: bool) -> float:
    """The variance of the entries of W1 and of W2, both alike, that gives their product those of a weight."""
    variance = float(weight.double().square().mean())
    if not variance > 0:  # a layer that begins at 0: as PyTorch would have it
        variance = 1 / (3 * math.prod(weight.shape[1:]))
    return (math.sqrt(1 + 4 * variance) - 1) / 2 if personal else math.sqrt(variance)
