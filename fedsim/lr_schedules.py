"""How a learning rate changes from round to round: the clients' in [local], the server's in `ServerLR`.

Every schedule is a factor of the round t = 0, 1, ... and of nothing else, so a run that is resumed goes on as if it had
never stopped. Those that torch.optim.lr_scheduler has too give its factors, a round being one of its steps: Step,
MultiStep, Exponential, Linear, Polynomial, Cosine, CosineRestarts, OneCycle, and WarmUp, which is LinearLR and another
in SequentialLR.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass


class LRSchedule(ABC):
    """A learning rate from round to round."""

    @abstractmethod
    def factor(self, t: int) -> float:
        """What the learning rate is multiplied by in round t = 0, 1, ..."""


@dataclass(frozen=True)
class Constant(LRSchedule):
    """The same learning rate in every round."""

    def factor(self, t: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Inverse(LRSchedule):
    """lr / (1 + decay t)."""

    decay: float = 1.0

    def __post_init__(self) -> None:
        positive("decay", self.decay)

    def factor(self, t: int) -> float:
        return 1.0 / (1.0 + self.decay * t)


@dataclass(frozen=True)
class InverseSqrt(LRSchedule):
    """lr / sqrt(1 + decay t)."""

    decay: float = 0.1

    def __post_init__(self) -> None:
        positive("decay", self.decay)

    def factor(self, t: int) -> float:
        return 1.0 / math.sqrt(1.0 + self.decay * t)


@dataclass(frozen=True)
class Power(LRSchedule):
    """lr / (1 + t)^power."""

    power: float = 0.9

    def __post_init__(self) -> None:
        positive("power", self.power)

    def factor(self, t: int) -> float:
        return float((1.0 + t) ** -self.power)


@dataclass(frozen=True)
class Step(LRSchedule):
    """lr * rate^(t // every)."""

    every: int
    rate: float = 0.5

    def __post_init__(self) -> None:
        positive("every", self.every)
        positive("rate", self.rate)

    def factor(self, t: int) -> float:
        return float(self.rate ** (t // self.every))


@dataclass(frozen=True)
class Cosine(LRSchedule):
    """From lr down to floor * lr along half a cosine over `rounds`, then constant."""

    rounds: int
    floor: float = 0.0

    def __post_init__(self) -> None:
        positive("rounds", self.rounds)
        share("floor", self.floor)

    def factor(self, t: int) -> float:
        done = min(t / self.rounds, 1.0)
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * done))


@dataclass(frozen=True)
class MultiStep(LRSchedule):
    """lr * rate for every milestone in `at` that is reached."""

    at: tuple[int, ...]
    rate: float = 0.1

    def __post_init__(self) -> None:
        positive("rate", self.rate)
        if not self.at or any(t < 0 for t in self.at) or list(self.at) != sorted(set(self.at)):
            raise ValueError(f"at must list rounds from 0, each later than the one before, got {list(self.at)}")

    def factor(self, t: int) -> float:
        return float(self.rate ** sum(t >= milestone for milestone in self.at))


@dataclass(frozen=True)
class Exponential(LRSchedule):
    """lr * rate^t."""

    rate: float = 0.99

    def __post_init__(self) -> None:
        positive("rate", self.rate)

    def factor(self, t: int) -> float:
        return float(self.rate**t)


@dataclass(frozen=True)
class Linear(LRSchedule):
    """From start * lr in a straight line to end * lr over `rounds`, then constant."""

    rounds: int
    start: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        positive("rounds", self.rounds)
        for name in ("start", "end"):
            value = getattr(self, name)
            if not value >= 0 or math.isinf(value):
                raise ValueError(f"{name} must not be negative, got {value}")

    def factor(self, t: int) -> float:
        return self.start + (self.end - self.start) * min(t / self.rounds, 1.0)


@dataclass(frozen=True)
class Polynomial(LRSchedule):
    """lr * (1 - t/rounds)^power, 0 from `rounds` on."""

    rounds: int
    power: float = 1.0

    def __post_init__(self) -> None:
        positive("rounds", self.rounds)
        positive("power", self.power)

    def factor(self, t: int) -> float:
        return float((1.0 - min(t / self.rounds, 1.0)) ** self.power)


@dataclass(frozen=True)
class CosineRestarts(LRSchedule):
    """Half a cosine from lr down to floor * lr, again and again, each `longer` times as long as the one before it.

    Loshchilov & Hutter, ICLR 2017 (1608.03983)
    """

    rounds: int  # of the first
    longer: int = 1
    floor: float = 0.0

    def __post_init__(self) -> None:
        positive("rounds", self.rounds)
        if self.longer < 1:
            raise ValueError(f"longer must be a whole number from 1, got {self.longer}")
        share("floor", self.floor)

    def factor(self, t: int) -> float:
        length = self.rounds
        while t >= length and self.longer > 1:
            t, length = t - length, length * self.longer
        return Cosine(length, self.floor).factor(t % length)


@dataclass(frozen=True)
class OneCycle(LRSchedule):
    """From start * lr up to lr in the first `rise` of the rounds, and down to end * lr in the rest, along half cosines.

    The last of the `rounds` has end * lr, and so has all that follows. Smith & Topin, 2017 (1708.07120)
    """

    rounds: int
    rise: float = 0.3
    start: float = 0.04
    end: float = 4e-6

    def __post_init__(self) -> None:
        if self.rounds < 2:
            raise ValueError(f"rounds must be at least 2, got {self.rounds}")
        if not 0 < self.rise < 1:
            raise ValueError(f"rise must be above 0 and below 1, got {self.rise}")
        share("start", self.start)
        share("end", self.end)

    def factor(self, t: int) -> float:
        peak, last = self.rise * self.rounds - 1, self.rounds - 1
        t = min(t, last)
        if t < peak:
            return _between(self.start, 1.0, t / peak)
        return _between(1.0, self.end, (t - peak) / (last - peak))


@dataclass(frozen=True)
class WarmUp(LRSchedule):
    """From start * lr in a straight line to lr over `rounds`, and then another schedule, from its own round 0."""

    rounds: int = 5
    start: float = 0.1
    then: LRSchedule = Constant()

    def __post_init__(self) -> None:
        positive("rounds", self.rounds)
        share("start", self.start)

    def factor(self, t: int) -> float:
        if t < self.rounds:
            return Linear(self.rounds, self.start, 1.0).factor(t)
        return self.then.factor(t - self.rounds)


SCHEDULES: dict[str, type[LRSchedule]] = {
    "constant": Constant,
    "inverse": Inverse,
    "inverse-sqrt": InverseSqrt,
    "power": Power,
    "step": Step,
    "multi-step": MultiStep,
    "exponential": Exponential,
    "linear": Linear,
    "polynomial": Polynomial,
    "cosine": Cosine,
    "cosine-restarts": CosineRestarts,
    "one-cycle": OneCycle,
    "warm-up": WarmUp,
}


def _between(a: float, b: float, done: float) -> float:
    """From a to b along half a cosine, `done` of the way."""
    return b + (a - b) * 0.5 * (1.0 + math.cos(math.pi * done))


def positive(name: str, value: float) -> None:
    """Refuses what is not a positive finite number."""
    if not value > 0 or math.isinf(value):
        raise ValueError(f"{name} must be positive, got {value}")


def share(name: str, value: float) -> None:
    """Refuses what is not between 0 and 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value}")
