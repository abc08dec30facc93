"""What a client does with its turn: plain SGD over its own minibatches, in one affine step.

    g <- scale * clip(grad f_i(y; batch)) + scale * weight_decay * y + mu (y - start) + shift
    v <- momentum * v + g            (no momentum: v = g)
    y <- y - lr v

which covers FedAvg, FedProx, SCAFFOLD, FedDyn and gradient tracking. As in torch.optim.SGD, without dampening.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedsim.curricula import Curriculum
from fedsim.lr_schedules import Constant, Cosine, Inverse, InverseSqrt, LRSchedule, Power, Step, positive

__all__ = ["Constant", "Cosine", "Inverse", "InverseSqrt", "LRSchedule", "LocalSGD", "Power", "Step"]


@dataclass(frozen=True)
class LocalSGD:
    """A client's turn: `steps` minibatches, or `epochs` passes over its data, whichever is given.

    Every epoch visits each example once, in an order of its own; its last batch may be smaller, and a loss is the mean
    over the batch at hand. `batch=None` takes all of a client's examples at once. Partial work (effort < 1) rounds the
    number of steps up.
    """

    lr: float = 0.1
    steps: int | None = None
    epochs: int | None = None
    batch: int | None = 32
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip: float | None = None  # largest l2 norm of a batch gradient; None: no limit
    lr_schedule: LRSchedule = Constant()
    curriculum: Curriculum | None = None  # None: all of a client's examples from the first round on

    def __post_init__(self) -> None:
        if not 0 <= self.lr <= 3.4e38:
            raise ValueError(f"lr must be from 0 to 3.4e38 (float32 holds no more), got {self.lr}")
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        for name in ("steps", "epochs", "batch"):
            value = getattr(self, name)
            if isinstance(value, str):
                whole = "; None is all of a client's examples" if name == "batch" else ""
                raise ValueError(f"{name} must be a whole number from 1{whole}, got {value!r}")
            if value is not None and (value < 1 or value != int(value) or isinstance(value, bool)):
                raise ValueError(f"{name} must be a whole number from 1, got {value}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {self.momentum}")
        if not self.weight_decay >= 0 or math.isinf(self.weight_decay):
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}")
        if self.clip is not None:
            positive("clip", self.clip)

    def lr_at(self, t: int) -> float:
        """The learning rate of round t."""
        return self.lr * self.lr_schedule.factor(t)

    def used(self, size: int, t: int) -> int:
        """How many of a client's `size` examples it trains on in round t: the first of them."""
        return size if self.curriculum is None else self.curriculum.used(size, t)

    def batches(self, size: int) -> int:
        """Minibatches in an epoch over `size` examples."""
        return 1 if self.batch is None else -(-size // self.batch)

    def count(self, size: int, effort: float = 1.0) -> int:
        """Steps of a client with `size` examples that does `effort` of its work."""
        full = self.steps if self.steps is not None else (self.epochs or 0) * self.batches(size)
        return min(full, math.ceil(effort * full - 1e-6))  # 1e-6: effort is float32

    def span(self, steps: int, t: int, mu: float = 0.0) -> float:
        """The sum of the coefficients with which `steps` gradients enter -delta at scale 1: steps * lr for plain SGD.

        Found by taking the step itself with a constant gradient 1.
        """
        lr, y, v = self.lr_at(t), 0.0, 0.0
        if not mu and not self.momentum:
            return steps * lr
        for _ in range(steps):
            v = self.momentum * v + 1.0 + mu * y
            y -= lr * v
        return -y
