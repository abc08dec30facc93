"""Models: a few that the papers use, the user's own, and how a module becomes a pure function of its parameters.

module = models.pure(models.build("lenet5", shape=(1, 28, 28), classes=10))
f = models.functional(module)              # f(params, inputs [b, ...], key) -> outputs [b, C]
params = models.fresh(factory, seed)       # {name: tensor}, drawn without touching the global generators
"""

from __future__ import annotations

import contextlib
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from fedsim import resolve
from fedsim.models.basic import MLP, Logistic, Scalar
from fedsim.models.convolutional import PFLCNN, FedAUCNN, LeNet5, McMahanCNN
from fedsim.models.fedpara import Factored, FedPara, factored, fedpara
from fedsim.models.first import fresh, is_seeded, parameters, seeded
from fedsim.models.purity import Functional, check_pure, check_tokens, functional, pure
from fedsim.models.resnet import ResNet18
from fedsim.models.shapes import Shape, show
from fedsim.models.transformer import Transformer

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "MLP",
    "NAMES",
    "PFLCNN",
    "Factored",
    "FedAUCNN",
    "FedPara",
    "Functional",
    "LeNet5",
    "Logistic",
    "McMahanCNN",
    "ResNet18",
    "Scalar",
    "Transformer",
    "build",
    "check_pure",
    "check_tokens",
    "factored",
    "fedpara",
    "fresh",
    "functional",
    "parameters",
    "pure",
    "seeded",
]

NAMES: dict[str, type] = {
    "logistic": Logistic,
    "mlp": MLP,
    "lenet5": LeNet5,
    "mcmahan-cnn": McMahanCNN,
    "pfl-cnn": PFLCNN,
    "fedau-cnn": FedAUCNN,
    "resnet18": ResNet18,
    "transformer": Transformer,
    "scalar": Scalar,
    "fedpara": FedPara,
}


def build(model: Any, shape: Shape, classes: int, **settings: Any) -> nn.Module:
    """A module that takes inputs [b, *shape] and gives scores [b, classes], or losses [b] where classes = 0.

    `model` is a name in `NAMES`, one of its dataclasses (made, or the class with `settings`), the dotted path of the
    user's own, or any class or function that returns an nn.Module: it is called with `settings`, and with `shape`
    and `classes` where its signature has parameters of these names. A user's module is tried on an all-zero batch.

    The global random generators are left as they were. The weights are the same at every call, except inside
    `seeded`, whose seed decides them.

    Raises ValueError, one line: unknown name or setting, a shape the model cannot take, outputs of another shape.
    """
    import torch

    shape = tuple(int(size) for size in shape)
    if not shape or min(shape) < 1:
        raise ValueError(f"shape must be the sizes of one example without the batch, got {show(shape)}")
    if classes < 0:
        raise ValueError(f"classes must be 0 (none) or more, got {classes}")
    label = model if isinstance(model, str) else getattr(model, "__name__", type(model).__name__)
    if isinstance(model, str):
        if resolve.is_dotted(model):
            model = resolve.dotted(model)
        elif model in NAMES:
            model = NAMES[model]
        else:
            raise ValueError(
                f"model {model!r} is not known{resolve.nearest(model, NAMES)} (or a dotted path 'file.py:Name')"
            )
    with contextlib.nullcontext() if is_seeded() else seeded(0):
        made: Any = model
        if _is_settings(model):
            if isinstance(model, type):
                resolve.check_settings(
                    f"model {label}", settings, [field.name for field in fields(model) if field.init]
                )
                made = model(**settings)
            elif settings:
                raise ValueError(f"model {label} is built already; it takes no further settings {sorted(settings)}")
            if classes == 0 and type(made) in NAMES.values() and not isinstance(made, Scalar):
                raise ValueError(f"model {label} needs data with classes, these have none; for quadratic use scalar")
            module = made.build(shape, classes)
        else:
            if isinstance(model, torch.nn.Module) or not callable(model):
                raise ValueError(f"model {label} must be a class or function that makes a torch.nn.Module")
            module = resolve.call(f"model {label}", model, {"shape": shape, "classes": classes}, settings)
        if not isinstance(module, torch.nn.Module):
            raise ValueError(f"model {label} gave a {type(module).__name__}; it must give a torch.nn.Module")
        if type(made) not in NAMES.values():
            _try(label, module, shape, classes)
    return module


def _is_settings(model: Any) -> bool:
    """Whether this is a dataclass of settings with a method `build`, or one already made."""
    return is_dataclass(model) and callable(getattr(model, "build", None))


def _try(label: str, module: nn.Module, shape: Shape, classes: int) -> None:
    """Run two all-zero examples through a module we do not know, without gradients and in evaluation mode."""
    import torch

    def run(dtype: torch.dtype) -> object:
        return module(torch.zeros(2, *shape, dtype=dtype))

    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            try:
                outputs = run(torch.get_default_dtype())
            except Exception as error:
                try:
                    outputs = run(torch.int64)  # tokens
                except Exception:
                    raise ValueError(
                        f"model {label} cannot take inputs of shape [b, {show(shape)[1:]}: {resolve.line(error)}"
                    ) from error
    finally:
        module.train(training)
    wanted = [2, classes] if classes else [2]
    got = list(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
    if got != wanted:
        raise ValueError(f"model {label} gives {got} for 2 examples; it must give {wanted}")
