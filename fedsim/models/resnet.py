"""ResNet-18 whose layers know one example at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedsim.models.shapes import Shape, images

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ResNet18:
    """ResNet-18 with group normalisation, 11,173,962 parameters on CIFAR-10. He et al., CVPR 2016 (1512.03385)

    Batch normalisation fails where clients hold different labels, group normalisation does not: Hsieh et al., ICML 2020
    (1910.00189), Wu and He, ECCV 2018 (1803.08494). Four stages of two residual blocks with `width`, 2, 4 and 8 times
    `width` maps, the last three at half the side of the one before. For small pictures the stem is a 3x3 convolution
    without stride or pooling. `groups` in each normalisation. Convolutions have no bias and begin Kaiming-normal (fan
    out, ReLU; He et al., ICCV 2015, 1502.01852, as in the paper); the last linear layer keeps PyTorch's default. Images
    of side 8 or more.
    """

    groups: int = 2
    width: int = 64

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width must be at least 1, got {self.width}")
        if self.groups < 1 or self.width % self.groups:
            raise ValueError(f"groups must divide the width {self.width}, got {self.groups}")

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """The module for one example's shape (channels, height, width)."""
        from torch import nn

        from fedsim.models.blocks import Residual

        channels, _, _ = images("resnet18", shape, 8)
        width = self.width
        layers: list[nn.Module] = [
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.GroupNorm(self.groups, width),
            nn.ReLU(),
        ]
        inputs = width
        for stage in range(4):
            outputs = width * 2**stage
            layers += [
                Residual(inputs, outputs, self.groups, stride=1 if stage == 0 else 2),
                Residual(outputs, outputs, self.groups),
            ]
            inputs = outputs
        module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        return module
