"""Where a chunk trains: buffers of its shapes, and the step that is taken in them.

Everything a step reads and writes has its place in the room, so that a step is the same operators on the same tensors
for ever, and can be recorded (see recorded.py).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fedsim.engine.cohort import by_client, put
from fedsim.engine.feed import Feed, Served
from fedsim.engine.gradients import alone, of_chunk
from fedsim.engine.lanes import SEGMENT
from fedsim.engine.pools import examples
from fedsim.engine.traced import kernels
from fedsim.engine.traced.program import Program
from fedsim.engine.traced.recorded import recorded

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.engine.cohort import Cohort
    from fedsim.engine.lanes import Plan
    from fedsim.task import Task

FEEDS = 4  # kept, for segments of different lengths
PIECE = 8  # steps in a row on a CPU, after which Python has a look whether somebody pressed Ctrl-C


class Rule(NamedTuple):
    """What a step does with its gradients beside taking them off, see Work; a term's shape is that of its buffer."""

    momentum: float = 0.0
    weight_decay: float = 0.0
    clip: float | None = None
    scale: tuple[int, int] | None = None  # [c or 1, P or 1]; None: the term is not there
    mu: tuple[int, int] | None = None
    shift: tuple[int, int] | None = None
    against: tuple[int, int] | None = None  # of gradients at second points; None: there are none
    raw: bool = False  # somebody asks for their sum
    phases: int = 0  # of all clients together, in which some parameters stand still

    @property
    def plain(self) -> bool:
        """Whether the step is y <- y - lr * gradient and nothing else."""
        return self == Rule()


