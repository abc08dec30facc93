"""What happens on top of a process: who is selected, who fails to answer, who does only part of the work.

A stage names the process it stands on as `of`, which may be a stage again. It draws that one's schedule and takes away
from it: `Selected` of `Outages` of `Markov` selects among the clients that their chain and their cluster let come.
Every draw is keyed by (seed, the stage's name and height, round, client).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from fedsim import keyed
from fedsim.participation.checks import Floats, choice, number, whole
from fedsim.participation.probabilities import examples
from fedsim.participation.processes import Participation
from fedsim.participation.schedule import Lists, Schedule
from fedsim.participation.spells import Integers, affordable, chain

Keep = Callable[[Integers, Integers], npt.NDArray[np.bool_]]  # of rounds t and clients i: who stays


@dataclass(frozen=True)
class Stage(Participation):
    """A process that changes the schedule of another."""

    of: Participation
    label: ClassVar[str]

    def __post_init__(self) -> None:
        if not isinstance(self.of, Participation):
            raise ValueError(f"of must be a participation process, got {self.of!r}")

    def check(self, n: int) -> None:
        self.of.check(n)

    def draw(self, n: int, rounds: int, seed: int, *, histogram: Any = None, sizes: Any = None) -> Schedule:
        self.check(n)
        inner = self.of.draw(n, rounds, seed, histogram=histogram, sizes=sizes)
        height, below = 0, self.of
        while isinstance(below, Stage):
            height, below = height + 1, below.of
        return self._change(inner, keyed.seed(seed, "participation", self.label, height), sizes)

    @abstractmethod
    def _change(self, inner: Schedule, key: int, sizes: Any) -> Schedule:
        """The schedule that comes of the inner one."""


@dataclass(frozen=True)
class Selected(Stage):
    """The server picks k of the clients that are there, uniformly or by size; all, if there are fewer.

    by = "uniform": every k of them alike. "size": one after another, each with probability proportional to its number
    of examples among those left (FedProx's sampling, without replacement; ValueError without sizes). Whoever the inner
    process would have asked is available here. Its cost is that of the inner process's appearances; to pick among
    everybody, `Uniform` costs less.
    """

    k: int
    by: Literal["uniform", "size"] = "uniform"
    label: ClassVar[str] = "selected"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("k", self.k)
        choice("by", self.by, "uniform", "size")

    def check(self, n: int) -> None:
        super().check(n)
        if self.k > n:
            raise ValueError(f"selection picks k = {self.k} clients but there are only {n}; lower k")

    def _change(self, inner: Schedule, key: int, sizes: Any) -> Schedule:
        import torch

        weight = None if self.by == "uniform" else examples(inner.n, sizes, "selections by size")
        there = listed(inner, inner.chosen)
        t, i = entries(there)
        rank = keyed.uniform(key, torch.from_numpy(t), torch.from_numpy(i)).numpy()
        if weight is not None:  # the smallest of exponentials: Efraimidis and Spirakis, 2006
            with np.errstate(divide="ignore", invalid="ignore"):
                rank = np.where(weight[i] > 0, -np.log1p(-rank) / weight[i], np.inf)
        stays = smallest(rank, t, there, np.full(inner.rounds, self.k))
        available: Any = "everyone" if inner.chosen is None else inner.chosen
        effort = None if inner.effort is None else inner.effort[stays]
        known = inner.chosen is None and weight is None
        p = np.full(inner.n, self.k / inner.n) if known else None
        return Schedule(inner.n, inner.rounds, part(there, stays), available, effort, p)


@dataclass(frozen=True)
class Dropout(Stage):
    """A client that is asked fails to answer with this probability, independently every time.

    It stays among the chosen, with effort 0.
    """

    probability: float = 0.1
    label: ClassVar[str] = "dropout"

    def __post_init__(self) -> None:
        super().__post_init__()
        number("probability", self.probability, 0, 1)

    def _change(self, inner: Schedule, key: int, sizes: Any) -> Schedule:
        import torch

        t, i = entries(listed(inner, inner.chosen))
        u = keyed.uniform(key, torch.from_numpy(t), torch.from_numpy(i)).numpy()
        return worked(inner, (u >= self.probability).astype(np.float32), 1 - self.probability)


@dataclass(frozen=True)
class PartialWork(Stage):
    """Stragglers do part of the work, or are dropped. FedProx: Li et al., MLSys 2020 (1812.06127)

    In every round all but round(k (1 - stragglers)) of the k chosen straggle: each does a share of the work drawn
    uniformly from (low, high], kept as it is ("keep", FedProx) or never used ("drop", FedAvg there). The stragglers are
    the same for both. FedProx's own {1, ..., E - 1} epochs of E are low = 0, high = (E - 1)/E with epochs = E.
    """

    stragglers: float = 0.5
    low: float = 0.0
    high: float = 1.0
    late: Literal["keep", "drop"] = "keep"
    label: ClassVar[str] = "partial-work"

    def __post_init__(self) -> None:
        super().__post_init__()
        number("stragglers", self.stragglers, 0, 1)
        number("high", self.high, 0, 1, open_below=True)
        number("low", self.low, 0, self.high)
        choice("late", self.late, "keep", "drop")

    def _change(self, inner: Schedule, key: int, sizes: Any) -> Schedule:
        import torch

        there = listed(inner, inner.chosen)
        t, i = entries(there)
        u = keyed.uniform(key, torch.from_numpy(t)[:, None], torch.from_numpy(i)[:, None], torch.arange(2)).numpy()
        whole_work = np.rint(np.diff(there.first) * (1 - self.stragglers)).astype(np.int64)
        punctual = smallest(u[:, 0], t, there, whole_work)
        share = self.high - (self.high - self.low) * u[:, 1] if self.late == "keep" else np.zeros(len(t))
        effort = np.where(punctual, 1.0, share).astype(np.float32)
        return worked(inner, effort, 1.0 if self.late == "keep" or not self.stragglers else None)


@dataclass(frozen=True)
class Outages(Stage):
    """Clusters of clients vanish together for a while, and come back together.

    Client i is in cluster i mod `clusters`. A cluster is out a share `down` of the time, in outages of `length` rounds
    on average (geometric, from a stationary start), independently of the others. Nobody in it is available then.
    """

    clusters: int = 10
    down: float = 0.1
    length: float = 10.0
    label: ClassVar[str] = "outages"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("clusters", self.clusters)
        number("length", self.length, 1)
        number("down", self.down, 0, self.length / (self.length + 1))  # else they would begin more than once a round

    def _change(self, inner: Schedule, key: int, sizes: Any) -> Schedule:
        if self.down == 0:
            return inner
        one = np.ones(self.clusters)
        begin = one * min(1.0, self.down / (1 - self.down) / self.length)
        affordable(self.clusters, inner.rounds, self.clusters * inner.rounds * self.down)
        who = np.arange(self.clusters)
        out = np.sort(chain(who, begin, one / self.length, one * self.down, self.clusters, inner.rounds, key))

        def keep(t: Integers, i: Integers) -> npt.NDArray[np.bool_]:
            code = t * self.clusters + i % self.clusters
            at = np.minimum(np.searchsorted(out, code), max(0, len(out) - 1))
            return np.asarray(out[at] != code) if len(out) else np.ones(len(code), dtype=bool)

        p = None if inner.probabilities is None else inner.probabilities * (1 - self.down)
        return without(inner, keep, p)


@dataclass(frozen=True)
class Lifespans(Stage):
    """Clients join, stay for a while, and leave for good.

    Client i joins in a round drawn uniformly from 0..joining-1 (joining = 1: all are there from the start) and stays a
    geometric number of rounds, `stay` on average; None: for good. Nobody is available before or after.
    """

    joining: int = 1
    stay: float | None = None
    label: ClassVar[str] = "lifespans"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("joining", self.joining)
        if self.stay is not None:
            number("stay", self.stay, 1)

    def _change(self, inner: Schedule, key: int, sizes: Any) -> Schedule:
        import torch

        u = keyed.uniform(key, torch.arange(inner.n)[:, None], torch.arange(2)).numpy()
        join = np.floor(u[:, 0] * self.joining)
        leave = np.full(inner.n, np.inf)
        if self.stay is not None:
            with np.errstate(divide="ignore"):  # stay 1: log 0, one round
                leave = join + np.floor(np.log1p(-u[:, 1]) / np.log1p(-1 / self.stay)) + 1
        return without(inner, lambda t, i: np.asarray((t >= join[i]) & (t < leave[i])), None)


# --- schedules, taken apart ---


def listed(schedule: Schedule, lists: Lists | None) -> Lists:
    """Lists written out, where None stands for everybody every round. Raises ValueError if that is too large."""
    if lists is not None:
        return lists
    n, rounds = schedule.n, schedule.rounds
    affordable(n, rounds, float(n) * rounds)
    return Lists(np.arange(rounds + 1, dtype=np.int64) * n, np.tile(np.arange(n, dtype=np.int32), rounds))


def entries(lists: Lists) -> tuple[Integers, Integers]:
    """Round t and client i of every entry."""
    rounds: Integers = np.repeat(np.arange(len(lists.first) - 1), np.diff(lists.first))
    return rounds, lists.clients.astype(np.int64)


def part(lists: Lists, stays: npt.NDArray[np.bool_]) -> Lists:
    """The entries that stay."""
    before = np.concatenate([[0], np.cumsum(stays)])
    return Lists(before[lists.first].astype(np.int64), lists.clients[stays])


def smallest(rank: Floats, t: Integers, lists: Lists, most: Integers) -> npt.NDArray[np.bool_]:
    """Which entries are among the most[t] of smallest rank of their round."""
    order = np.lexsort((rank, t))
    place = np.arange(len(t)) - lists.first[t]
    found = np.zeros(len(t), dtype=bool)
    found[order] = place < most[t]
    return found


def worked(inner: Schedule, effort: npt.NDArray[np.float32], share: float | None) -> Schedule:
    """The schedule with every effort multiplied; `share` of the appearances is still heard of, None: not known."""
    if inner.effort is not None:
        effort = effort * inner.effort
    p = None if inner.probabilities is None or share is None else inner.probabilities * share
    return Schedule(inner.n, inner.rounds, inner.chosen, inner.available, effort, p)


def without(inner: Schedule, keep: Keep, p: Floats | None) -> Schedule:
    """The schedule of those who stay, among the chosen and among the available."""
    there = listed(inner, inner.chosen)
    stays = keep(*entries(there))
    available: Any = "chosen"
    if inner.available != "chosen":
        pool = listed(inner, None if inner.available == "everyone" else inner.available)
        available = part(pool, keep(*entries(pool)))
    effort = None if inner.effort is None else inner.effort[stays]
    return Schedule(inner.n, inner.rounds, part(there, stays), available, effort, p)
