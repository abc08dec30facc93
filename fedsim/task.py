"""What is learned from whose data: a model as a pure function, a pool of examples, and who holds which.

A client is a slice of `rows`, not an object: rows[first[i] : first[i] + size[i]] are its places in the pool.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from fedsim import keyed
from fedsim.data.dataset import is_tokens

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch
    from torch import Tensor, nn

    from fedsim.curricula import Curriculum
    from fedsim.data import Dataset
    from fedsim.data.augment import Augment
    from fedsim.data.partition import Partition, Parts

    Params = Mapping[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """Where the named tensors of a model lie in its flat vector of P numbers."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @functools.cached_property
    def sizes(self) -> tuple[int, ...]:
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def size(self) -> int:
        """P."""
        return sum(self.sizes)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """flat [..., P] as named tensors [..., *shape] in the same memory."""
        parts = flat.split(self.sizes, dim=-1)
        lead = flat.shape[:-1]
        return {name: part.view((*lead, *s)) for name, part, s in zip(self.names, parts, self.shapes, strict=True)}

    def stack(self, named: Params) -> Tensor:
        """The vectors [c, P] of named tensors [c, *shape]."""
        import torch

        return torch.cat([named[name].reshape(len(named[name]), -1) for name in self.names], dim=1)

    def flat(self, named: Params) -> Tensor:
        """The vector [P] holding a copy of the named tensors."""
        import torch

        return torch.cat([named[name].reshape(-1) for name in self.names])


def layout_of(named: Params) -> Layout:
    """The layout of named tensors, in their order."""
    return Layout(tuple(named), tuple(tensor.shape for tensor in named.values()))


class Held(NamedTuple):
    """What clients keep for testing: client i has rows[first[i] : first[i] + size[i]], places in the pool."""

    rows: Tensor  # [sum of sizes]
    first: Tensor  # [n]
    size: Tensor  # [n]  0: the client keeps nothing


