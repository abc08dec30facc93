"""The whole cohort as one batched program: clients on the leading axis of every tensor, in lanes of a fixed number.

A chunk of c lanes trains c clients at once; where a client has taken its last step the next one gets in, so clients of
unequal size waste nothing but the end. Idle lanes are padding of zero weight and the shapes never change, so with
chunk, threads and dtype fixed a client's numbers are bit-identical whoever trains beside it.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from fedsim.engine import rooms, workers
from fedsim.engine.plan import Answer, Job, counts, deal, minibatches, refuse, sizes, spans, width
from fedsim.strategy import Work

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.local import LocalSGD
    from fedsim.task import Task

EXAMPLES = 256  # in a pass over a client's whole data
CACHE = 48 * 2**20  # bytes a chunk may fill on a CPU: about where networks of 10^5 parameters run fastest
NEAR = 5 * 2**20  # bytes of models and gradients beyond which a CPU's lanes are slower: 4 models of 159,010 parameters
SEGMENT = 64  # steps whose minibatches are planned at once


@dataclass(frozen=True)
class Stacked:
    """Trains a cohort in `chunk` lanes under torch.func.vmap. `choose` finds a chunk that fits a memory budget."""

    chunk: int = 8

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {self.chunk}")

    def __call__(
        self, task: Task, who: Tensor, work: Work, keys: Tensor, local: LocalSGD, t: int = 0,
        effort: Tensor | None = None,
    ) -> Answer:  # fmt: skip
        return self.together([Job(task, who, work, keys, local, t, effort)])[0]

    def together(self, jobs: Sequence[Job]) -> list[Answer]:
        """Cohorts of many runs at once. Those on one task whose steps are alike (see `kind`) share the lanes, whatever
        their learning rates and numbers of steps; what each gets is bit for bit what it gets alone."""
        groups: dict[tuple[Any, ...], list[int]] = {}
        for i, job in enumerate(jobs):
            refuse(job.work, job.local)
            groups.setdefault(kind(job), []).append(i)
        answers: dict[int, Answer] = {}
        for members in groups.values():
            answers.update(zip(members, self._train([jobs[i] for i in members]), strict=True))
        return [answers[i] for i in range(len(jobs))]

    def _train(self, jobs: Sequence[Job]) -> list[Answer]:
        """Cohorts on one task whose steps are alike, as one of K clients."""
        import torch

        task, local = jobs[0].task, jobs[0].local
        each = [counts(job.task, job.who, job.local, job.effort, job.t) for job in jobs]
        used = [size for job in jobs for size in sizes(job.task, job.who, job.local, job.t)]
        steps = list(itertools.chain.from_iterable(each))
        rates = [one.local.lr_at(one.t) for one in jobs for _ in one.who]
        bank, at_bank = starts(jobs)
        delta = torch.zeros((len(steps), bank.shape[1]), dtype=bank.dtype, device=task.device)
        velocity = last_velocity = None
        if local.momentum:
            velocity = joined([
                torch.zeros((len(one.who), bank.shape[1]), dtype=bank.dtype, device=task.device)
                if one.work.velocity is None else one.work.velocity for one in jobs
            ])  # fmt: skip
            if any("velocity" in one.work.ask for one in jobs):
                last_velocity = torch.zeros_like(delta)
        raw = torch.zeros_like(delta) if any("mean-gradient" in one.work.ask for one in jobs) else None
        second = None if jobs[0].work.other is None else second_of(jobs)
        cohort = Cohort(
            task, local, is_plain(jobs[0]), steps, torch.tensor(used, dtype=torch.int64).to(task.device),
            joined([one.who for one in jobs]).to(task.device), joined([one.keys for one in jobs]), bank, at_bank,
            merged(jobs), torch.tensor(rates, dtype=task.dtype).to(task.device), velocity, delta,
            torch.zeros(len(steps), dtype=task.dtype, device=task.device), last_velocity, raw, second,
        )  # fmt: skip
        dealt = workers.shares(steps, self.chunk, task.device)
        workers.each(lambda members: self._fitting(cohort, members), dealt, task.device)

        if raw is not None:
            raw /= torch.tensor(steps, dtype=raw.dtype).to(raw.device)[:, None]
        answers, begin = [], 0
        for one, taken in zip(jobs, each, strict=True):
            mine = slice(begin, begin + len(taken))
            begin += len(taken)
            told: dict[str, Tensor] = {}
            if "velocity" in one.work.ask and last_velocity is not None:
                told["velocity"] = last_velocity[mine]
            if "mean-gradient" in one.work.ask and raw is not None:
                told["mean-gradient"] = raw[mine]
            if one.work.ask & {"gradient-at-start", "loss-at-start"}:
                told |= self._at_start(task, one.who, one.work)
            span = spans(one.local, taken, one.t, one.work)
            answers.append(Answer(one.who, delta[mine], span, cohort.loss[mine], told))
        return answers

    def _fitting(self, cohort: Cohort, members: list[int]) -> None:
        """`_turns`, in fewer lanes where the device has no memory for so many. Says so: the numbers are then those of
        the smaller chunk, which are the same to rounding."""
        import torch

        fewer = self
        while True:
            try:
                return fewer._turns(cohort, members)
            except torch.OutOfMemoryError:
                if fewer.chunk == 1:
                    raise
                fewer = Stacked(fewer.chunk // 2)
                rooms.clear()
                what = f"{cohort.task.device} has no memory for {2 * fewer.chunk} clients side by side"
                warnings.warn(f"{what}; going on with {fewer.chunk} (set chunk = {fewer.chunk})", stacklevel=2)

    def _turns(self, cohort: Cohort, members: list[int]) -> None:
        """Trains these clients of a cohort in the lanes of one room, and writes down how far each moved, its loss and
        its last velocity."""
        import torch

        task, local, work, bank, device = cohort.task, cohort.local, cohort.work, cohort.bank, cohort.task.device
        lanes = Lanes([cohort.steps[j] for j in members], self.chunk)
        who = torch.tensor(members).to(device)
        job, tau = who[lanes.job.to(device)], lanes.tau.to(device)  # [c, S]
        active = tau >= 0
        clients = cohort.who[job]
        batch = width(task, local)
        room = rooms.take(task, self.chunk, batch, cohort.plain)
        y = room.y.copy_(bank[cohort.at_bank[job[:, 0]]])  # [c, P]
        velocity = None if cohort.velocity is None else cohort.velocity[job[:, 0]]
        flat = None if cohort.plain else torch.empty_like(y)
        at = job[:, 0]  # [c]  whom each lane trains
        raw = None if cohort.raw is None else torch.zeros_like(y)  # [c, P]  its gradients so far

        values = torch.zeros((self.chunk, lanes.length), dtype=task.dtype, device=device)  # [c, S]
        number = torch.zeros_like(values)  # [c, S]  examples counted; 0 where a lane is idle
        for begin in range(0, lanes.length, SEGMENT):
            cut = slice(begin, min(begin + SEGMENT, lanes.length))
            here = clients[:, cut]
            place, counted, step_keys = minibatches(
                cohort.keys[job[:, cut]], cohort.sizes[job[:, cut]], task.first[here], tau[:, cut].clamp(min=0),
                active[:, cut], batch,
            )  # fmt: skip
            pool = task.rows[place]  # [c, S, b]
            count = counted.sum(-1)  # [c, S]
            weight = counted.to(task.dtype) / count.clamp(min=1)[..., None]
            rate = cohort.rates[job[:, cut]]  # [c, S]
            number[:, cut] = count.to(task.dtype)
            columns = zip(*(each.unbind(1) for each in (pool, weight, step_keys, rate)), strict=True)
            for s, (places, shares, step, lr) in enumerate(columns):
                worth = lr if cohort.plain else None  # a plain step's gradients are taken off times lr
                *slopes, value = room.gradients(places, shares, step, worth)
                values[:, begin + s] = value
                if flat is not None:
                    for view, slope in zip(task.layout.views(flat).values(), slopes, strict=True):
                        view.copy_(slope)
                    if raw is not None:
                        raw.add_(flat)
                        if local.weight_decay:
                            raw.add_(y, alpha=local.weight_decay)
                    start = None if is_number(work.mu, 0.0) else bank[cohort.at_bank[at]]
                    adjust(flat, y, work, start, local, at)
                    if cohort.second is not None:
                        against = cohort.second.against[at]
                        here_y, there = y.clone(), cohort.second.bank[cohort.second.at_bank[at]]
                        y.copy_(there)  # the room's gradients are those at y
                        *slopes, _ = room.gradients(pool[:, s], weight[:, s], step_keys[:, s], None)
                        y.copy_(here_y)
                        if local.weight_decay:
                            flat.sub_(against * local.weight_decay * there)
                        for view, slope in zip(task.layout.views(flat).values(), slopes, strict=True):
                            view.sub_(against.view(-1, *[1] * (slope.ndim - 1)) * slope)
                    if velocity is not None:
                        velocity.mul_(local.momentum).add_(flat)
                    y.sub_(torch.mul(flat if velocity is None else velocity, lr[:, None], out=flat))
                changes = lanes.changes(begin + s)
                if changes[0]:  # lanes whose client has taken its last step; the next one gets in
                    over, done, going, following = (torch.tensor(i, dtype=torch.int64).to(device) for i in changes)
                    done, following = who[done], who[following]
                    cohort.delta[done] = y[over] - bank[cohort.at_bank[done]]
                    if cohort.last_velocity is not None and velocity is not None:
                        cohort.last_velocity[done] = velocity[over]
                    if cohort.raw is not None and raw is not None:
                        cohort.raw[done] = raw[over]
                        raw[going] = 0.0
                    y[going] = bank[cohort.at_bank[following]]
                    if velocity is not None and cohort.velocity is not None:
                        velocity[going] = cohort.velocity[following]
                    at = at.index_copy(0, going, following)
        rooms.give_back(room)

        sums = torch.zeros((2, len(members)), dtype=task.dtype, device=device)
        if lanes.length:
            sums.index_add_(1, lanes.job.to(device).reshape(-1), torch.stack([values * number, number]).reshape(2, -1))
        cohort.loss[who] = sums[0] / sums[1].clamp(min=1)

    def _at_start(self, task: Task, who: Tensor, work: Work) -> dict[str, Tensor]:
        """Gradient [k, P] and loss [k] of each client's whole data at its start, without dropout, as far as asked."""
        import torch

        gradient = rooms.gradients(task, dropout=False)
        slope = torch.zeros_like(work.start, memory_format=torch.contiguous_format)
        loss = torch.zeros(len(who), dtype=task.dtype, device=slope.device)
        sizes = [task.sizes[i] for i in who.tolist()]
        order = sorted(range(len(who)), key=sizes.__getitem__, reverse=True)
        for begin in range(0, len(who), self.chunk):
            members = order[begin : begin + self.chunk]
            padded = torch.tensor(members + members[:1] * (self.chunk - len(members)))
            clients, at = who[padded].to(slope.device), padded.to(slope.device)
            size, first = task.size[clients], task.first[clients]
            start = task.layout.views(work.start[at])
            keys, real = torch.zeros_like(clients), at[: len(members)]
            for position in torch.arange(sizes[members[0]], device=slope.device).split(EXAMPLES):
                counted = position < size[:, None]
                pool = task.rows[first[:, None] + torch.where(counted, position, 0)]
                weight = counted.to(task.dtype) / size[:, None]
                part, value = gradient(start, task.inputs[pool], task.targets[pool], weight, keys, None)
                slope[real] += task.layout.stack(part)[: len(members)]
                loss[real] += value[: len(members)]
        return {
            name: told for name, told in (("gradient-at-start", slope), ("loss-at-start", loss)) if name in work.ask
        }


