"""Modules as pure functions of their parameters, without memory or randomness of their own.

So one module serves every client at once under `torch.func.vmap`, and a client's result does not depend on who trains
beside it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn

from fedsim import keyed, resolve
from fedsim.models.first import global_state, moved, parameters, restore

if TYPE_CHECKING:
    from torch import Tensor, nn


def pure(module: nn.Module) -> nn.Module:
    """A copy of the module without memory or randomness of its own: nn.Dropout and its 1d, 2d and 3d become keyed.

    Raises ValueError naming the layer: batch norm, instance norm with running statistics, and layers that draw random
    numbers which cannot be keyed.
    """
    from torch import nn

    from fedsim.layers import KeyedDropout

    replaced: dict[int, nn.Module] = {}
    for name, layer in module.named_modules():
        _refuse_impure(name or "(the model itself)", layer)
    module = copy.deepcopy(module)
    for layer in module.modules():
        if isinstance(layer, (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)):
            new = KeyedDropout(layer.p, channels=type(layer) is not nn.Dropout)
            replaced[id(layer)] = new.train(layer.training)
    for parent in list(module.modules()):
        for name, child in parent._modules.items():  # not named_children: it lists a layer used twice once
            if id(child) in replaced:
                setattr(parent, name, replaced[id(child)])
    return replaced.get(id(module), module)


def _refuse_impure(name: str, layer: nn.Module) -> None:
    from torch import nn
    from torch.nn.modules.batchnorm import _BatchNorm
    from torch.nn.modules.dropout import _DropoutNd
    from torch.nn.parameter import is_lazy

    def refuse(why: str) -> NoReturn:
        raise ValueError(f"layer {name!r} is {type(layer).__name__}, {why}")

    if isinstance(layer, _BatchNorm):
        refuse("whose statistics mix the examples of a batch and live outside the parameters; use nn.GroupNorm")
    if any(is_lazy(value) for value in layer.parameters(recurse=False)):
        refuse("whose weights have no size yet; run one batch through the model first")
    if getattr(layer, "track_running_stats", False):
        refuse("with running statistics that live outside the parameters; use track_running_stats=False or GroupNorm")
    if isinstance(layer, _DropoutNd) and type(layer) not in (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d):
        refuse("which draws from the global generator; use nn.Dropout, which is replaced by a keyed one")
    if isinstance(layer, (nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)):
        refuse("which draws from the global generator; use a layer without randomness")
    if isinstance(layer, (nn.RNNBase, nn.MultiheadAttention)) and layer.dropout > 0:
        refuse(f"with dropout {layer.dropout} inside, which cannot be keyed; set it to 0 and use nn.Dropout around it")


class Functional:
    """A pure module as a function: f(params {name: tensor}, inputs [b, ...], key) -> outputs [b, C].

    `key` is an int64 scalar tensor that decides every dropout mask; None is evaluation mode, where dropout is the
    identity. Works inside torch.func.vmap (over parameters, inputs and key) and torch.func.grad. Buffers and
    parameters without gradient are constants, taken from the module.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.names = tuple(parameters(module))
        every = sum(1 for _ in module.named_parameters(remove_duplicate=False))
        self._tied = every != sum(1 for _ in module.named_parameters())
        if not self.names:
            raise ValueError(
                f"model {type(module).__name__} has no parameters that require a gradient: nothing to train"
            )
        self._known = frozenset(self.names)

    def __call__(self, params: Mapping[str, Tensor], inputs: Tensor, key: Tensor | None = None) -> Tensor:
        from torch.func import functional_call

        from fedsim.layers import drawing

        if params.keys() != self._known:
            wrong = sorted(self._known.symmetric_difference(params))
            raise ValueError(f"the model's parameters are {list(self.names)}; missing or unknown: {wrong}")
        if self.module.training is not (key is not None):
            self.module.train(key is not None)
        with drawing(key):
            return functional_call(self.module, dict(params), (inputs,), tie_weights=self._tied)  # type: ignore[no-any-return]


def functional(module: nn.Module) -> Functional:
    """The pure function of a pure module (`pure`); see `Functional`. The module belongs to the function from now on."""
    return Functional(module)


def check_pure(functional: Functional, params: Mapping[str, Tensor], inputs: Tensor) -> None:
    """Run the forward on a batch [b, ...] as training does, and refuse what `pure` cannot see in the layers.

    Raises ValueError, one line: random numbers drawn in `forward` (F.dropout, torch.rand, ...), buffers that change,
    outputs that depend on the other examples of the batch. The global generators are left as they were.
    """
    import torch

    key = keyed.fold(0, "check").to(inputs.device)
    buffers = {name: value.clone() for name, value in functional.module.named_buffers()}
    before = global_state()
    try:
        with torch.no_grad():
            outputs = functional(params, inputs, key)
            drew = moved(before, global_state())
            alone = functional(params, inputs[:1].repeat(max(2, len(inputs)), *[1] * (inputs.dim() - 1)), key)
        changed = [n for n, value in functional.module.named_buffers() if not torch.equal(value, buffers[n])]
    finally:
        restore(before)
        with torch.no_grad():
            for name, value in functional.module.named_buffers():
                value.copy_(buffers[name])
    model = type(functional.module).__name__
    if drew:
        raise ValueError(
            f"the forward of {model} draws from a global random generator (F.dropout, torch.rand, ...), so no run could"
            " be repeated; use nn.Dropout layers, which are replaced by keyed ones"
        )
    if changed:
        raise ValueError(
            f"the forward of {model} changes its buffer {changed[0]!r}; buffers are constants, shared by all clients"
        )
    if not torch.allclose(outputs[0], alone[0], rtol=1e-3, atol=1e-5, equal_nan=True):
        raise ValueError(
            f"the output of {model} for one example depends on the other examples of the batch; normalise within the"
            " example (nn.GroupNorm, nn.LayerNorm)"
        )


def check_tokens(module: nn.Module, *parts: Tensor) -> None:
    """Run a pure module on the examples with the smallest and the largest token of each part [N, ...], on the CPU.

    Raises ValueError, one line, where it takes no tokens or has no place for these. Later nobody would notice: on a CPU
    a table of many clients' embeddings would read another client's row, and a GPU would stop for good.
    """
    import torch

    module = copy.deepcopy(module).cpu().eval()
    for part in parts:
        flat = part.flatten(1)
        sample = part[torch.stack([flat.amin(1).argmin(), flat.amax(1).argmax()])].cpu().long()
        try:
            with torch.no_grad():
                module(sample)
        except IndexError as error:
            raise ValueError(
                f"the model has no place for all of the data's tokens, {int(sample.min())} to {int(sample.max())};"
                " set its vocabulary"
            ) from error
        except RuntimeError as error:
            raise ValueError(
                f"the model cannot take tokens, which the data's {str(part.dtype).removeprefix('torch.')} inputs are"
                f" (use transformer): {resolve.line(error)}"
            ) from error
