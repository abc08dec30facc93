"""Convolutional networks of the papers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fedsim import resolve
from fedsim.models.shapes import Shape, images, show

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class LeNet5:
    """LeNet-5 with ReLU and max pooling, 61,706 parameters on 28x28 grey. LeCun et al., Proc. IEEE 1998

    Two 5x5 convolutions (6 and 16 maps), each followed by 2x2 pooling, then 120, 84 and C units. As in the original,
    whose images are 32x32, the first convolution takes images of side 32 and more without padding; smaller ones are
    padded by 2, which makes MNIST's 28 into 32. Square images of side 12 or more.
    """

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """The module for one example's shape (channels, side, side)."""
        from torch import nn

        if len(shape) != 3 or shape[1] != shape[2] or shape[1] < 12:
            raise ValueError(
                f"lenet5 needs square images [channels, side, side] of side 12 or more, got {show(shape)};"
                " use mlp or fedau-cnn"
            )
        channels, side, _ = shape
        padding = 2 if side < 32 else 0
        left = ((side + 2 * padding - 4) // 2 - 4) // 2
        return nn.Sequential(
            *(nn.Conv2d(channels, 6, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Flatten(),
            *(nn.Linear(16 * left * left, 120), nn.ReLU()),
            *(nn.Linear(120, 84), nn.ReLU()),
            nn.Linear(84, classes),
        )


@dataclass(frozen=True)
class McMahanCNN:
    """The CNN of federated averaging, 1,663,370 parameters on 28x28 grey. McMahan et al., AISTATS 2017 (1602.05629)

    Two 5x5 convolutions of 32 and 64 maps, each followed by ReLU and 2x2 max pooling, then 512 units with ReLU and the
    linear output. Padding 2 keeps the sides, as the paper's count of parameters wants it. Images of side 4 or more.
    """

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """The module for one example's shape (channels, height, width)."""
        from torch import nn

        channels, height, width = images("mcmahan-cnn", shape, 4)
        return nn.Sequential(
            *(nn.Conv2d(channels, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Flatten(),
            *(nn.Linear(64 * (height // 4) * (width // 4), 512), nn.ReLU()),
            nn.Linear(512, classes),
        )


@dataclass(frozen=True)
class PFLCNN:
    """The CNN of pfl-research's CIFAR-10 benchmark, 1,626,442 parameters. Granqvist et al. 2024 (2404.06430)

    As in the authors' code (github.com/apple/pfl-research, benchmarks/model/pytorch/cnn.py): two 3x3 convolutions of 32
    and 64 maps without padding, each followed by ReLU, 2x2 max pooling, dropout 0.25, 128 units with ReLU, dropout 0.5
    and the linear output. Weights Glorot-uniform, biases PyTorch's default. Images of side 6 or more.
    """

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """The module for one example's shape (channels, height, width)."""
        from torch import nn

        channels, height, width = images("pfl-cnn", shape, 6)
        module = nn.Sequential(
            *(nn.Conv2d(channels, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU()),
            *(nn.MaxPool2d(2), nn.Dropout(0.25), nn.Flatten()),
            *(nn.Linear(64 * ((height - 4) // 2) * ((width - 4) // 2), 128), nn.ReLU(), nn.Dropout(0.5)),
            nn.Linear(128, classes),
        )
        for layer in module:
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(layer.weight)
        return module


_FEDAU: dict[str, tuple[tuple[int, ...], float]] = {  # hidden linear layers, dropout before each linear layer
    "fashion-mnist": ((128,), 0.0),
    "svhn": ((128,), 0.0),
    "cifar-10": ((256, 64), 0.0),
    "cifar-100": ((512, 256), 0.2),
    "cinic-10": ((512, 256), 0.2),
}


@dataclass(frozen=True)
class FedAUCNN:
    """The CNNs of FedAU's experiments, 211,690 parameters on Fashion-MNIST. Wang and Ji, ICLR 2024 (2306.03401)

    As in the authors' code (github.com/IBM/fedau): two 3x3 convolutions of 32 maps with padding 1, each followed by
    ReLU and 2x2 pooling, then linear layers whose widths `layout` chooses. CIFAR-100 and CINIC-10 have dropout 0.2
    before every linear layer. Weights Kaiming-normal (fan in, ReLU) with zero bias, except the last linear layer,
    which keeps PyTorch's default. `auto`: cifar-100 for more than 10 classes, else fashion-mnist for grey images and
    cifar-10 for colour. Images of side 4 or more.
    """

    layout: Literal["auto", "fashion-mnist", "svhn", "cifar-10", "cifar-100", "cinic-10"] = "auto"

    def __post_init__(self) -> None:
        if self.layout != "auto" and self.layout not in _FEDAU:
            raise ValueError(f"layout {self.layout!r} is not known{resolve.nearest(self.layout, ['auto', *_FEDAU])}")

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """The module for one example's shape (channels, height, width)."""
        from torch import nn

        channels, height, width = images("fedau-cnn", shape, 4)
        layout = self.layout
        if layout == "auto":
            layout = "cifar-100" if classes > 10 else "fashion-mnist" if channels == 1 else "cifar-10"
        hidden, dropout = _FEDAU[layout]
        layers: list[nn.Module] = []
        for inputs in (channels, 32):
            layers += [nn.Conv2d(inputs, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        layers.append(nn.Flatten())
        inputs = 32 * (height // 4) * (width // 4)
        for outputs in hidden:
            layers += [nn.Dropout(dropout)] * (dropout > 0)
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
            inputs = outputs
        layers += [nn.Dropout(dropout)] * (dropout > 0)
        for layer in layers:
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        return nn.Sequential(*layers, nn.Linear(inputs, classes))
