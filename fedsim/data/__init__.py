"""Data sets and how they are divided among clients.

    dataset = data.load("mnist", folder)                          # one pool of examples and a test set
    parts = data.split(dataset, data.partitions.Dirichlet(0.1), n=100, seed=1)

Files are sought in the folder given (`--data-dir`), else in the one that the environment variable FEDSIM_DATA names,
else in `data` under the working directory.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, is_dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fedsim import resolve
from fedsim.data import idx
from fedsim.data import partition as partitions
from fedsim.data.cifar import CIFAR10
from fedsim.data.dataset import Dataset, check
from fedsim.data.partition import Parts
from fedsim.data.shakespeare import Shakespeare
from fedsim.data.synthetic import Clusters, Quadratic, Synthetic

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "CIFAR10",
    "MNIST",
    "NAMES",
    "Clusters",
    "Dataset",
    "Digits",
    "FashionMNIST",
    "Parts",
    "Quadratic",
    "Shakespeare",
    "Synthetic",
    "check",
    "directory",
    "load",
    "partitions",
    "split",
]


@dataclass(frozen=True)
class Digits:
    """1,797 handwritten digits of 8x8 pixels, embedded in scikit-learn. Alpaydin and Kaynak, UCI 1998

    The last of every five examples of a class, in data-set order, is a test example: 1,442 to train, 355 to test.
    """

    def load(self, folder: Path | None = None) -> Dataset:
        """inputs [N, 1, 8, 8] float32, grey levels 0 to 16."""
        import torch
        from sklearn.datasets import load_digits

        bunch = load_digits()
        images = torch.from_numpy(bunch.images.astype(np.float32))[:, None]
        targets = torch.from_numpy(bunch.target.astype(np.int64))
        test = torch.zeros(len(targets), dtype=torch.bool)
        for label in range(10):
            test[(targets == label).nonzero()[4::5, 0]] = True
        # mean and std of all pixels
        return Dataset("digits", images[~test], targets[~test], images[test], targets[test], 10, mean=4.884, std=6.017)


class _IDX:
    """A folder with the four files of MNIST or of a data set made to replace it."""

    name: ClassVar[str]
    origin: ClassVar[str]
    mean: ClassVar[float] = 0.1307
    std: ClassVar[float] = 0.3081

    def load(self, folder: Path | None = None) -> Dataset:
        """inputs [N, 1, 28, 28] uint8 from `folder`/name; FileNotFoundError says where the files were sought."""
        place = (directory(folder) / self.name).absolute()
        found = idx.find(place)
        missing = [name for name in idx.FILES if name not in found]
        if missing:
            raise FileNotFoundError(
                f"data {self.name} is not in {place}: no {', '.join(missing)} (with or without .gz); get the four files"
                f" {', '.join(idx.FILES)} from {self.origin} and put them there, or name the folder that holds"
                f" {self.name}/ with --data-dir or FEDSIM_DATA"
            )
        paths = [found[name] for name in idx.FILES]
        train, test = _tensors(paths[0], paths[1]), _tensors(paths[2], paths[3])
        return Dataset(self.name, *train, *test, classes=10, mean=self.mean, std=self.std)


def _tensors(images: Path, labels: Path) -> tuple[Tensor, Tensor]:
    import torch

    x, y = idx.pair(images, labels, side=28, classes=10)
    return torch.from_numpy(x), torch.from_numpy(y)


@dataclass(frozen=True)
class MNIST(_IDX):
    """70,000 handwritten digits of 28x28 pixels, from IDX files. LeCun et al., Proc. IEEE 1998"""

    name: ClassVar[str] = "mnist"
    origin: ClassVar[str] = "yann.lecun.com/exdb/mnist or a mirror of it"


@dataclass(frozen=True)
class FashionMNIST(_IDX):
    """70,000 pictures of clothes of 28x28 pixels, from IDX files. Xiao et al. 2017 (1708.07747)

    Normalised with MNIST's mean and standard deviation, as FedAU's code does.
    """

    name: ClassVar[str] = "fashion-mnist"
    origin: ClassVar[str] = "github.com/zalandoresearch/fashion-mnist (data/fashion)"


NAMES: dict[str, type] = {
    "digits": Digits,
    "mnist": MNIST,
    "fashion-mnist": FashionMNIST,
    "cifar10": CIFAR10,
    "shakespeare": Shakespeare,
    "clusters": Clusters,
    "synthetic": Synthetic,
    "quadratic": Quadratic,
}


def directory(given: str | Path | None = None) -> Path:
    """Where data files are sought: the folder given, else FEDSIM_DATA, else `data` under the working directory."""
    return Path(given or os.environ.get("FEDSIM_DATA") or "data").expanduser()


def load(source: Any, folder: str | Path | None = None, **settings: Any) -> Dataset:
    """A data set, checked.

    `source` is a name in `NAMES`, one of its dataclasses (made, or the class with `settings`), the dotted path of the
    user's own, or any class or function that returns a `Dataset`: it is called with `settings`, and with `folder`
    where its signature has that parameter.

    Raises FileNotFoundError when files are absent and ValueError for everything else, each one line.
    """
    label = source if isinstance(source, str) else getattr(source, "__name__", type(source).__name__)
    if isinstance(source, str):
        if resolve.is_dotted(source):
            source = resolve.dotted(source)
        elif source in NAMES:
            source = NAMES[source]
        else:
            raise ValueError(
                f"data {source!r} is not known{resolve.nearest(source, NAMES)} (or a dotted path 'file.py:Name')"
            )
    place = None if folder is None else Path(folder)
    if is_dataclass(source) and callable(getattr(source, "load", None)):
        if isinstance(source, type):
            resolve.check_settings(f"data {label}", settings, [field.name for field in fields(source) if field.init])
            source = source(**settings)
        elif settings:
            raise ValueError(f"data {label} is made already; it takes no further settings {sorted(settings)}")
        dataset: object = source.load(place)
    elif callable(source):
        dataset = resolve.call(f"data {label}", source, {"folder": place}, settings)
    else:
        raise ValueError(f"data {label} must be a class or function that gives a fedsim.data.Dataset")
    if not isinstance(dataset, Dataset):
        raise ValueError(f"data {label} gave a {type(dataset).__name__}; it must give a fedsim.data.Dataset")
    return check(dataset)


def split(dataset: Dataset, partition: Any, n: Any, seed: int) -> Parts:
    """The data set's examples divided among n clients by a partition, ours or the user's; checked.

    Raises ValueError for what is no partition or no number of clients, and for parts that are none.
    """
    if isinstance(partition, type | str):
        what = repr(partition) if isinstance(partition, str) else f"the class {partition.__name__}"
        raise ValueError(f"partition must be an object such as Dirichlet(alpha=0.5), got {what}")
    if isinstance(n, bool) or not isinstance(n, Integral):
        raise ValueError(f"clients must be a whole number, got {n!r}")
    if isinstance(partition, partitions.Natural):
        partition = replace(partition, natural=dataset.natural)
    parts = partition.split(dataset.targets.cpu().numpy(), n, seed)
    return partitions.check(parts, len(dataset.targets))
