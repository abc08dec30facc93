"""FedPara: weights as Hadamard products of low rank. Hyeon-Woo, Ye-Bin, Oh, ICLR 2022. https://arxiv.org/abs/2108.06098

    linear [m, n]:            W = (X1 Y1ᵀ) * (X2 Y2ᵀ)        X [m, R], Y [n, R]                    2R (m + n) numbers
    convolution [m, n, k, l]: W = W1 * W2                     W_abkl = Σ_pq T_pqkl X_ap Y_bq        2R (m + n + R k l)
    pFedPara:                 W = W1 * (W2 + 1)               W1 shared, W2 of each client's own

Two factors of rank R make weights of rank up to R², where one of 2R, of as many numbers, is held to 2R. So R of the
square root of the smaller side lets W have full rank, and that is the least that is used:

    R = ⌈(1 − γ) R_min + γ R_max⌉     R_min = min(⌈√m⌉, ⌈√n⌉), R_max the largest R that takes no more numbers than W

    module = fedpara(models.build("lenet5", (1, 28, 28), 10), gamma=0.3)
    Personal(keep=("*.w2_*",))        # with personal=True: pFedPara

A layer that R_min would not make smaller stays as it is. The factors begin normal, as large as makes the entries of W
as large as the layer's own first weights are.
"""

from __future__ import annotations

import collections
import copy
import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from fedsim import resolve
from fedsim.models.basic import MLP
from fedsim.models.shapes import Shape

if TYPE_CHECKING:
    from torch import nn


class Factored(NamedTuple):
    """What became of a layer, or of the whole model."""

    layer: str  # its name; empty: the whole model
    rank: int | None  # R; None: the layer is as it was, or this is the whole model
    parameters: int
    original: int  # parameters before
    bytes: int  # of the parameters
    original_bytes: int


@dataclass(frozen=True)
class FedPara:
    """Another model, its weights Hadamard products of low rank. Hyeon-Woo et al., ICLR 2022 (2108.06098)

    `gamma` is between the smallest that lets every weight have full rank (0) and as many parameters as before (1).
    `personal` is pFedPara's form, whose factors "*.w2_*" are for each client to keep: strategy Personal. `skip` names
    layers that stay as they are.
    """

    model: Annotated[Any, resolve.Family("model")] = MLP()
    gamma: float = 0.1
    personal: bool = False
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _between_0_and_1(self.gamma)

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """The module for one example's shape."""
        from fedsim import models

        model, settings = getattr(self.model, "make", self.model), getattr(self.model, "settings", {})
        module = models.build(model, shape, classes, **settings)
        return fedpara(module, self.gamma, personal=self.personal, skip=self.skip)


def fedpara(module: nn.Module, gamma: float = 0.1, *, personal: bool = False, skip: Sequence[str] = ()) -> nn.Module:
    """A copy of a module whose linear and convolutional layers have low-rank factors for weights.

    `skip` names layers, or patterns of names, that stay as they are; so do layers of other kinds (grouped convolutions,
    embeddings, attention's own projections). `factored` says what became of each. The factors are drawn from torch's
    global generator, as a module's weights are.

    Raises ValueError for gamma outside [0, 1], for a name in `skip` that no layer has, and where nothing can be saved.
    """
    from fedsim.layers import Hadamard

    _between_0_and_1(gamma)
    module = copy.deepcopy(module)
    uses = collections.Counter(id(value) for part in module.modules() for value in part._parameters.values())
    layers = {
        name: layer
        for name, layer in module.named_modules()
        if _shape(layer) is not None and uses[id(layer.weight)] == 1  # a weight that is another layer's too stays
    }
    for pattern in skip:
        if not fnmatch.filter(layers, pattern):
            raise ValueError(f'skip: "{pattern}" is no layer with weights to factor{resolve.nearest(pattern, layers)}')
    made: dict[int, nn.Module] = {}
    for name, layer in layers.items():
        rank = rank_of(_shape(layer) or (), gamma)
        if rank is not None and not any(fnmatch.fnmatchcase(name, pattern) for pattern in skip):
            made[id(layer)] = Hadamard(layer, rank, personal)
    if not made:
        raise ValueError("no layer of the model would have fewer parameters as a product of low-rank factors")
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            if id(child) in made:
                setattr(parent, name, made[id(child)])
    return made.get(id(module), module)


def rank_of(shape: Sequence[int], gamma: float) -> int | None:
    """R for a weight [m, n] or [m, n, k, l]; None where even R_min takes as many numbers as the weight."""
    m, n, *window = shape
    kernel = math.prod(window)
    least = min(_root(m), _root(n))
    most = 0
    while size_of(shape, most + 1) <= m * n * kernel:
        most += 1
    if most < least or size_of(shape, least) >= m * n * kernel:
        return None
    return math.ceil((1 - gamma) * least + gamma * most - 1e-9)


def size_of(shape: Sequence[int], rank: int) -> int:
    """Numbers in the factors of a weight of that shape."""
    m, n, *window = shape
    return 2 * rank * (m + n + (rank * math.prod(window) if window else 0))


def factored(module: nn.Module) -> list[Factored]:
    """What became of each linear and convolutional layer of a converted module, and of the whole (the last)."""
    from fedsim.layers import Hadamard

    found = []
    total = before = 0
    item = 4
    for name, layer in module.named_modules():
        if isinstance(layer, Hadamard) or _shape(layer) is not None:
            item = next(layer.parameters()).element_size()
            size = sum(value.numel() for value in layer.parameters())
            bias = layer.bias.numel() if layer.bias is not None else 0
            now = isinstance(layer, Hadamard)
            original = math.prod(layer.shape) + bias if now else size
            rank = layer.rank if now else None
            found.append(Factored(name, rank, size, original, size * item, original * item))
            total, before = total + size, before + original
    whole = sum(value.numel() for value in module.parameters())
    original = whole - total + before
    return [*found, Factored("", None, whole, original, whole * item, original * item)]


def _shape(layer: nn.Module) -> tuple[int, ...] | None:
    """The shape of the weight of a layer that can be converted."""
    from torch import nn

    if type(layer) is nn.Linear or (type(layer) is nn.Conv2d and layer.groups == 1 and layer.padding_mode == "zeros"):
        return tuple(layer.weight.shape)
    return None


def _root(size: int) -> int:
    """The square root, rounded up."""
    return math.isqrt(size - 1) + 1


def _between_0_and_1(gamma: float) -> None:
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must be between 0 and 1, got {gamma}")