@dataclass(frozen=True, eq=False)
class Task:
    """A learning problem spread over n clients. All tensors live on one device."""

    name: str
    outputs_of: Callable[[Params, Tensor, Tensor | None], Tensor]  # (params, inputs [b, ...], key) -> [b, ...]
    criterion: Callable[[Tensor, Tensor], Tensor]  # (outputs, targets [b]) -> losses [b]
    first_of: Callable[[int], Params]  # seed -> parameters
    layout: Layout
    inputs: Tensor = field(repr=False)  # [N, ...]  pool of examples: uint8 pictures, floating, or tokens
    targets: Tensor = field(repr=False)  # [N]
    rows: Tensor = field(repr=False)  # [sum of sizes]  places in the pool, client after client
    first: Tensor = field(repr=False)  # [n]  a client's first place in rows
    size: Tensor = field(repr=False)  # [n]  how many it has
    test_inputs: Tensor = field(repr=False)
    test_targets: Tensor = field(repr=False)
    classes: int  # 0: not a classification
    dtype: torch.dtype
    mean: Tensor | None = field(default=None, repr=False)  # of the inputs, taken off on the device
    std: Tensor | None = field(default=None, repr=False)
    moved: int = 0  # examples given to clients the partition had left empty
    held: Held | None = field(default=None, repr=False)  # for testing only, never in `rows`; None: nothing is held out
    curriculum: Curriculum | None = None  # the order of every client's rows; None: the partition's
    augment: Augment | None = None  # (normalised inputs [b, ...], key) -> [b, ...], in training only

    def __post_init__(self) -> None:
        import torch

        if len(self.first) != len(self.size) or int(self.size.sum()) != len(self.rows):
            raise ValueError(f"the clients' sizes sum to {int(self.size.sum())} but there are {len(self.rows)} rows")
        if len(self.size) and int(self.size.min()) < 1:
            raise ValueError(f"client {int(self.size.argmin())} has no example; give every client at least one")
        if self.held is not None and (
            len(self.held.size) != len(self.size) or int(self.held.size.sum()) != len(self.held.rows)
        ):
            raise ValueError(f"the held-out sizes of {len(self.size)} clients must sum to {len(self.held.rows)} rows")
        for what, tensor in (("inputs", self.inputs), ("test inputs", self.test_inputs)):
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise ValueError(f"the {what} of {self.name} hold NaN or infinity; clean the data first")

    @property
    def n(self) -> int:
        return len(self.size)

    @property
    def device(self) -> torch.device:
        return self.inputs.device

    @functools.cached_property
    def sizes(self) -> list[int]:
        """The clients' sizes on the host, so that planning a round asks the device nothing."""
        return [int(size) for size in self.size.tolist()]

    @functools.cached_property
    def largest(self) -> int:
        """The most examples that a client has."""
        return max(self.sizes)

    @functools.cached_property
    def firsts(self) -> list[int]:
        """Where each client's rows begin, on the host."""
        return [int(first) for first in self.first.tolist()]

    def ready(self, inputs: Tensor) -> Tensor:
        """Inputs as the model wants them: floating, uint8 scaled to [0, 1], normalised; tokens as int64."""
        if is_tokens(inputs):
            return inputs.long()
        out = inputs if inputs.is_floating_point() else inputs.to(self.dtype) / 255.0
        out = out.to(self.dtype)
        return out if self.mean is None or self.std is None else (out - self.mean) / self.std

    def outputs(self, params: Params, inputs: Tensor, key: Tensor | None = None) -> Tensor:
        """The model's outputs [b, ...]; without a key dropout is off and the inputs are as they are."""
        return self.answers(params, self.ready(inputs), key)

    def answers(self, params: Params, ready: Tensor, key: Tensor | None = None) -> Tensor:
        """The model's outputs [b, ...] for inputs that are as it wants them."""
        if self.augment is not None and key is not None:
            ready = self.augment(ready, keyed.fold(key, "augment"))
        return self.outputs_of(params, ready, key)

    def losses(self, params: Params, inputs: Tensor, targets: Tensor, key: Tensor | None = None) -> Tensor:
        """One loss per example [b]."""
        return self.criterion(self.outputs(params, inputs, key), targets)

    def fresh(self, key: int) -> Tensor:
        """A first model [P], drawn from the seed `key`."""
        named = self.first_of(key)
        return self.layout.flat(named).to(device=self.device, dtype=self.dtype)

    def weights(self, objective: str = "examples") -> Tensor:
        """The objective's weights p [n], float64: n_i/N ("examples", those trained on) or 1/n ("uniform")."""
        import torch

        if objective == "uniform":
            return torch.full((self.n,), 1.0 / self.n, dtype=torch.float64, device=self.device)
        if objective == "examples":
            return self.size.to(torch.float64) / len(self.rows)
        raise ValueError(f"objective must be 'examples' (n_i/N) or 'uniform' (1/n), got {objective!r}")

    def histogram(self) -> np.ndarray[Any, Any]:
        """How often each client holds each class [n, C], among all its examples: those held out too, so that who is
        there when does not depend on whether anything is held out."""
        import numpy as np

        parts = [(self.rows, self.size)] + ([] if self.held is None else [(self.held.rows, self.held.size)])
        owner = np.concatenate([np.repeat(np.arange(self.n), size.cpu().numpy()) for _, size in parts])
        labels = np.zeros_like(owner)
        if self.classes:
            labels = np.concatenate([self.targets[rows].cpu().numpy().astype(np.int64) for rows, _ in parts])
        classes = max(self.classes, 1)
        return np.bincount(owner * classes + labels, minlength=self.n * classes).reshape(self.n, classes)


def regroup(task: Task, parts: Parts, *, holdout: float = 0.0, seed: int = 0) -> Task:
    """The same examples, model and test set among other clients: as `make_task` with the same data set and module,
    without another copy of the examples."""
    import torch

    from fedsim.data.partition import hold_out

    def tensor(value: Any) -> Tensor:
        return torch.as_tensor(value).to(task.device)

    kept, held = (parts, None) if holdout == 0 else hold_out(parts, holdout, seed)
    return replace(
        task,
        targets=task.targets if parts.targets is None else tensor(parts.targets),
        rows=tensor(kept.rows),
        first=tensor(kept.first),
        size=tensor(kept.size),
        moved=parts.moved,
        held=None if held is None else Held(tensor(held.rows), tensor(held.first), tensor(held.size)),
    )


def join(tasks: Sequence[Task]) -> Task | None:
    """One task of the clients of all, one task's after the other's; None where they do not share examples and model
    (`regroup`). It is there to train clients of many tasks at once: nothing is held out of it."""
    import torch

    one = tasks[0]
    for other in tasks[1:]:
        if other.outputs_of is not one.outputs_of or other.inputs is not one.inputs or other.targets is not one.targets:
            return None
    if len(tasks) == 1:
        return one
    offsets = [0, *itertools.accumulate(len(task.rows) for task in tasks)]
    return replace(
        one,
        rows=torch.cat([task.rows for task in tasks]),
        first=torch.cat([task.first + offset for task, offset in zip(tasks, offsets, strict=False)]),
        size=torch.cat([task.size for task in tasks]),
        held=None,
    )


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """The classification loss of each example [b], from logits [b, C] and classes [b] among 0..C-1. torch's own has an
    eye on classes to be ignored, which costs a small model a tenth of its step; the numbers are the same."""
    return -outputs.log_softmax(1).gather(1, targets[:, None]).squeeze(1)


