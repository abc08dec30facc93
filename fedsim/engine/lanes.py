"""Who is trained when in one room, and with which minibatches."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedsim.engine.plan import deal

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.engine.cohort import Cohort

SEGMENT = 64  # steps whose minibatches are planned at once


class Change(NamedTuple):
    """Who comes and goes after a step."""

    ended: Tensor  # [e]  lanes whose client has taken its last step
    done: Tensor  # [e]  those clients
    going: Tensor  # [g]  lanes that go on with another, g <= e
    following: Tensor  # [g]  and with whom


class Lanes:
    """Who is trained when: `chunk` lanes side by side, each with one client after the other, loads evened out.

    job [S, c] says which of the k clients a lane trains at a step, tau [S, c] that client's own step (-1: the lane is
    idle, padding). A client's steps are consecutive and in one lane. Arrays, not tensors: they outlive the round, and
    belong to no device or mode of torch's.
    """

    def __init__(self, steps: Sequence[int], chunk: int) -> None:
        lanes = [[j for j in members if steps[j]] for members in deal(steps, chunk)]
        self.length = max(sum(steps[j] for j in members) for members in lanes)
        self.job = np.zeros((max(self.length, 1), chunk), dtype=np.int64)
        self.tau = np.full_like(self.job, -1)
        changes: dict[int, list[tuple[int, int, int]]] = {}
        for lane, members in enumerate(lanes):
            s = 0
            for j, following in zip(members, [*members[1:], -1], strict=False):
                self.job[s : s + steps[j], lane] = j
                self.tau[s : s + steps[j], lane] = np.arange(steps[j])
                s += steps[j]
                changes.setdefault(s - 1, []).append((lane, j, following))
        self._changes = {s: changes[s] for s in sorted(changes)}

    def changes(self, clients: Tensor) -> dict[int, Change]:
        """Who comes and goes after which step, in order; who is whom is said by clients [k]. Lies where they do, and
        got there at once."""
        import torch

        flat: list[int] = []
        ends: list[tuple[int, int, int]] = []
        for s, ended in self._changes.items():
            going = [(lane, following) for lane, _, following in ended if following >= 0]
            for column in ([e[0] for e in ended], [g[0] for g in going], [e[1] for e in ended], [g[1] for g in going]):
                flat += column
            ends.append((s, len(ended), len(going)))
        there = torch.tensor(flat, dtype=torch.int64).to(clients.device)
        found, at = {}, 0
        for s, many, more in ends:
            over, going_on, done, following = there[at : at + 2 * (many + more)].split([many, more, many, more])
            found[s] = Change(over, clients[done], going_on, clients[following])
            at += 2 * (many + more)
        return found


@functools.lru_cache(maxsize=64)
def lanes_of(steps: tuple[int, ...], chunk: int) -> Lanes:
    """The lanes of clients with so many steps each. Most rounds are alike."""
    return Lanes(steps, chunk)


class Plan:
    """The steps of some of a cohort's clients in so many lanes."""

    def __init__(self, cohort: Cohort, members: Sequence[int], chunk: int) -> None:
        import torch

        device = cohort.task.device
        lanes = lanes_of(tuple(cohort.steps[j] for j in members), chunk)
        self.length, self.chunk = lanes.length, chunk
        self.who = torch.tensor(members).to(device)  # [k]  of the cohort
        self.changes = lanes.changes(self.who)
        self.mine = torch.from_numpy(lanes.job).to(device)  # [S, c]  of these clients
        self.job = self.who[self.mine]  # [S, c]  of the cohort
        self.tau = torch.from_numpy(lanes.tau).to(device)  # [S, c]
        self.examples = torch.zeros((self.length, chunk), dtype=cohort.task.dtype, device=device)  # [S, c]  0: idle

    def segments(self) -> Iterator[slice]:
        """Which steps are planned at once."""
        for begin in range(0, self.length, SEGMENT):
            yield slice(begin, min(begin + SEGMENT, self.length))

    def stretches(self, segment: slice) -> Iterator[tuple[int, Change | None]]:
        """How many of a segment's steps are taken by the same clients, and who comes and goes after them."""
        at = segment.start
        for s, change in self.changes.items():
            if at <= s < segment.stop:
                yield s + 1 - at, change
                at = s + 1
        if at < segment.stop:
            yield segment.stop - at, None
