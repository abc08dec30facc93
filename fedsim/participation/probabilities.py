"""How likely each client is to take part, and what that has to do with its data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fedsim import keyed
from fedsim.participation.checks import Floats, choice, number


class Probabilities(ABC):
    """How likely each client is to take part."""

    @abstractmethod
    def draw(self, n: int, seed: int, histogram: Any = None, sizes: Any = None) -> Floats:
        """[n] float64 in 0..1; histogram is [n, C] examples of each class, sizes [n] examples of each client."""


@dataclass(frozen=True)
class Equal(Probabilities):
    """The same probability p for every client."""

    p: float = 0.1

    def __post_init__(self) -> None:
        number("p", self.p, 0, 1)

    def draw(self, n: int, seed: int, histogram: Any = None, sizes: Any = None) -> Floats:
        return np.full(n, float(self.p))


@dataclass(frozen=True)
class LabelCorrelated(Probabilities):
    """Clients that hold popular classes take part more often. Wang and Ji, ICLR 2024 (2306.03401)

    p_i = min(1, max(floor, mean · C · ⟨κ_i, q⟩)), κ_i the class shares of client i, q ~ Dirichlet(alpha · 1_C) drawn
    once per seed. With balanced classes the expectation before the floor is `mean`. From IBM/fedau, which has no cap
    at 1; needs the class histogram of the clients (ValueError without).
    """

    mean: float = 0.1
    floor: float = 0.02
    alpha: float = 0.1

    def __post_init__(self) -> None:
        number("mean", self.mean, 0, 1)
        number("floor", self.floor, 0, 1)
        number("alpha", self.alpha, 0, open_below=True)

    def draw(self, n: int, seed: int, histogram: Any = None, sizes: Any = None) -> Floats:
        kappa = shares(n, histogram, "label-correlated")
        classes = kappa.shape[1]
        generator = np.random.default_rng(keyed.seed(seed, "participation", "label-correlated"))
        popular = generator.dirichlet(np.full(classes, float(self.alpha)))
        return np.asarray(np.clip(self.mean * classes * kappa @ popular, self.floor, 1.0))


@dataclass(frozen=True)
class TwoGroups(Probabilities):
    """The first clients take part often, the rest seldom. Rodio and Neglia, 2024 (2405.04171)

    The first round(share · n) clients have probability `fast`, the others `slow`. From arodio/FedStale: halves of 1.0
    and 0.5.
    """

    fast: float = 1.0
    slow: float = 0.5
    share: float = 0.5

    def __post_init__(self) -> None:
        for name in ("fast", "slow", "share"):
            number(name, getattr(self, name), 0, 1)

    def draw(self, n: int, seed: int, histogram: Any = None, sizes: Any = None) -> Floats:
        return np.where(np.arange(n) < round(self.share * n), float(self.fast), float(self.slow))


@dataclass(frozen=True)
class LabelIndexed(Probabilities):
    """Clients with low labels take part seldom, an adversary's choice. Gu et al., NeurIPS 2021 (2106.04159)

    p_i = floor + (1 - floor) · c_i / (C - 1): c_i is the smallest class client i holds (label = "smallest"), or the one
    it holds most of, the lower of two alike (label = "dominating", for Dirichlet partitions). From
    hmgxr128/MIFA_code, where floor is 0.1, 0.2, ...; needs the class histogram of the clients (ValueError without).
    """

    floor: float = 0.1
    label: Literal["smallest", "dominating"] = "smallest"

    def __post_init__(self) -> None:
        number("floor", self.floor, 0, 1)
        choice("label", self.label, "smallest", "dominating")

    def draw(self, n: int, seed: int, histogram: Any = None, sizes: Any = None) -> Floats:
        kappa = shares(n, histogram, "label-indexed")
        first = (kappa > 0).argmax(1) if self.label == "smallest" else kappa.argmax(1)
        return np.asarray(self.floor + (1 - self.floor) * first / max(1, kappa.shape[1] - 1))


@dataclass(frozen=True)
class ClassRates(Probabilities):
    """Every class has a rate, a client the mean of those it holds. Xiang et al., NeurIPS 2024 (2409.17446)

    p_i = ⟨κ_i, φ⟩, κ_i the class shares of client i; φ_c ~ U(0, first) for the first half of the classes, U(0, second)
    for the others, once per seed. Needs the class histogram of the clients (ValueError without).
    """

    first: float = 1.0
    second: float = 0.5

    def __post_init__(self) -> None:
        number("first", self.first, 0, 1)
        number("second", self.second, 0, 1)

    def draw(self, n: int, seed: int, histogram: Any = None, sizes: Any = None) -> Floats:
        kappa = shares(n, histogram, "class-rates")
        classes = kappa.shape[1]
        most = np.where(np.arange(classes) < (classes + 1) // 2, float(self.first), float(self.second))
        generator = np.random.default_rng(keyed.seed(seed, "participation", "class-rates"))
        return np.asarray(np.clip(kappa @ (most * generator.random(classes)), 0.0, 1.0))


@dataclass(frozen=True)
class SizeCorrelated(Probabilities):
    """Clients with more examples take part more often; with a negative power, less often.

    p_i = min(1, max(floor, mean · s_i / mean of s)), s_i = (number of examples)^power; before floor and cap the average
    is `mean`. Needs the sizes of the clients (ValueError without).
    """

    mean: float = 0.1
    floor: float = 0.02
    power: float = 1.0

    def __post_init__(self) -> None:
        number("mean", self.mean, 0, 1)
        number("floor", self.floor, 0, 1)
        number("power", self.power, -10, 10)

    def draw(self, n: int, seed: int, histogram: Any = None, sizes: Any = None) -> Floats:
        found = examples(n, sizes, "size-correlated probabilities")
        if self.power < 0 and not found.all():
            raise ValueError(f"client {int(found.argmin())} has no examples, so no negative power of their number")
        scaled = (found / found.max()) ** self.power
        return np.asarray(np.clip(self.mean * scaled / scaled.mean(), self.floor, 1.0))


PROBABILITIES: dict[str, type[Probabilities]] = {
    "equal": Equal,
    "two-groups": TwoGroups,
    "label-correlated": LabelCorrelated,
    "label-indexed": LabelIndexed,
    "class-rates": ClassRates,
    "size-correlated": SizeCorrelated,
}


def shares(n: int, histogram: Any, name: str) -> Floats:
    """[n, C] class shares, every row of which sums to 1, from counts or shares. Raises ValueError if there are none."""
    if histogram is None:
        raise ValueError(f"{name} probabilities need the clients' labels; use a classification task")
    counts = np.asarray(histogram, dtype=np.float64)
    if counts.ndim != 2 or len(counts) != n or counts.shape[1] < 1:
        raise ValueError(f"the class histogram has shape {counts.shape} but there are {n} clients; give [n, classes]")
    if not np.all(np.isfinite(counts)) or np.any(counts < 0):
        raise ValueError("the class histogram holds a negative number or NaN; give counts or shares")
    total = counts.sum(1, keepdims=True)
    if not total.all():
        empty = int(np.flatnonzero(total[:, 0] == 0)[0])
        raise ValueError(f"client {empty} has no examples, so no {name} probability; give it at least one")
    return np.asarray(counts / total)


def examples(n: int, sizes: Any, what: str) -> Floats:
    """[n] numbers of examples. Raises ValueError if they are missing, of another length, or not sizes."""
    if sizes is None:
        raise ValueError(f"{what} need the clients' numbers of examples; pass sizes, one for each client")
    found = np.asarray(sizes, dtype=np.float64)
    if found.shape != (n,):
        raise ValueError(f"sizes has shape {found.shape} but there are {n} clients; give one for each")
    if not np.all(np.isfinite(found)) or np.any(found < 0) or not found.any():
        raise ValueError("sizes must be numbers of at least 0, not all 0")
    return found
