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
from typing import TYPE_CHECKING, Any

from fedsim.engine import rooms, workers
from fedsim.engine.cohort import (
    Cohort,
    is_number,
    is_plain,
    joined,
    kind,
    merged,
    per_client,
    phased_of,
    second_of,
    starts,
)
from fedsim.engine.lanes import Plan
from fedsim.engine.plan import Answer, Job, counted, counts, refuse, sizes, spans, width

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.local import LocalSGD
    from fedsim.strategy import Work
    from fedsim.task import Task

EXAMPLES = 256  # in a pass over a client's whole data
CACHE = 48 * 2**20  # bytes a chunk may fill on a CPU: about where networks of 10^5 parameters run fastest
NEAR = 5 * 2**20  # bytes of models and gradients beyond which a CPU's lanes are slower: 4 models of 159,010 parameters


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
        task = jobs[0].task
        each = [counts(job.task, job.who, job.local, job.effort, job.t) for job in jobs]
        dealt = workers.shares(list(itertools.chain.from_iterable(each)), self.chunk, task.device)
        with workers.single(task.device):
            return self._train_each(jobs, each, dealt)

    def _train_each(self, jobs: Sequence[Job], each: list[list[int]], dealt: list[list[int]]) -> list[Answer]:
        """`_train`, knowing how many steps each takes and who does that."""
        import torch

        task, local = jobs[0].task, jobs[0].local
        steps = list(itertools.chain.from_iterable(each))
        used = [size for job in jobs for size in sizes(job.task, job.who, job.local, job.t)]
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
        phased = phased_of(jobs, each) if jobs[0].work.phases else None
        cohort = Cohort(
            task, local, is_plain(jobs[0]), steps, torch.tensor(used, dtype=torch.int64).to(task.device),
            joined([one.who for one in jobs]).to(task.device), joined([one.keys for one in jobs]), bank, at_bank,
            merged(jobs), torch.tensor(rates, dtype=task.dtype).to(task.device), velocity, delta,
            torch.zeros(len(steps), dtype=task.dtype, device=task.device), last_velocity, raw, second, phased,
        )  # fmt: skip
        plans = [Plan(cohort, members, self.chunk) for members in dealt]
        workers.each(lambda plan: self._fitting(cohort, plan), plans, task.device)

        if raw is not None:
            worth = [s for one, taken in zip(jobs, each, strict=True) for s in counted(one.work, taken)]
            raw /= torch.tensor(worth, dtype=raw.dtype).clamp(min=1).to(raw.device)[:, None]
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

    def _fitting(self, cohort: Cohort, plan: Plan) -> None:
        """`_turns`, in fewer lanes where the device has no memory for so many. Says so: the numbers are then those of
        the smaller chunk, which are the same to rounding."""
        import torch

        chunk = self.chunk
        while True:
            try:
                return self._turns(cohort, plan)
            except torch.OutOfMemoryError:
                if chunk == 1:
                    raise
                rooms.clear()
                what = f"{cohort.task.device} has no memory for {chunk} clients side by side"
                chunk //= 2
                warnings.warn(f"{what}; going on with {chunk} (set chunk = {chunk})", stacklevel=2)
                plan = Plan(cohort, plan.who.tolist(), chunk)

    def _turns(self, cohort: Cohort, plan: Plan) -> None:
        """Trains these clients of a cohort in the lanes of one room, and writes down how far each moved, its loss and
        its last velocity."""
        import torch

        task, local, work, bank = cohort.task, cohort.local, cohort.work, cohort.bank
        at = plan.job[:, 0]  # [c]  whom each lane trains
        room = rooms.take(task, len(at), width(task, local), cohort.plain)
        y = room.y.copy_(bank[cohort.at_bank[at]])  # [c, P]
        velocity = None if cohort.velocity is None else cohort.velocity[at]
        flat = None if cohort.plain else torch.empty_like(y)
        beside = None if cohort.second is None else torch.empty_like(y)  # [c, P]  gradients at the second point
        raw = None if cohort.raw is None else torch.zeros_like(y)  # [c, P]  its gradients so far
        values = torch.zeros_like(plan.examples)  # [c, S]
        for s, step in enumerate(plan.steps()):
            # a plain step's gradients are taken off times lr
            *slopes, value = room.gradients(step.places, step.weights, step.keys, step.rates if cohort.plain else None)
            values[:, s] = value
            if flat is not None:
                for view, slope in zip(task.layout.views(flat).values(), slopes, strict=True):
                    view.copy_(slope)
                still = None  # [c, P]  bool
                if cohort.phased is not None and step.phase is not None:
                    still = ~cohort.phased.free[step.phase]
                    flat.masked_fill_(still, 0.0)
                if raw is not None:
                    own = torch.add(flat, y, alpha=local.weight_decay) if local.weight_decay else flat
                    if cohort.phased is not None and step.phase is not None:
                        own = own * cohort.phased.counts[step.phase][:, None]
                    raw.add_(own)
                start = None if is_number(work.mu, 0.0) else bank[cohort.at_bank[at]]
                adjust(flat, y, work, start, local, at)
                if cohort.second is not None and beside is not None:
                    here, there = y.clone(), cohort.second.bank[cohort.second.at_bank[at]]
                    y.copy_(there)  # the room's gradients are those at y
                    *slopes, _ = room.gradients(step.places, step.weights, step.keys, None)
                    y.copy_(here)
                    for view, slope in zip(task.layout.views(beside).values(), slopes, strict=True):
                        view.copy_(slope)
                    if local.weight_decay:
                        beside.add_(there, alpha=local.weight_decay)
                    flat.sub_(beside.mul_(per_client(cohort.second.against, at)))
                if velocity is not None and still is None:
                    velocity.mul_(local.momentum).add_(flat)
                elif velocity is not None and still is not None:
                    velocity.copy_(torch.where(still, velocity, velocity * local.momentum + flat))
                torch.mul(flat if velocity is None else velocity, step.rates[:, None], out=flat)
                y.sub_(flat if still is None else flat.masked_fill_(still, 0.0))
            changes = plan.lanes.changes(s)
            if changes[0]:  # lanes whose client has taken its last step; the next one gets in
                over, done, going, following = (torch.tensor(i, dtype=torch.int64).to(task.device) for i in changes)
                done, following = plan.who[done], plan.who[following]
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

        sums = torch.zeros((2, len(plan.who)), dtype=task.dtype, device=task.device)
        if plan.length:
            counted = torch.stack([values * plan.examples, plan.examples]).reshape(2, -1)
            sums.index_add_(1, plan.lanes.job.to(task.device).reshape(-1), counted)
        cohort.loss[plan.who] = sums[0] / sums[1].clamp(min=1)

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
