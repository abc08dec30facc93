"""Clients whose answers are known, as engines; and a task made of such clients."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.engine import Answer
from fedsim.engine.plan import counted, ends
from fedsim.local import LocalSGD
from fedsim.strategy import Work
from fedsim.task import Task, make_task


@dataclass(frozen=True, eq=False)
class Frozen:
    """Clients that always answer the same d_i, whatever they are told."""

    d: Tensor  # [n, P]

    def __call__(
        self,
        task: Any,
        who: Tensor,
        work: Work,
        keys: Tensor,
        local: LocalSGD,
        t: int = 0,
        effort: Tensor | None = None,
    ) -> Answer:
        delta = self.d[who].to(work.start.dtype, copy=True)
        k = len(who)
        told = {"loss-at-start": 0.5 * delta.square().sum(1)} if "loss-at-start" in work.ask else {}
        if "gradient-at-start" in work.ask:
            told["gradient-at-start"] = -delta
        if "mean-gradient" in work.ask:
            told["mean-gradient"] = -delta
        return Answer(who, delta, delta.new_full((k,), (local.steps or 1) * local.lr_at(t)), delta.new_zeros(k), told)


@dataclass(frozen=True, eq=False)
class Honest:
    """Clients with F_i(y) = ½ Σ_j a_ij (y_j − b_ij)² that take the steps of `Work`'s docstring, written out plainly."""

    a: Tensor  # [n, P]
    b: Tensor  # [n, P]
    steps: tuple[int, ...] | None = None  # [n]  of each client; None: the local training's

    def __call__(
        self,
        task: Any,
        who: Tensor,
        work: Work,
        keys: Tensor,
        local: LocalSGD,
        t: int = 0,
        effort: Tensor | None = None,
    ) -> Answer:
        lr, start = local.lr_at(t), work.start
        a, b = self.a[who].to(start.dtype), self.b[who].to(start.dtype)
        steps = [self.steps[i] if self.steps else local.steps or 1 for i in who.tolist()]
        y = start.clone()
        v = torch.zeros_like(y) if work.velocity is None else work.velocity.clone()
        second = 0.0 if work.other is None else work.against * a * (work.other - b)
        raw = torch.zeros_like(y)
        for s in range(max(steps, default=0)):
            busy = (torch.tensor(steps) > s)[:, None]
            moves, counts = busy.expand_as(y), busy
            if work.phases:
                now = [work.phases[sum(s >= end for end in ends(work.phases, steps[j])[:-1])] for j in range(len(y))]
                moves = moves & torch.stack([phase.free for phase in now])
                counts = counts & torch.tensor([[phase.counts] for phase in now])
            force = work.scale * a * (y - b) - second + work.mu * (y - start) + work.shift
            raw = raw + torch.where(moves & counts, a * (y - b), 0.0)
            v = torch.where(moves, local.momentum * v + force, v)
            y = torch.where(moves, y - lr * v, y)
        steps = counted(work, steps)
        pulls = torch.as_tensor(work.mu).expand(len(steps), 1)[:, 0].tolist()
        worth = torch.tensor([local.span(s, t, mu) for s, mu in zip(steps, pulls, strict=True)], dtype=y.dtype)
        scale = torch.as_tensor(work.scale, dtype=y.dtype)
        span = None if scale.shape[-1:].numel() > 1 else worth * (scale[..., 0] if scale.ndim else scale)
        told = {"velocity": v} if local.momentum and "velocity" in work.ask else {}
        if "loss-at-start" in work.ask:
            told["loss-at-start"] = 0.5 * (a * (start - b) ** 2).sum(1)
        if "mean-gradient" in work.ask:
            told["mean-gradient"] = raw / torch.tensor(steps, dtype=y.dtype).clamp(min=1)[:, None]
        if "gradient-at-start" in work.ask:
            told["gradient-at-start"] = a * (start - b)
        return Answer(who, y - start, span, y.new_zeros(len(who)), told)


class Bowl(nn.Module):
    """x [P]; its output on an example (a, b) is the loss Σ_j a_j/2 (x_j − b_j)²."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(size, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        """The losses [b] on examples [b, 2 P]."""
        a, b = inputs.chunk(2, dim=1)
        return 0.5 * (a * (self.x - b) ** 2).sum(1)


def quadratics(a: Tensor, b: Tensor) -> Task:
    """A real task: client i holds the one example (a_i, b_i), both [n, P]."""
    n, inputs, targets = len(b), torch.cat([a.expand_as(b), b], dim=1), torch.zeros(len(b), dtype=torch.int64)
    data: Any = SimpleNamespace(
        name="bowls",
        inputs=inputs,
        targets=targets,
        test_inputs=inputs,
        test_targets=targets,
        classes=0,
        mean=None,
        std=None,
    )
    parts: Any = SimpleNamespace(
        rows=torch.arange(n), first=torch.arange(n), size=torch.ones(n, dtype=torch.int64), targets=None, moved=0
    )
    return make_task(data, parts, Bowl(b.shape[1]), dtype=torch.float64)
