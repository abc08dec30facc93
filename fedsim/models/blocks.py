"""The torch modules that the larger models are made of."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """Two 3x3 convolutions, each normalised, beside a shortcut: inputs [b, C, h, w] -> [b, outputs, h/s, w/s]."""

    def __init__(self, inputs: int, outputs: int, groups: int, stride: int = 1) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.GroupNorm(groups, outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.GroupNorm(groups, outputs),
        )
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.GroupNorm(groups, outputs)
            )

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.relu(self.path(inputs) + self.shortcut(inputs))


class Attention(nn.Module):
    """Every place looks at all places, in plain arithmetic, which has batching rules: [b, L, dim] -> [b, L, dim]."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.projections = nn.Linear(dim, 3 * dim)  # queries, keys, values
        self.out = nn.Linear(dim, dim)

    def forward(self, inputs: Tensor) -> Tensor:
        b, length, dim = inputs.shape
        split = self.projections(inputs).reshape(b, length, 3, self.heads, dim // self.heads)
        queries, keys, values = split.permute(2, 0, 3, 1, 4).unbind(0)  # [b, heads, L, dim / heads]
        scores = queries @ keys.transpose(-2, -1) / math.sqrt(dim // self.heads)
        return self.out((scores.softmax(-1) @ values).transpose(1, 2).reshape(b, length, dim))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """Attention and two linear layers, each normalised before and added to what came in: [b, L, dim] -> [b, L, dim]."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()

        def dropped() -> list[nn.Module]:
            return [nn.Dropout(dropout)] if dropout else []

        self.attention = nn.Sequential(nn.LayerNorm(dim), Attention(dim, heads), *dropped())
        self.linear = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), *dropped(), nn.Linear(hidden, dim), *dropped()
        )

    def forward(self, inputs: Tensor) -> Tensor:
        inputs = inputs + self.attention(inputs)
        return inputs + self.linear(inputs)  # type: ignore[no-any-return]


class Places(nn.Module):
    """Adds to every place [b, L, dim] a vector of its own, learned."""

    def __init__(self, length: int, dim: int, std: float) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.empty(length, dim))
        nn.init.normal_(self.places, std=std)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.places


class Tokens(nn.Module):
    """A vector for every token: whole numbers [b, L] below `vocabulary` -> [b, L, dim]."""

    def __init__(self, vocabulary: int, dim: int, std: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim)
        nn.init.normal_(self.embedding.weight, std=std)

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.is_floating_point():
            raise ValueError(
                "transformer reads examples of one dimension as tokens, and these are no whole numbers but"
                f" {str(inputs.dtype).removeprefix('torch.')}; use mlp"
            )
        return self.embedding(inputs)  # type: ignore[no-any-return]


class Patches(nn.Module):
    """Pictures [b, C, h, w] as a sequence of squares, row by row, each a linear map of its pixels: [b, L, dim]."""

    def __init__(self, channels: int, patch: int, dim: int) -> None:
        super().__init__()
        self.patch = patch
        self.linear = nn.Linear(channels * patch * patch, dim)

    def forward(self, inputs: Tensor) -> Tensor:
        b, channels, height, width = inputs.shape
        p = self.patch
        cut = inputs.reshape(b, channels, height // p, p, width // p, p)
        return self.linear(cut.permute(0, 2, 4, 1, 3, 5).reshape(b, -1, channels * p * p))  # type: ignore[no-any-return]


class Mean(nn.Module):
    """Of all places: [b, L, dim] -> [b, dim]."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.mean(1)


class Last(nn.Module):
    """The last place: [b, L, dim] -> [b, dim]."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs[:, -1]
