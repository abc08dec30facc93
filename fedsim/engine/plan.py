"""What both engines agree on: the answer, which examples make a minibatch, and what a step is worth."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from fedsim import keyed
from fedsim.strategy import EXTRAS, Phase, Work

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.local import LocalSGD
    from fedsim.task import Task


class Answer(NamedTuple):
    """What came back from a cohort; `who` may be smaller than those asked."""

    who: Tensor  # [k]     on the host, ascending
    delta: Tensor  # [k, P]  end - start
    span: Tensor | None  # [k]     see Round.span
    loss: Tensor  # [k]     mean training loss over the steps taken
    told: Mapping[str, Tensor]  # answers to work.ask, each [k] or [k, P]


class Job(NamedTuple):
    """What an engine is asked: a cohort of one run in one round. `engine(*job)` does it."""

    task: Task
    who: Tensor  # [k]     on the host
    work: Work
    keys: Tensor  # [k]
    local: LocalSGD
    t: int = 0
    effort: Tensor | None = None  # [k]     on the host; None: all do all their work


class Engine(Protocol):
    """Trains a cohort."""

    def __call__(
        self, task: Task, who: Tensor, work: Work, keys: Tensor, local: LocalSGD, t: int = 0,
        effort: Tensor | None = None,
    ) -> Answer: ...  # fmt: skip


def sizes(task: Task, who: Tensor, local: LocalSGD, t: int) -> list[int]:
    """How many of its examples each client [k] trains on in round t, on the host."""
    if local.curriculum is None:
        return [task.sizes[i] for i in who.tolist()]
    if task.curriculum != local.curriculum:
        raise ValueError(
            "the local training has a curriculum and the task's examples are not in its order; give it"
            " curricula.arranged(task, local.curriculum, seed), as simulate does"
        )
    return [local.used(task.sizes[i], t) for i in who.tolist()]


def counts(task: Task, who: Tensor, local: LocalSGD, effort: Tensor | None, t: int = 0) -> list[int]:
    """Steps of every client of the cohort [k] in round t, on the host."""
    share = [1.0] * len(who) if effort is None else effort.tolist()
    return [local.count(size, e) for size, e in zip(sizes(task, who, local, t), share, strict=True)]


def deal(steps: Sequence[int], many: int) -> list[list[int]]:
    """Clients [k] dealt to `many` places, longest first to the least loaded: each place's clients, in their order."""
    dealt: list[list[int]] = [[] for _ in range(many)]
    loads = [(0, place) for place in range(many)]
    for j in sorted(range(len(steps)), key=steps.__getitem__, reverse=True):
        load, place = heapq.heappop(loads)
        dealt[place].append(j)
        heapq.heappush(loads, (load + steps[j], place))
    return dealt


def spans(local: LocalSGD, steps: list[int], t: int, work: Work) -> Tensor | None:
    """Round.span [k] of clients that took `steps`; None with clipping, or where every parameter has its own."""
    import torch

    if local.clip is not None or (not isinstance(work.scale, (int, float)) and work.scale.shape[-1:].numel() > 1):
        return None
    steps = counted(work, steps)
    if isinstance(work.mu, (int, float)):
        worth = {s: local.span(s, t, work.mu) for s in set(steps)}
        span = torch.tensor([worth[s] for s in steps], dtype=work.start.dtype).to(work.start.device)
    else:
        span = pulled(local, steps, t, work.mu).to(work.start.dtype)
    scale = work.scale
    return span * (scale if isinstance(scale, (int, float)) or not scale.ndim else scale[..., 0])


def ends(phases: Sequence[Phase], steps: int) -> list[int]:
    """Before which of a client's `steps` each phase ends."""
    shares = itertools.accumulate(phase.share for phase in phases[:-1])
    return [*(math.floor(share * steps + 1e-6) for share in shares), steps]


def counted(work: Work, steps: list[int]) -> list[int]:
    """How many of their steps [k] count: all, but where there are phases that do not."""
    if not work.phases:
        return steps
    known = {}
    for s in set(steps):
        stops = [0, *ends(work.phases, s)]
        each = zip(work.phases, itertools.pairwise(stops), strict=True)
        known[s] = sum(stop - start for phase, (start, stop) in each if phase.counts)
    return [known[s] for s in steps]


def pulled(local: LocalSGD, steps: list[int], t: int, mu: Tensor) -> Tensor:
    """`LocalSGD.span` [k], float64, of clients that take `steps`, each with its own pull mu [k, 1]; on mu's device."""
    import torch

    mine = mu.expand(len(steps), 1)[:, 0].to(torch.float64)
    left = torch.tensor(steps).to(mine.device)
    y = v = torch.zeros_like(mine)
    for s in range(max(steps, default=0)):
        v = torch.where(left > s, local.momentum * v + 1.0 + mine * y, v)
        y = torch.where(left > s, y - local.lr_at(t) * v, y)
    return -y


def minibatches(
    keys: Tensor, size: Tensor, first: Tensor, s: Tensor, active: Tensor, batch: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Which examples make minibatch number s of a client with that key, size and first row; all [S, c].

    Returns places in task.rows [S, c, batch], which of them count (the rest is padding that points at the client's
    first example; nothing counts where not `active`), and the keys of the steps [S, c].
    """
    import torch

    per_epoch = (size + batch - 1) // batch
    position = (s % per_epoch * batch)[..., None] + torch.arange(batch, device=keys.device)  # [S, c, batch]
    counted = (position < size[..., None]) & active[..., None]
    place = keyed.shuffled(keyed.fold(keys, "epoch", s // per_epoch), position, size)
    place = first[..., None] + torch.where(counted, place, 0)
    return place, counted, keyed.fold(keys, "step", s)


def width(task: Task, local: LocalSGD) -> int:
    """Examples in a padded minibatch: the same in every round, whoever is present."""
    return task.largest if local.batch is None else min(local.batch, task.largest)


def refuse(work: Work, local: LocalSGD) -> None:
    """Work that a client of ours cannot do is refused, never ignored."""
    unknown = work.ask - EXTRAS
    if unknown:
        raise ValueError(f"work asks for {sorted(unknown)}; clients can tell {sorted(EXTRAS)}")
    if work.other is not None and local.clip is not None:
        raise ValueError("work takes gradients at two points, and which of them is clipped is not said: leave out clip")
    if work.phases and not math.isclose(sum(phase.share for phase in work.phases), 1.0):
        raise ValueError(f"the shares of a turn's phases must sum to 1, got {[phase.share for phase in work.phases]}")
    if work.velocity is not None and not local.momentum:
        raise ValueError("work carries a velocity but the local training has no momentum; set momentum in LocalSGD")


def activations(task: Task, batch: int) -> tuple[int, bool]:
    """Bytes that one model's forward pass over a minibatch keeps for the backward pass, and whether it convolves."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watching(TorchDispatchMode):
        convolves = False

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.convolves |= "convolution" in function.__name__
            return function(*args, **(kwargs or {}))

    pool = task.rows[torch.zeros(batch, dtype=torch.int64, device=task.device)]
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    params = {name: view.requires_grad_() for name, view in task.layout.views(task.fresh(0)).items()}
    key = torch.zeros((), dtype=torch.int64, device=task.device)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), Watching() as watching:  # type: ignore[no-untyped-call]
        task.losses(params, task.inputs[pool], task.targets[pool], key)
    return sum(kept.values()), watching.convolves
