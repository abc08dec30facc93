"""What a data set is, wherever it comes from."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.data.augment import Augment


class Dataset(NamedTuple):
    """All examples of all clients, and a test set. `mean` and `std` are applied later, on the device.

    A tuple for `mean` and `std` has one number per channel (dimension 1 of the inputs).
    """

    name: str
    inputs: Tensor  # [N, ...]  uint8 images; other whole numbers are tokens, which stay as they are; else float32
    targets: Tensor  # [N]       int64 classes; zeros where there are none
    test_inputs: Tensor  # [M, ...]
    test_targets: Tensor  # [M]
    classes: int  # 0: not a classification problem
    mean: float | tuple[float, ...] | None = None  # uint8: (x/255 - mean)/std; float: (x - mean)/std; None: as it is
    std: float | tuple[float, ...] | None = None
    natural: tuple[NDArray[np.int64], ...] | None = None  # rows of each of the data's own clients
    augment: Augment | None = None  # what training does to normalised inputs [b, ...], and evaluation does not


def check(dataset: Dataset) -> Dataset:
    """The data set, if it is sound; ValueError, one line that names it, if not."""
    import torch

    name = dataset.name

    def need(holds: bool, why: str) -> None:
        if not holds:
            raise ValueError(f"data {name}: {why}")

    need(dataset.classes >= 0, f"classes must be 0 (none) or more, got {dataset.classes}")
    for part, inputs, targets in (
        ("training", dataset.inputs, dataset.targets),
        ("test", dataset.test_inputs, dataset.test_targets),
    ):
        need(isinstance(inputs, torch.Tensor) and isinstance(targets, torch.Tensor), f"the {part} data must be tensors")
        need(inputs.dim() >= 2 and len(inputs) > 0, f"{part} inputs must be [N, ...] with N > 0, got {_show(inputs)}")
        need(targets.shape == inputs.shape[:1], f"{len(inputs)} {part} inputs but targets {_show(targets)}")
        need(targets.dtype == torch.int64, f"{part} targets must be int64, got {targets.dtype}")
        if inputs.is_floating_point():
            finite = torch.isfinite(inputs.flatten(1)).all(1)
            bad = 0 if finite.all() else int((~finite).nonzero()[0])
            need(bool(finite.all()), f"{part} example {bad} of {len(inputs)} holds NaN or infinity")
        else:
            need(not inputs.is_complex() and inputs.dtype != torch.bool, f"{part} inputs cannot be {inputs.dtype}")
            if is_tokens(inputs):
                need(int(inputs.min()) >= 0, f"{part} tokens must be 0 or more, got {int(inputs.min())}")
                need(dataset.mean is None, f"mean and std are for pictures and numbers, and {part} inputs are tokens")
        low, high = int(targets.min()), int(targets.max())
        if dataset.classes:
            need(
                low >= 0 and high < dataset.classes,
                f"{part} labels are {low} to {high}, outside 0 to {dataset.classes - 1}",
            )
    need(
        dataset.inputs.shape[1:] == dataset.test_inputs.shape[1:],
        f"training examples are {_show(dataset.inputs[0])} but test examples {_show(dataset.test_inputs[0])}",
    )
    need((dataset.mean is None) == (dataset.std is None), "mean and std must be given together")
    for word, statistic in (("mean", dataset.mean), ("std", dataset.std)):
        if isinstance(statistic, tuple):
            channels = dataset.inputs.shape[1]
            need(len(statistic) == channels, f"{word} must have one number for each of {channels} channels")
        for value in statistic if isinstance(statistic, tuple) else (statistic,):
            need(value is None or math.isfinite(value), f"{word} must be finite, got {value}")
            need(value is None or word == "mean" or value > 0, f"{word} must be positive, got {value}")
    need(dataset.augment is None or callable(dataset.augment), "augment must be a function of inputs and a key")
    if dataset.natural is not None:
        rows = np.sort(np.concatenate([np.asarray(client) for client in dataset.natural]))
        need(
            np.array_equal(rows, np.arange(len(dataset.inputs))),
            f"its own clients must hold each of the {len(dataset.inputs)} examples once",
        )
    return dataset


def is_tokens(inputs: Tensor) -> bool:
    """Whether inputs are tokens: whole numbers, but for uint8, which are pictures."""
    import torch

    return not inputs.is_floating_point() and inputs.dtype != torch.uint8


def _show(tensor: Tensor) -> str:
    return str(list(tensor.shape))
