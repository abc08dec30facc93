"""Ordered learning: a client's examples by difficulty, a few at first and more from round to round.

    [local]
    curriculum = { name = "curriculum", rounds = 100, start = 0.2 }     # or "anti-curriculum", "random"

The difficulty of an example is its loss under a reference model, trained beforehand on everybody's examples. Each
client's are put in order, and in round t it trains on the first g(t) of its n_i alone, its minibatches keyed as ever:

    g(t) = n_i (b + (1 − b) f(t / rounds)), at least 1, rounded up       b: `start`; all of them from `rounds` on

with f(u) = u, u², √u, (e¹⁰ᵘ − 1)/(e¹⁰ − 1), 1 + ln(u + e⁻¹⁰)/10 or ⌊u⌋: the kinds of pacing of Wu, Dyer, Neyshabur,
"When Do Curricula Work?", ICLR 2021 (2012.03107). In federated learning: Vahidian et al., "When Do Curricula Work in
Federated Learning?", ICCV 2023 (2212.12712); the orders are theirs, who select clients by difficulty too (strategy
`ClientCurriculum`). They also score by the models of training itself, where here the reference stands still: the order
is found once, so a run that is resumed goes on with the same.
"""

from __future__ import annotations

import math
import weakref
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.task import Task

Pacing = Literal["linear", "quadratic", "root", "exponential", "logarithmic", "step"]


def paced(pacing: Pacing, done: float) -> float:
    """f(u), from 0 at u = 0 to 1 at u = 1 and later."""
    u = min(done, 1.0)
    if pacing == "linear":
        return u
    if pacing == "quadratic":
        return u**2
    if pacing == "root":
        return math.sqrt(u)
    if pacing == "exponential":
        return math.expm1(10 * u) / math.expm1(10)
    if pacing == "logarithmic":
        return min(1 + math.log(u + math.exp(-10)) / 10, 1.0)
    return float(math.floor(u))


@dataclass(frozen=True)
class Curriculum(ABC):
    """In what order, and how fast, a client comes to use all of its examples."""

    rounds: int = 50  # until all are used
    start: float = 0.2  # b, the share that is used in round 0
    pacing: Pacing = "linear"
    steps: int = 200  # of the reference model, on minibatches of all clients' examples
    lr: float = 0.1
    batch: int = 32
    scored: ClassVar[bool] = True  # needs the reference model

    def __post_init__(self) -> None:
        for name in ("rounds", "steps", "batch"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} must be a whole number from 1, got {value}")
        if not 0 <= self.start <= 1:
            raise ValueError(f"start must be between 0 and 1, got {self.start}")
        if not 0 < self.lr <= 3.4e38:
            raise ValueError(f"lr must be above 0 and at most 3.4e38 (float32 holds no more), got {self.lr}")

    def share(self, t: int) -> float:
        """The share of a client's examples that it uses in round t."""
        return self.start + (1 - self.start) * paced(self.pacing, t / self.rounds)

    def used(self, size: int, t: int) -> int:
        """How many of a client's `size` examples it uses in round t."""
        return min(size, max(1, math.ceil(size * self.share(t) - 1e-9)))

    @abstractmethod
    def rank(self, losses: Tensor, key: Tensor) -> Tensor:
        """What examples are put in ascending order of [rows], from their losses [rows] and a key."""


@dataclass(frozen=True)
class EasyFirst(Curriculum):
    """Examples of low loss under a reference model first. See Vahidian et al., ICCV 2023 (2212.12712)"""

    def rank(self, losses: Tensor, key: Tensor) -> Tensor:
        return losses


@dataclass(frozen=True)
class HardFirst(Curriculum):
    """Examples of high loss under a reference model first: the anti-curriculum"""

    def rank(self, losses: Tensor, key: Tensor) -> Tensor:
        return -losses


@dataclass(frozen=True)
class RandomOrder(Curriculum):
    """Examples in an order drawn once: what the pacing does by itself"""

    scored: ClassVar[bool] = False

    def rank(self, losses: Tensor, key: Tensor) -> Tensor:
        import torch

        from fedsim import keyed

        return keyed.uniform(key, torch.arange(len(losses), device=losses.device))


NAMES: dict[str, type[Curriculum]] = {"curriculum": EasyFirst, "anti-curriculum": HardFirst, "random": RandomOrder}

_FOUND: weakref.WeakKeyDictionary[Task, dict[tuple[Curriculum, int], Task]] = weakref.WeakKeyDictionary()


def reference(task: Task, rule: Curriculum, seed: int = 0) -> Tensor:
    """The reference model [P]: trained on everybody's training examples together."""
    import torch

    from fedsim import keyed
    from fedsim.engine import Loop
    from fedsim.local import LocalSGD
    from fedsim.strategy import Work

    one = task.first.new_tensor([0]), task.size.new_tensor([len(task.rows)])
    pooled = replace(task, first=one[0], size=one[1], held=None)
    local = LocalSGD(lr=rule.lr, steps=rule.steps, batch=rule.batch)
    start = task.fresh(keyed.seed(seed, "curriculum"))
    keys = keyed.fold(seed, "curriculum", one[0])
    answer = Loop()(pooled, torch.zeros(1, dtype=torch.int64), Work(start[None]), keys, local)
    return start + answer.delta[0]


def ordered(task: Task, rank: Tensor) -> Task:
    """The same task with every client's rows in ascending order of rank [rows], those alike as they were."""
    import torch

    owner = torch.repeat_interleave(torch.arange(task.n, device=task.device), task.size)
    order = torch.sort(rank, stable=True).indices
    order = order[torch.sort(owner[order], stable=True).indices]
    return replace(task, rows=task.rows[order])


def arranged(task: Task, rule: Curriculum | None, seed: int = 0) -> Task:
    """The task as a run with that seed trains on it: rows in the curriculum's order (None: as they are). Found once for
    a task.

    Raises ValueError where the reference model diverges.
    """
    import torch

    from fedsim import keyed, measure

    if rule is None:
        return task
    found = _FOUND.setdefault(task, {})
    if (rule, seed) not in found:
        losses = torch.zeros(len(task.rows), dtype=torch.float64, device=task.device)
        if rule.scored:
            losses = measure.example_losses(task, reference(task, rule, seed), task.rows)
            if not bool(torch.isfinite(losses).all()):
                raise ValueError("the curriculum's reference model diverged: lower its lr")
        key = keyed.fold(seed, "curriculum", "order").to(task.device)
        found[rule, seed] = replace(ordered(task, rule.rank(losses, key)), curriculum=rule)
    return found[rule, seed]
