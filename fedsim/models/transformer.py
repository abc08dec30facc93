"""A small transformer for pictures and for sequences of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedsim.models.shapes import Shape, show

if TYPE_CHECKING:
    from torch import nn

STD = 0.02  # of the first vectors of tokens and places


@dataclass(frozen=True)
class Transformer:
    """A small transformer for pictures, in squares, or for tokens. Vaswani et al., NeurIPS 2017 (1706.03762)

    Examples [channels, height, width] are pictures, cut into squares of `patch` x `patch` pixels as by Dosovitskiy et
    al., ICLR 2021 (2010.11929); the mean of all places decides. Examples [length] are tokens from 0 to `vocabulary` - 1
    (left out: one for each class, as when the next character is to be foretold); the last place decides.

    `depth` layers of `heads` heads with normalisation first and learned places; 4 `dim` units between the two linear
    maps of a layer. The attention is written out, since the fused one has no batching rule. Vectors of tokens and
    places begin normal with standard deviation 0.02 (Devlin et al., NAACL 2019, 1810.04805), linear layers as PyTorch's
    do.
    """

    dim: int = 64
    depth: int = 2
    heads: int = 4
    patch: int = 4
    vocabulary: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("dim", "depth", "heads", "patch", "vocabulary"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.dim % self.heads:
            raise ValueError(f"heads must divide the dim {self.dim}, got {self.heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """The module for one example's shape (length,) or (channels, height, width)."""
        from torch import nn

        from fedsim.models.blocks import Last, Layer, Mean, Patches, Places, Tokens

        first: nn.Module
        if len(shape) == 3:
            channels, height, width = shape
            if height % self.patch or width % self.patch:
                raise ValueError(f"transformer: patch must divide the sides of {show(shape)}, got {self.patch}")
            first, length = Patches(channels, self.patch, self.dim), height * width // self.patch**2
        elif len(shape) == 1:
            first, length = Tokens(self.vocabulary or classes, self.dim, STD), shape[0]
        else:
            raise ValueError(
                f"transformer needs pictures [channels, height, width] or tokens [length], got {show(shape)}; use mlp"
            )
        return nn.Sequential(
            *(first, Places(length, self.dim, STD)),
            *([nn.Dropout(self.dropout)] if self.dropout else []),
            *(Layer(self.dim, self.heads, 4 * self.dim, self.dropout) for _ in range(self.depth)),
            *(nn.LayerNorm(self.dim), Mean() if len(shape) == 3 else Last()),
            nn.Linear(self.dim, classes),
        )