class Cohort(NamedTuple):
    """Clients to train, and what comes of it."""

    task: Task
    local: LocalSGD
    plain: bool  # see `is_plain`
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


class Second(NamedTuple):
    """Second points of K clients."""

    bank: Tensor  # [m, P]  distinct ones,
    at_bank: Tensor  # [K]     and which of them each has
    against: Tensor  # [K, 1]  what their gradients are multiplied by, to be taken off


class Lanes:
    """Who is trained when: `chunk` lanes side by side, each with one client after the other, loads evened out.

    job [c, S] says which of the k clients a lane trains at a step, tau [c, S] that client's own step (-1: the lane is
    idle, padding). A client's steps are consecutive and in one lane.
    """

    def __init__(self, steps: list[int], chunk: int) -> None:
        import torch

        lanes = deal(steps, chunk)
        self.length = max(sum(steps[j] for j in members) for members in lanes)
        self.job = torch.zeros((chunk, max(self.length, 1)), dtype=torch.int64)
        self.tau = torch.full_like(self.job, -1)
        self._changes: dict[int, list[tuple[int, int, int]]] = {}
        for lane, members in enumerate(lanes):
            s = 0
            for j, following in zip(members, [*members[1:], -1], strict=False):
                self.job[lane, s : s + steps[j]] = j
                self.tau[lane, s : s + steps[j]] = torch.arange(steps[j])
                s += steps[j]
                self._changes.setdefault(s - 1, []).append((lane, j, following))

    def changes(self, s: int) -> tuple[list[int], list[int], list[int], list[int]]:
        """After step s: lanes whose client is done, those clients; lanes that go on with another, and with whom."""
        ended = self._changes.get(s, [])
        going = [(lane, following) for lane, _, following in ended if following >= 0]
        return [e[0] for e in ended], [e[1] for e in ended], [g[0] for g in going], [g[1] for g in going]


