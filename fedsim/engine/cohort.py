"""Cohorts of many runs as one: who trains, from where, with what, and what comes of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

from fedsim.engine.plan import Job, ends, width
from fedsim.strategy import Phase, Work

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.local import LocalSGD
    from fedsim.task import Task

LONG = 2**15  # numbers


class Cohort(NamedTuple):
    """Clients to train, and what comes of it."""

    task: Task
    local: LocalSGD
    steps: list[int]  # [K]
    sizes: Tensor  # [K]     how many of its examples each trains on
    who: Tensor  # [K]     whose examples
    keys: Tensor  # [K]
    bank: Tensor  # [m, P]  where they begin: distinct models,
    at_bank: Tensor  # [K]     and which of them each has
    work: Work  # shift, scale and mu, for all or a row for each
    rates: Tensor  # [K]     learning rates
    velocity: Tensor | None  # [K, P]  at the beginning; None: no momentum
    delta: Tensor  # [K, P]  to be filled: how far each moved,
    loss: Tensor  # [K]     its mean loss,
    last_velocity: Tensor | None  # [K, P]  and its velocity at the end, where somebody asked,
    raw: Tensor | None  # [K, P]  and the sum of its gradients, where somebody asked
    second: Second | None  # the points whose gradients count against those at the client's own
    phased: Phased | None  # which parameters stand still when


class Second(NamedTuple):
    """Second points of K clients."""

    bank: Tensor  # [m, P]  distinct ones,
    at_bank: Tensor  # [K]     and which of them each has
    against: Tensor | float  # what their gradients are multiplied by, to be taken off; as `Work.scale`


class Phased(NamedTuple):
    """The phases of K clients' turns."""

    free: Tensor  # [F, P]  bool: which parameters move, of every phase that anybody has;
    counts: Tensor  # [F]     1 where its steps count, else 0
    first: Tensor  # [K]     each client's first phase,
    ends: Tensor  # [K, m]  and before which of its steps its phases end; padded with steps it does not take

    def at(self, job: Tensor, tau: Tensor) -> Tensor:
        """The phases [S, c] in which clients job [S, c] are at their own steps tau [S, c] (-1: idle)."""
        return self.first[job] + (tau[..., None] >= self.ends[job]).sum(-1)


def phased_of(jobs: Sequence[Job], steps: Sequence[Sequence[int]]) -> Phased:
    """The phases of cohorts that have them, whose clients take so many `steps`."""
    import torch

    phases: list[Phase] = []
    first: list[int] = []
    stops: list[list[int]] = []
    for job, each in zip(jobs, steps, strict=True):
        first += [len(phases)] * len(each)
        stops += [ends(job.work.phases, s)[:-1] for s in each]
        phases += job.work.phases
    device, most = jobs[0].task.device, max(map(len, stops), default=0)
    never = max(itertools.chain.from_iterable(steps), default=0) + 1
    padded = [[*mine, *[never] * (most - len(mine))] for mine in stops]
    return Phased(
        torch.stack([phase.free for phase in phases]),
        torch.tensor([float(phase.counts) for phase in phases], dtype=jobs[0].task.dtype).to(device),
        torch.tensor(first).to(device),
        torch.tensor(padded, dtype=torch.int64).reshape(len(padded), most).to(device),
    )


def is_plain(job: Job) -> bool:
    """Whether a cohort's step is y <- y - lr * gradient and nothing else."""
    local, work = job.local, job.work
    plain = not (local.momentum or local.weight_decay or local.clip or "mean-gradient" in work.ask)
    return (
        plain
        and work.other is None
        and not work.phases
        and is_number(work.mu, 0.0)
        and is_number(work.shift, 0.0)
        and is_number(work.scale, 1.0)
    )


def kind(job: Job) -> tuple[Any, ...]:
    """What cohorts must have in common to share the lanes; the rest (learning rate, number of steps, mu, shift, scale)
    is a client's own."""
    local = job.local
    return (
        id(job.task), width(job.task, local), is_plain(job), local.momentum, local.weight_decay, local.clip,
        job.work.other is None, not job.work.phases,
    )  # fmt: skip


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Tensors one after the other; of one, itself."""
    import torch

    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def starts(jobs: Sequence[Job]) -> tuple[Tensor, Tensor]:
    """Where clients begin, as distinct models [m, P] and which of them each has [K]."""
    return distinct([job.work.start for job in jobs])


def second_of(jobs: Sequence[Job]) -> Second:
    """The second points of cohorts that have them."""
    points = [job.work.other for job in jobs if job.work.other is not None]
    return Second(*distinct(points), merged(jobs, ("against",)).against)


def distinct(points: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Models [k, P] of several cohorts as distinct ones [m, P] and which of them each has [K]: a server's model is one
    row, however many get it."""
    import torch

    rows, index, begin = [], [], 0
    for start in points:
        k, shared = len(start), len(start) > 1 and start.stride(0) == 0
        rows.append(start[:1] if shared else start)
        index.append(torch.full((k,), begin) if shared else torch.arange(begin, begin + k))
        begin += len(rows[-1])
    return joined(rows), joined(index).to(points[0].device)


def merged(jobs: Sequence[Job], names: Sequence[str] = ("shift", "scale", "mu")) -> Work:
    """The work of K clients, without starts: numbers where all have the same number, else a row for each."""
    import torch

    works = [job.work for job in jobs]
    sizes = [len(job.who) for job in jobs]
    found: dict[str, Any] = {}
    for name in names:
        given = [getattr(work, name) for work in works]
        if len(jobs) == 1 or (isinstance(given[0], (int, float)) and all(is_number(v, given[0]) for v in given[1:])):
            found[name] = given[0]
            continue
        like = works[0].start
        parts = [torch.as_tensor(value, dtype=like.dtype).to(like.device) for value in given]
        columns = max(part.shape[-1] if part.ndim else 1 for part in parts)
        found[name] = torch.cat([part.expand(k, columns) for part, k in zip(parts, sizes, strict=True)])
    return Work(works[0].start, **found)


def by_client(value: Tensor | float) -> TypeGuard[Tensor]:
    """Whether a term has a row for every client."""
    return not isinstance(value, (int, float)) and value.ndim == 2 and len(value) > 1


def per_client(value: Tensor | float, at: Tensor) -> Tensor | float:
    """The rows `at` of something that broadcasts against [k, P]."""
    return value[at] if by_client(value) else value


def put(into: Tensor, places: Tensor, source: Tensor, rows: Tensor) -> None:
    """into[places] = source[rows], for tables [., P]; on a CPU long rows are copied one by one, without a detour."""
    if by_row(into):
        for place, row in zip(places.tolist(), rows.tolist(), strict=True):
            into[place].copy_(source[row])
    else:
        into.index_copy_(0, places, source.index_select(0, rows))


def put_difference(into: Tensor, places: Tensor, a: Tensor, rows: Tensor, b: Tensor, others: Tensor) -> None:
    """into[places] = a[rows] - b[others], likewise."""
    import torch

    if by_row(into):
        for place, row, other in zip(places.tolist(), rows.tolist(), others.tolist(), strict=True):
            torch.sub(a[row], b[other], out=into[place])
    else:
        into.index_copy_(0, places, a.index_select(0, rows).sub_(b.index_select(0, others)))


def by_row(table: Tensor) -> bool:
    """Whether a table's rows are long enough to be worth a call each."""
    return table.device.type == "cpu" and table.shape[1] >= LONG


def is_number(value: Tensor | float, number: float) -> bool:
    """Whether it is that very number, without looking into a tensor."""
    return isinstance(value, (int, float)) and value == number
