"""Models without a picture in mind: logistic regression, fully connected networks, a single number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedsim.models.shapes import Shape, show

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Logistic:
    """Multinomial logistic regression on the flattened input; d·C + C parameters."""

    convex: ClassVar[bool] = True

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """The module for one example's shape."""
        from torch import nn

        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))


@dataclass(frozen=True)
class MLP:
    """Fully connected ReLU network on the flattened input. McMahan et al., AISTATS 2017 (1602.05629)

    `hidden` lists the widths between input and output; (200, 200) is the paper's 2NN.
    """

    hidden: tuple[int, ...] = (200,)

    def __post_init__(self) -> None:
        if not self.hidden or any(width < 1 for width in self.hidden):
            raise ValueError(
                f"hidden must list widths of at least 1, got {list(self.hidden)}; without any, use logistic"
            )

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """The module for one example's shape."""
        from torch import nn

        layers: list[nn.Module] = [nn.Flatten()]
        width = math.prod(shape)
        for hidden in self.hidden:
            layers += [nn.Linear(width, hidden), nn.ReLU()]
            width = hidden
        return nn.Sequential(*layers, nn.Linear(width, classes))


@dataclass(frozen=True)
class Scalar:
    """One number x with loss a/2 (x - b)^2 on an example (a, b): for the data `quadratic`

    Starts at `start`, whatever the seed. Its output is the loss [b].
    """

    convex: ClassVar[bool] = True
    start: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.start):
            raise ValueError(f"start must be finite, got {self.start}")

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """The module for examples (a, b)."""
        from fedsim.layers import Point

        if shape != (2,) or classes:
            raise ValueError(f"scalar is for the data quadratic only: examples [2] without classes, not {show(shape)}")
        return Point(self.start)