def itself(outputs: Tensor, targets: Tensor) -> Tensor:
    """For problems whose model already answers with its loss [b]."""
    return outputs


def make_task(
    dataset: Dataset, parts: Parts, module: nn.Module, *, seed_module: Callable[[int], Params] | None = None,
    device: str | torch.device = "cpu", dtype: torch.dtype | None = None, holdout: float = 0.0, seed: int = 0,
) -> Task:  # fmt: skip
    """A task from a data set, who holds which of its examples, and a torch module.

    The module must be a pure function of its parameters (BatchNorm is refused, dropout is keyed). `seed_module(seed)`
    gives first parameters by name; left out, the module's own values are where every run starts. The share `holdout`
    of every client's examples, drawn from `seed`, is for testing only (`fedsim.data.partition.hold_out`).
    """
    import torch

    from fedsim import models
    from fedsim.data import augment as augmentation
    from fedsim.data.partition import hold_out

    dtype = dtype or torch.float32
    module = models.pure(module)
    if is_tokens(dataset.inputs):
        models.check_tokens(module, dataset.inputs, dataset.test_inputs)
    module = module.to(device=device, dtype=dtype)
    named = {name: value.detach() for name, value in models.parameters(module).items()}
    if not named:
        raise ValueError(f"model {type(module).__name__} has no parameters to learn")
    outputs_of = models.functional(module)

    def tensor(value: Any) -> Tensor:
        return torch.as_tensor(value).to(device)

    kept, held = (parts, None) if holdout == 0 else hold_out(parts, holdout, seed)

    def statistic(value: float | tuple[float, ...] | None) -> Tensor | None:
        if value is None:
            return None
        out = torch.as_tensor(value, dtype=dtype, device=device)
        channels = dataset.inputs.shape[1:]
        return out.view(-1, *(1,) * (len(channels) - 1)) if out.ndim and len(channels) > 1 else out

    task = Task(
        name=dataset.name,
        outputs_of=outputs_of,
        criterion=cross_entropy if dataset.classes else itself,
        first_of=seed_module or (lambda seed: named),
        layout=layout_of(named),
        inputs=tensor(dataset.inputs),
        targets=tensor(dataset.targets if parts.targets is None else parts.targets),
        rows=tensor(kept.rows),
        first=tensor(kept.first),
        size=tensor(kept.size),
        test_inputs=tensor(dataset.test_inputs),
        test_targets=tensor(dataset.test_targets),
        classes=dataset.classes,
        dtype=dtype,
        mean=statistic(dataset.mean),
        std=statistic(dataset.std),
        moved=parts.moved,
        held=None if held is None else Held(tensor(held.rows), tensor(held.first), tensor(held.size)),
        augment=getattr(dataset, "augment", None),
    )
    sample = task.ready(task.inputs[:2])
    if task.augment is not None:
        augmentation.check(task.augment, sample)
    models.check_pure(outputs_of, named, sample)
    losses = task.losses(named, task.inputs[:2], task.targets[:2])
    if losses.shape != (len(sample),):
        raise ValueError(f"the model must give one loss per example [{len(sample)}], got shape {tuple(losses.shape)}")
    return task


def federate(
    data: str | Dataset = "digits", *, clients: int = 100, partition: Partition | None = None, model: Any = "mlp",
    seed: int = 0, folder: str | Path | None = None, device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None, holdout: float = 0.0,
) -> Task:  # fmt: skip
    """A data set spread over clients, with a model to learn: the short way to a `Task`.

    `data` and `model` are names (`fedsim list data`, `fedsim list models`), a `Dataset`, a torch module or a class or
    function that makes one. `partition` says who holds what (default: the data's own clients, else Dirichlet labels
    with alpha 0.5). `folder` is where data files are sought. The share `holdout` of every client's examples is kept for
    testing: see `fedsim.measure.per_client`.
    """
    import torch

    from fedsim import data as datasets
    from fedsim import models
    from fedsim.data.partition import Dirichlet, Natural

    dataset = datasets.load(data, folder) if isinstance(data, str) else data
    if partition is None:
        partition = Natural() if dataset.natural else Dirichlet(alpha=0.5)
    parts = datasets.split(dataset, partition, clients, seed)
    settings: dict[str, Any] = {"device": device, "dtype": dtype, "holdout": holdout, "seed": seed}
    if isinstance(model, torch.nn.Module):
        return make_task(dataset, parts, model, **settings)
    shape = tuple(dataset.inputs.shape[1:])

    def build() -> nn.Module:
        return models.build(model, shape, dataset.classes)

    return make_task(dataset, parts, build(), seed_module=lambda s: models.fresh(build, s), **settings)
