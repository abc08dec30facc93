"""Who is trained when in one room, and with which minibatches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from fedsim.engine.plan import deal, minibatches, width

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.engine.cohort import Cohort

SEGMENT = 64  # steps whose minibatches are planned at once


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


class Step(NamedTuple):
    """What the lanes of a room do in a step."""

    places: Tensor  # [c, b]  of examples, in the pool
    weights: Tensor  # [c, b]  what they count
    keys: Tensor  # [c]
    rates: Tensor  # [c]     learning rates
    phase: Tensor | None = None  # [c]     of `Cohort.phased`, where there are any


class Plan:
    """The steps of some of a cohort's clients in so many lanes. What the first segment needs is worked out at once:
    many small operators, for which workers side by side would only wait for each other."""

    def __init__(self, cohort: Cohort, members: Sequence[int], chunk: int) -> None:
        import torch

        device = cohort.task.device
        self.lanes = Lanes([cohort.steps[j] for j in members], chunk)
        self.length = self.lanes.length
        self.who = torch.tensor(members).to(device)  # [k]  of the cohort
        self.job = self.who[self.lanes.job.to(device)]  # [c, S]  of the cohort
        self.examples = torch.zeros((chunk, self.length), dtype=cohort.task.dtype, device=device)  # [c, S]  0: idle
        self._cohort, self._tau = cohort, self.lanes.tau.to(device)
        self._first = self._segment(0)

    def steps(self) -> Iterator[Step]:
        """One after the other."""
        yield from self._first
        for begin in range(SEGMENT, self.length, SEGMENT):
            yield from self._segment(begin)

    def _segment(self, begin: int) -> list[Step]:
        cohort, cut = self._cohort, slice(begin, min(begin + SEGMENT, self.length))
        task, job, tau = cohort.task, self.job[:, cut], self._tau[:, cut]
        if begin >= self.length:
            return []
        places, counted, keys = minibatches(
            cohort.keys[job], cohort.sizes[job], task.first[cohort.who[job]], tau.clamp(min=0), tau >= 0,
            width(task, cohort.local),
        )  # fmt: skip
        count = counted.sum(-1)  # [c, S]
        self.examples[:, cut] = count.to(task.dtype)
        weights = counted.to(task.dtype) / count.clamp(min=1)[..., None]
        columns = [task.rows[places], weights, keys, cohort.rates[job]]
        if cohort.phased is not None:
            columns.append(cohort.phased.at(job, tau))
        return [Step(*each) for each in zip(*(column.unbind(1) for column in columns), strict=True)]