class Room:
    """Buffers for `chunk` clients with minibatches of `batch` examples, one in each lane."""

    def __init__(self, task: Task, chunk: int, batch: int, rule: Rule) -> None:
        import torch

        self.shape = (chunk, batch, rule)
        self.rule = rule
        self.owner = weakref.ref(task.outputs_of)
        self.fits = traits(task)
        device, pool, size = task.device, examples(task), task.layout.size

        def vectors(rows: int = chunk, columns: int = size) -> Tensor:
            return torch.zeros((rows, columns), dtype=task.dtype, device=device)

        self.y = vectors()
        self.velocity = vectors() if rule.momentum else None
        self.raw = vectors() if rule.raw else None  # sums of gradients
        self._flat = None if rule.plain else vectors()
        self._start = vectors() if rule.mu else None
        self._scale, self._mu, self._shift, self._against = (
            None if shape is None else vectors(*shape) for shape in (rule.scale, rule.mu, rule.shift, rule.against)
        )
        self._there, self._here, self._beside = (vectors() if rule.against else None for _ in range(3))
        self._stands = torch.zeros((rule.phases, size), dtype=torch.bool, device=device)  # which parameters do, when
        self._counts = torch.zeros((rule.phases, 1), dtype=task.dtype, device=device)  # whether a phase's steps do
        self._still = torch.zeros((chunk, size), dtype=torch.bool, device=device) if rule.phases else None
        self._worth = vectors(columns=1) if rule.phases else None

        # what a segment brings, and what a step takes of it
        self._places = torch.zeros((SEGMENT, chunk * batch), dtype=torch.int64, device=device)
        self._counted = torch.zeros((SEGMENT, chunk, batch), dtype=task.dtype, device=device)
        self._keys = torch.zeros((SEGMENT, chunk), dtype=torch.int64, device=device)
        self._rates = torch.zeros((SEGMENT, chunk, 1), dtype=task.dtype, device=device)
        self.values = torch.zeros((SEGMENT, chunk), dtype=task.dtype, device=device)  # losses of a segment's steps
        self._phases = torch.zeros((SEGMENT, chunk), dtype=torch.int64, device=device)
        self._phase = torch.zeros_like(self._phases[:1])
        self._at = torch.zeros(1, dtype=torch.int64, device=device)  # the step of the segment
        self._place, self._weights, self._key, self._rate = (
            torch.zeros_like(each[:1]) for each in (self._places, self._counted, self._keys, self._rates)
        )
        self._inputs = pool.new_zeros((chunk, batch, *pool.shape[1:]))
        self._targets = task.targets.new_zeros((chunk, batch, *task.targets.shape[1:]))
        self._rows = (
            self._inputs.view(-1, *self._inputs.shape[2:]), self._targets.view(-1, *self._targets.shape[2:]),
        )  # fmt: skip
        self._program: Program | None = None
        self._recorded: Any = None
        self._tried = False
        self._feeds: dict[int, Feed] = {}  # by their numbers of steps
        self.enter(task)

    def enter(self, task: Task) -> None:
        """Train this task's clients from now on; it has the traits the room was made for."""
        self._task, self._pool = task, examples(task)
        for feed in self._feeds.values():
            feed.enter(task)
        if self._recorded is not None:
            self._recorded.bind((self._pool, task.targets))
        if self._program is not None and not self.traced:
            self._program.function = of_chunk(task, self._pool is not task.inputs)

    def leave(self) -> None:
        """Let go of the task; the program stays."""
        del self._task, self._pool
        for feed in self._feeds.values():
            feed.leave()
        if self._recorded is not None:
            self._recorded.release()
        if self._program is not None:
            self._program.function = None

    @property
    def traced(self) -> bool:
        """Whether the program is one, and not the function it was to be made of."""
        return self._program is not None and self._program.calls is not None

    def terms(self, cohort: Cohort) -> None:
        """Takes over what is the same for all clients of a cohort."""
        import torch

        for buffer, value in self._terms(cohort):
            if isinstance(value, (int, float)):
                buffer.fill_(value)
            elif not by_client(value):
                buffer.copy_(value)
        if cohort.phased is not None:
            torch.logical_not(cohort.phased.free, out=self._stands)
            self._counts[:, 0].copy_(cohort.phased.counts)

    def seat(self, cohort: Cohort, lanes: Tensor, clients: Tensor) -> None:
        """These clients [g] of a cohort take their seats in these lanes [g]."""
        begins = cohort.at_bank[clients]
        put(self.y, lanes, cohort.bank, begins)
        if self._start is not None:
            put(self._start, lanes, cohort.bank, begins)
        if self.velocity is not None and cohort.velocity is not None:
            put(self.velocity, lanes, cohort.velocity, clients)
        if self.raw is not None:
            self.raw.index_fill_(0, lanes, 0.0)
        for buffer, value in self._terms(cohort):
            if by_client(value):
                put(buffer, lanes, value, clients)
        if self._there is not None and cohort.second is not None:
            put(self._there, lanes, cohort.second.bank, cohort.second.at_bank[clients])

    def _terms(self, cohort: Cohort) -> list[tuple[Tensor, Any]]:
        """The buffers of the step's terms, and the cohort's values."""
        work = cohort.work
        against = 0.0 if cohort.second is None else cohort.second.against
        values = (work.scale, work.mu, work.shift, against)
        buffers = (self._scale, self._mu, self._shift, self._against)
        return [(buffer, value) for buffer, value in zip(buffers, values, strict=True) if buffer is not None]

    def load(self, cohort: Cohort, plan: Plan, segment: slice) -> None:
        """The minibatches of a plan's next steps."""
        steps = segment.stop - segment.start
        feed = self._feeds.pop(steps, None) or Feed(self._task, Served(
            self._places[:steps].view(steps, *self.shape[:2]), self._counted[:steps], self._keys[:steps],
            self._rates[:steps, :, 0], self._phases[:steps],
        ))  # fmt: skip
        self._feeds[steps] = feed
        while len(self._feeds) > FEEDS:
            del self._feeds[next(iter(self._feeds))]  # the one that has not been used for longest
        feed.fill(cohort, plan, segment)
        self._at.zero_()

    def advance(self, steps: int) -> None:
        """So many of the segment's steps. Of the losses [SEGMENT, c], `values` has those of the steps taken."""
        if steps and self._program is None:
            self.step()
            steps -= 1
        if steps and not self._tried:
            self._tried = True
            if self.traced:
                self._recorded = recorded(self.step, self._state(), (self._pool, self._task.targets))
                steps -= 1
        if self._recorded is None:
            for _ in range(steps):
                self.step()
        elif self.y.device.type == "cpu":
            for begin in range(0, steps, PIECE):
                self._recorded(min(PIECE, steps - begin))
        elif steps:
            self._recorded(steps)

    def step(self) -> None:
        """The segment's next step."""
        import torch

        rule = self.rule
        for segment, one in (
            (self._places, self._place), (self._counted, self._weights), (self._keys, self._key),
            (self._rates, self._rate), (self._phases, self._phase),
        )[: 5 if rule.phases else 4]:  # fmt: skip
            torch.index_select(segment, 0, self._at, out=one)
        for pool, rows in zip((self._pool, self._task.targets), self._rows, strict=True):
            kernels.take(rows, pool, self._place[0])
        *slopes, value = self._gradients()
        self.values.index_copy_(0, self._at, value[None])
        if not rule.plain:
            assert self._flat is not None
            self._write(slopes, self._flat)
            self._adjust(self._flat)
            self._move(self._flat)
        self._at.add_(1)

    def _move(self, flat: Tensor) -> None:
        """Takes a direction [c, P] times the rates off the models, by way of the momentum if there is one. What stands
        still does not move, and its momentum waits."""
        import torch

        direction, still = flat, self._still
        if self.velocity is not None and still is None:
            direction = self.velocity.mul_(self.rule.momentum).add_(flat)
        elif self.velocity is not None and still is not None:
            direction = self.velocity
            direction.copy_(torch.where(still, direction, direction * self.rule.momentum + flat))
        torch.mul(direction, self._rate[0], out=flat)
        self.y.sub_(flat if still is None else flat.masked_fill_(still, 0.0))

    def _gradients(self) -> Sequence[Tensor]:
        """The gradients at y of each client's loss, a tensor [c, ...] for each of the model's, and the losses [c]. Of a
        plain step the gradients are multiplied by the rates and taken off y, and there are only losses. They lie in
        buffers that the next call writes to."""
        if self._program is None:
            task, ready, plain = self._task, self._pool is not self._task.inputs, self.rule.plain
            given = [self.y, self._inputs, self._targets, self._weights[0], self._key[0]]
            self._program = Program(
                of_chunk(task, ready), [*given, self._rate[0]] if plain else given,
                list(task.layout.views(self.y).values()) if plain else (),
                alone(task, ready) if len(self.y) == 1 else None,
            )  # fmt: skip
        return self._program()

    def _write(self, slopes: Sequence[Tensor], flat: Tensor) -> None:
        """Gradients of parameters as vectors [c, P]."""
        for view, slope in zip(self._task.layout.views(flat).values(), slopes, strict=True):
            view.copy_(slope)

    def _adjust(self, flat: Tensor) -> None:
        """Turns batch gradients [c, P] into the direction of the affine step, in place (see Work)."""
        import torch

        rule, y = self.rule, self.y
        if self._still is not None and self._worth is not None:
            torch.index_select(self._stands, 0, self._phase[0], out=self._still)
            torch.index_select(self._counts, 0, self._phase[0], out=self._worth)
            flat.masked_fill_(self._still, 0.0)
        if rule.clip is not None:
            flat.mul_((rule.clip / flat.norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(max=1.0))
        if rule.weight_decay:
            flat.add_(y, alpha=rule.weight_decay)
        if self.raw is not None:
            self.raw.add_(flat if self._worth is None else flat * self._worth)
        if self._scale is not None:
            flat.mul_(self._scale)
        if self._mu is not None and self._start is not None:
            flat.add_(self._mu * (y - self._start))
        if self._shift is not None:
            flat.add_(self._shift)
        if self._against is not None:
            flat.sub_(self._second())

    def _second(self) -> Tensor:
        """The gradients [c, P] at the second points, as much as they count."""
        there, here, beside, against = self._there, self._here, self._beside, self._against
        assert there is not None
        assert here is not None
        assert beside is not None
        assert against is not None
        here.copy_(self.y)
        self.y.copy_(there)  # the program's gradients are those at y
        *slopes, _ = self._gradients()
        self.y.copy_(here)
        self._write(slopes, beside)
        if self.rule.weight_decay:
            beside.add_(there, alpha=self.rule.weight_decay)
        return beside.mul_(against)

    def _state(self) -> list[Tensor]:
        """All that a step leaves behind."""
        return [one for one in (self.y, self.velocity, self.raw, self._at, self.values) if one is not None]


def rule_of(cohort: Cohort, chunk: int) -> Rule:
    """What a step of a cohort's does, in so many lanes. Looks into no tensor."""
    local, work = cohort.local, cohort.work

    def term(value: Tensor | float, nothing: float) -> tuple[int, int] | None:
        if isinstance(value, (int, float)):
            return None if value == nothing else (1, 1)
        return (chunk if by_client(value) else 1), (value.shape[-1] if value.ndim else 1)

    return Rule(
        local.momentum, local.weight_decay, local.clip, term(work.scale, 1.0), term(work.mu, 0.0),
        term(work.shift, 0.0), None if cohort.second is None else term(cohort.second.against, math.nan),
        cohort.raw is not None, 0 if cohort.phased is None else len(cohort.phased.free),
    )  # fmt: skip


def traits(task: Task) -> tuple[Any, ...]:
    """What a program knows of a task, beside its model."""
    pool = examples(task)
    normalised = pool is not task.inputs
    return (
        task.criterion, task.augment, None if normalised else task.mean, None if normalised else task.std,
        tuple(pool.shape[1:]), pool.dtype, pool.is_contiguous(), tuple(task.targets.shape[1:]), task.targets.dtype,
        task.dtype, task.device,
    )  # fmt: skip
