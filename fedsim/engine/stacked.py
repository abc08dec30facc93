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
from fedsim.engine.cohort import Cohort, joined, kind, merged, phased_of, put, put_difference, second_of, starts
from fedsim.engine.gradients import gradients
from fedsim.engine.lanes import Plan
from fedsim.engine.plan import Answer, Job, counted, counts, refuse, sizes, spans, width
from fedsim.engine.room import rule_of

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.local import LocalSGD
    from fedsim.strategy import Work
    from fedsim.task import Task

EXAMPLES = 64  # in a pass over a client's whole data
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
        delta = torch.empty((len(steps), bank.shape[1]), dtype=bank.dtype, device=task.device)
        if idle := [j for j, taken in enumerate(steps) if not taken]:
            delta[idle] = 0.0  # the others' rows are all written to
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
            task, local, steps, torch.tensor(used, dtype=torch.int64).to(task.device),
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

        task, bank = cohort.task, cohort.bank
        room = rooms.take(task, plan.chunk, width(task, cohort.local), rule_of(cohort, plan.chunk))
        room.terms(cohort)
        room.seat(cohort, torch.arange(plan.chunk, device=task.device), plan.job[0])
        values = torch.zeros_like(plan.examples)  # [S, c]
        for segment in plan.segments():
            room.load(cohort, plan, segment)
            for steps, change in plan.stretches(segment):
                room.advance(steps)
                if change is None:
                    continue
                put_difference(cohort.delta, change.done, room.y, change.ended, bank, cohort.at_bank[change.done])
                if cohort.last_velocity is not None and room.velocity is not None:
                    put(cohort.last_velocity, change.done, room.velocity, change.ended)
                if cohort.raw is not None and room.raw is not None:
                    put(cohort.raw, change.done, room.raw, change.ended)
                room.seat(cohort, change.going, change.following)
            values[segment] = room.values[: segment.stop - segment.start]
        rooms.give_back(room)

        sums = torch.zeros((2, len(plan.who)), dtype=task.dtype, device=task.device)
        if plan.length:
            counted = torch.stack([values * plan.examples, plan.examples]).reshape(2, -1)
            sums.index_add_(1, plan.mine.reshape(-1), counted)
        cohort.loss[plan.who] = sums[0] / sums[1].clamp(min=1)

    def _at_start(self, task: Task, who: Tensor, work: Work) -> dict[str, Tensor]:
        """Gradient [k, P] and loss [k] of each client's whole data at its start, without dropout, as far as asked."""
        import torch

        gradient = gradients(task, dropout=False)
        slope = torch.zeros_like(work.start, memory_format=torch.contiguous_format)
        loss = torch.zeros(len(who), dtype=task.dtype, device=slope.device)
        sizes = [task.sizes[i] for i in who.tolist()]
        order = sorted(range(len(who)), key=sizes.__getitem__, reverse=True)
        wide = min(EXAMPLES, task.largest)
        for begin in range(0, len(who), self.chunk):
            members = order[begin : begin + self.chunk]
            padded = torch.tensor(members + members[:1] * (self.chunk - len(members)))
            clients, at = who[padded].to(slope.device), padded.to(slope.device)
            size, first = task.size[clients], task.first[clients]
            start = task.layout.views(work.start[at])
            keys, real = torch.zeros_like(clients), at[: len(members)]
            for done in range(0, sizes[members[0]], wide):  # of one width: how sums are rounded hangs on it
                position = torch.arange(done, done + wide, device=slope.device)
                counted = position < size[:, None]
                pool = task.rows[first[:, None] + torch.where(counted, position, 0)]
                weight = counted.to(task.dtype) / size[:, None]
                part, value = gradient(start, task.inputs[pool], task.targets[pool], weight, keys, None)
                slope[real] += task.layout.stack(part)[: len(members)]
                loss[real] += value[: len(members)]
        return {
            name: told for name, told in (("gradient-at-start", slope), ("loss-at-start", loss)) if name in work.ask
        }


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
