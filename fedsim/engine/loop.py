"""One client after another: the plain way, for models that do not batch, and the baseline to beat."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedsim import keyed
from fedsim.engine.cohort import is_number, per_client
from fedsim.engine.plan import Answer, counted, counts, ends, refuse, sizes, spans, width
from fedsim.engine.stacked import EXAMPLES
from fedsim.strategy import Work

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.local import LocalSGD
    from fedsim.task import Task


@dataclass(frozen=True)
class Loop:
    """Trains one client at a time with torch's autograd."""

    def __call__(
        self, task: Task, who: Tensor, work: Work, keys: Tensor, local: LocalSGD, t: int = 0,
        effort: Tensor | None = None,
    ) -> Answer:  # fmt: skip
        import torch

        refuse(work, local)
        k = len(who)
        steps = counts(task, who, local, effort, t)
        used = sizes(task, who, local, t)
        delta = torch.empty_like(work.start, memory_format=torch.contiguous_format)
        loss = torch.empty(k, dtype=task.dtype, device=delta.device)
        told: dict[str, list[Tensor]] = {name: [] for name in work.ask if name != "velocity" or local.momentum}
        for j, client in enumerate(who.tolist()):
            at = torch.tensor([j], device=delta.device)
            mine = rows_of(task, client)
            if "gradient-at-start" in told or "loss-at-start" in told:
                slope, value = whole(task, work.start[j], mine)
                for name, answer in (("gradient-at-start", slope), ("loss-at-start", value)):
                    if name in told:
                        told[name].append(answer)
            y = work.start[j].clone()
            shift, scale, mu = (squeeze(per_client(value, at)) for value in (work.shift, work.scale, work.mu))
            against = squeeze(per_client(work.against, at))
            velocity = None
            if local.momentum:
                velocity = torch.zeros_like(y) if work.velocity is None else work.velocity[j].clone()
            raw = torch.zeros_like(y) if "mean-gradient" in told else None
            stops, phase = ends(work.phases, steps[j]) if work.phases else [], None
            lost, seen = torch.zeros((), dtype=task.dtype, device=y.device), 0
            for s in range(steps[j]):
                here = batch_rows(task, local, mine[: used[j]], keys[j], s)
                g, value = slope_of(task, y, here, keyed.fold(keys[j], "step", s))
                lost, seen = lost + value * len(here), seen + len(here)
                if stops:
                    phase = work.phases[bisect.bisect_right(stops, s)]
                    g = torch.where(phase.free, g, 0.0)
                if local.clip is not None:
                    g = g * (local.clip / g.norm().clamp(min=1e-12)).clamp(max=1.0)
                if local.weight_decay:
                    g = g + local.weight_decay * y
                if raw is not None and (phase is None or phase.counts):
                    raw = raw + g
                if not is_number(scale, 1.0):
                    g = g * scale
                if work.other is not None:
                    second, _ = slope_of(task, work.other[j], here, keyed.fold(keys[j], "step", s))
                    g = g - against * (second + local.weight_decay * work.other[j])
                if not is_number(mu, 0.0):
                    g = g + mu * (y - work.start[j])
                if not is_number(shift, 0.0):
                    g = g + shift
                if velocity is not None:
                    g = local.momentum * velocity + g
                    velocity = g if phase is None else torch.where(phase.free, g, velocity)
                y = y - local.lr_at(t) * (g if phase is None else torch.where(phase.free, g, 0.0))
            delta[j] = y - work.start[j]
            loss[j] = lost / max(seen, 1)
            if raw is not None:
                told["mean-gradient"].append(raw / max(counted(work, steps[j : j + 1])[0], 1))
            if "velocity" in told and velocity is not None:
                told["velocity"].append(velocity)
        answers = {name: torch.stack(rows) for name, rows in told.items() if rows}
        return Answer(who, delta, spans(local, steps, t, work), loss, answers)


def rows_of(task: Task, client: int) -> Tensor:
    """The client's places in the pool [n_i]."""
    return task.rows[task.firsts[client] : task.firsts[client] + task.sizes[client]]


def batch_rows(task: Task, local: LocalSGD, mine: Tensor, key: Tensor, s: int) -> Tensor:
    """The places in the pool that make minibatch s, without padding."""
    import torch

    batch, size = width(task, local), len(mine)
    per_epoch = -(-size // batch)
    begin = s % per_epoch * batch
    position = torch.arange(begin, min(begin + batch, size), device=mine.device)
    order = keyed.fold(key, "epoch", s // per_epoch)
    return mine[keyed.shuffled(order, position, torch.full_like(order, size))]


def slope_of(task: Task, y: Tensor, here: Tensor, key: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gradient [P] and mean loss [] over the examples `here` [b]."""
    import torch

    params = {name: view.detach().requires_grad_() for name, view in task.layout.views(y).items()}
    value = task.losses(params, task.inputs[here], task.targets[here], key).mean()
    slopes = torch.autograd.grad(value, list(params.values()))
    return torch.cat([g.reshape(-1) for g in slopes]), value.detach()


def whole(task: Task, y: Tensor, mine: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient [P] and loss [] over all of a client's data, without dropout."""
    slope, value = 0.0 * y, y.new_zeros(())
    for here in mine.split(EXAMPLES):
        g, lost = slope_of(task, y, here, None)
        slope, value = slope + g * (len(here) / len(mine)), value + lost * (len(here) / len(mine))
    return slope, value


def squeeze(value: Tensor | float) -> Tensor | float:
    """A client's own share of something that broadcast against [k, P]."""
    return value if isinstance(value, (int, float)) or value.ndim < 2 else value[0]