def is_plain(job: Job) -> bool:
    """Whether a cohort's step is y <- y - lr * gradient and nothing else."""
    local, work = job.local, job.work
    plain = not (local.momentum or local.weight_decay or local.clip or "mean-gradient" in work.ask)
    return (
        plain
        and work.other is None
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
        job.work.other is None,
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
    import torch

    points = [job.work.other for job in jobs if job.work.other is not None]
    against = torch.cat([points[0].new_full((len(job.who), 1), job.work.against) for job in jobs])
    return Second(*distinct(points), against)


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


def merged(jobs: Sequence[Job]) -> Work:
    """The work of K clients, without starts: numbers where all have the same number, else a row for each."""
    import torch

    works = [job.work for job in jobs]
    sizes = [len(job.who) for job in jobs]
    found: dict[str, Any] = {}
    for name in ("shift", "scale", "mu"):
        given = [getattr(work, name) for work in works]
        if len(jobs) == 1 or (isinstance(given[0], (int, float)) and all(is_number(v, given[0]) for v in given[1:])):
            found[name] = given[0]
            continue
        like = works[0].start
        parts = [torch.as_tensor(value, dtype=like.dtype).to(like.device) for value in given]
        columns = max(part.shape[-1] if part.ndim else 1 for part in parts)
        found[name] = torch.cat([part.expand(k, columns) for part, k in zip(parts, sizes, strict=True)])
    return Work(works[0].start, **found)


def adjust(flat: Tensor, y: Tensor, work: Work, start: Tensor | None, local: LocalSGD, at: Tensor) -> None:
    """Turns batch gradients [c, P] of the clients `at` [c], who began at `start` [c, P] (None: nothing pulls them
    back), into the direction of the affine step, in place."""
    if local.clip is not None:
        flat *= (local.clip / flat.norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(max=1.0)
    if local.weight_decay:
        flat.add_(y, alpha=local.weight_decay)
    if not is_number(work.scale, 1.0):
        flat *= per_client(work.scale, at)
    if start is not None:
        flat += per_client(work.mu, at) * (y - start)
    if not is_number(work.shift, 0.0):
        flat += per_client(work.shift, at)


def per_client(value: Tensor | float, at: Tensor) -> Tensor | float:
    """The rows `at` of something that broadcasts against [k, P]."""
    return value[at] if not isinstance(value, (int, float)) and value.ndim == 2 and len(value) > 1 else value


def is_number(value: Tensor | float, number: float) -> bool:
    """Whether it is that very number, without looking into a tensor."""
    return isinstance(value, (int, float)) and value == number


def choose(task: Task, local: LocalSGD, cohort: float, memory: int = 2**30) -> Stacked:
    """A stacked engine for cohorts of that typical size whose chunk fits `memory` bytes: decided once, then fixed.

    Counted are a client's vectors and the activations that one forward pass keeps for the backward pass. More lanes
    than the longest client's turn leaves work for would idle. A CPU gains nothing from more than 32, loses where models
    and gradients outgrow its caches, and has no good convolution for several models at once: those train one by one.
    There, clients are dealt to as many workers as torch has threads, and to lanes that all have the same to do.
    """
    import torch

    from fedsim.engine.plan import activations

    kept, convolves = activations(task, width(task, local))
    vectors = 5 + 2 * bool(local.momentum)
    model = task.layout.size * task.dtype.itemsize
    each = vectors * model + 2 * kept
    steps = [local.count(size) for size in task.sizes]
    useful = cohort * (sum(steps) / len(steps)) / max(steps)
    most = 512
    if task.device.type == "cpu":
        most = 1 if convolves else max(1, min(32, NEAR // (2 * model)))
        memory, useful = min(memory, CACHE), useful / min(torch.get_num_threads(), workers.MOST)
    most = max(1, min(most, memory // max(each, 1)))
    useful = max(1, round(useful))
    return Stacked(chunk=math.ceil(useful / math.ceil(useful / most)))


def common(task: Task, locals: Iterable[LocalSGD], cohort: float, memory: int) -> Stacked:
    """One engine for several ways of training: the smallest of the chunks that suit each."""
    return min((choose(task, local, cohort, memory) for local in set(locals)), key=lambda engine: engine.chunk)
