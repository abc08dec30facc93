"""Problems made of numbers: nothing to download, and the answer is known."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedsim import keyed
from fedsim.data.dataset import Dataset


@dataclass(frozen=True)
class Quadratic:
    """One quadratic F_i(x) = a_i/2 (x - b_i)^2 per client, with closed forms for every strategy

    The scalar problem with known fixed points: example i is (a_i, b_i) and belongs to client i (partition `natural`,
    model `scalar`). There are no classes, and the test set is the training set. The default is a four-client problem
    with its optimum at sum(a b) / sum(a) = 1.5, while five local steps of size 0.05 bring FedAvg to 1.680542.
    """

    a: tuple[float, ...] = (1.0, 0.5, 2.0, 1.5)
    b: tuple[float, ...] = (0.0, 10.0, -4.0, 7.0)

    def __post_init__(self) -> None:
        if len(self.a) != len(self.b) or not self.a:
            raise ValueError(f"a and b must have one number per client each, got {len(self.a)} and {len(self.b)}")
        for value in self.a:
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"a must be positive, got {value}")
        for value in self.b:
            if not math.isfinite(value):
                raise ValueError(f"b must be finite, got {value}")

    def load(self, folder: Path | None = None) -> Dataset:
        """inputs [n, 2]: a_i and b_i."""
        import torch

        inputs = torch.tensor(list(zip(self.a, self.b, strict=True)), dtype=torch.float32)
        targets = torch.zeros(len(inputs), dtype=torch.int64)
        natural = tuple(np.array([i]) for i in range(len(inputs)))
        return Dataset("quadratic", inputs, targets, inputs.clone(), targets.clone(), classes=0, natural=natural)


@dataclass(frozen=True)
class Clusters:
    """Gaussian clusters, one per class: how hard they are to tell apart is a setting

    Centres are standard normal in `dimension` dimensions, examples are their class's centre plus `spread` times a
    standard normal. Classes are equally frequent to within one, in random order. `seed` decides the data; it is not
    the run's seed, so all seeds of an experiment see the same data.
    """

    classes: int = 10
    dimension: int = 20
    examples: int = 2000
    test_examples: int = 1000
    spread: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise ValueError(f"classes must be at least 2, got {self.classes}")
        if self.dimension < 1:
            raise ValueError(f"dimension must be at least 1, got {self.dimension}")
        if min(self.examples, self.test_examples) < self.classes:
            raise ValueError(
                f"examples and test-examples must be at least the {self.classes} classes,"
                f" got {self.examples} and {self.test_examples}"
            )
        if not (self.spread >= 0 and math.isfinite(self.spread)):
            raise ValueError(f"spread must be at least 0, got {self.spread}")

    def load(self, folder: Path | None = None) -> Dataset:
        """inputs [N, dimension] float32."""
        import torch

        rng = np.random.default_rng(keyed.seed(self.seed, "clusters"))
        centres = rng.standard_normal((self.classes, self.dimension))

        def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
            targets = rng.permutation(np.arange(count) % self.classes)
            noise = rng.standard_normal((count, self.dimension))
            inputs = (centres[targets] + self.spread * noise).astype(np.float32)
            return torch.from_numpy(inputs), torch.from_numpy(targets.astype(np.int64))

        return Dataset("clusters", *draw(self.examples), *draw(self.test_examples), classes=self.classes)


@dataclass(frozen=True)
class Synthetic:
    """Every client a softmax model and inputs of its own: Synthetic(α, β). Li et al., MLSys 2020 (1812.06127)

    Client k's labels are argmax(W_k x + b_k), the entries of W_k and b_k normal around u_k ~ N(0, alpha²); its inputs
    are normal around v_k, whose entries are normal around B_k ~ N(0, beta²), with variances j^-1.2. beta is how much
    the inputs differ. alpha is meant to be how much the models do, but u_k moves the scores of all classes alike, so
    that no label depends on it: what makes models differ is that each is drawn afresh. A client has 50 examples and a
    log-normal number more (of mean 4 and deviation `spread` of the logarithm), every tenth of them for testing. As the
    authors' code (litian96/FedProx) has it, where alpha and beta are standard deviations and clients are 30. `seed`
    decides the data; it is not the run's seed, so all seeds of an experiment see the same data. Use the partition
    `natural`.
    """

    alpha: float = 1.0
    beta: float = 1.0
    clients: int = 30
    spread: float = 2.0
    dimension: int = 60
    classes: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "spread"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be at least 0, got {value}")
        for name, least in (("clients", 1), ("dimension", 1), ("classes", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")

    def load(self, folder: Path | None = None) -> Dataset:
        """inputs [N, dimension] float32."""
        import torch

        rng = np.random.default_rng(keyed.seed(self.seed, "synthetic"))
        sizes = rng.lognormal(4, self.spread, self.clients).astype(np.int64) + 50
        u = rng.normal(0, self.alpha, self.clients)
        around = rng.normal(0, self.beta, self.clients)
        deviation = np.arange(1, self.dimension + 1) ** -0.6
        parts: list[list[Any]] = [[], [], [], []]
        natural, begin = [], 0
        for size, centre, middle in zip(sizes, u, around, strict=True):
            v = rng.normal(middle, 1, self.dimension)
            W, b = rng.normal(centre, 1, (self.dimension, self.classes)), rng.normal(centre, 1, self.classes)
            x = v + deviation * rng.standard_normal((size, self.dimension))
            y = (x @ W + b).argmax(1)
            train = int(0.9 * size)  # of independent examples, so the last are as good as any
            for part, values in zip(parts, (x[:train], y[:train], x[train:], y[train:]), strict=True):
                part.append(values)
            natural.append(np.arange(begin, begin + train))
            begin += train
        inputs, targets, test_inputs, test_targets = (torch.from_numpy(np.concatenate(part)) for part in parts)
        return Dataset(
            "synthetic", inputs.float(), targets, test_inputs.float(), test_targets, self.classes,
            natural=tuple(natural),
        )  # fmt: skip
