"""Who is there when: participation is data, drawn before training and the same for every strategy compared.

A `Schedule` holds, for every round, who could have been chosen, who was, and how much of the work each does. A process
(`Everyone`, `Uniform`, `Bernoulli`, `Markov`, `Cyclic`) draws one from a seed; nothing in training can change it.

Presence that comes and goes is drawn as spells, client by client: how long until the next appearance, how long it
lasts. So a million clients of whom a hundred appear each round cost what the appearances cost, and client i's presence
follows from (seed, i, its probability) alone: it is the same with more clients, more rounds or other probabilities
beside it, and a longer schedule begins with the shorter one.

The processes are those of Wang and Ji, ICLR 2024 (arXiv 2306.03401), as their code IBM/fedau draws them, except that a
probability above 1 is capped and one of 0 means never.
"""

from __future__ import annotations

import hashlib
import math
import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self, overload

import numpy as np
import numpy.typing as npt

from fedsim import keyed

if TYPE_CHECKING:
    from torch import Tensor

Floats = npt.NDArray[np.float64]

_FORMAT = "fedsim schedule 1"
_MOST = 2**31  # entries of one schedule: 8 GB
_CLIENTS = 2**17  # clients drawn together
_BLOCK = 2**20  # spells drawn together: bounds what drawing needs beyond the schedule itself


class Row(NamedTuple):
    """One round, on the CPU."""

    available: Tensor  # [m] int64, ascending: could have been chosen
    chosen: Tensor  # [k] int64, ascending: asked to train
    effort: Tensor  # [k] float32: share of the local work done; 0 = dropped out, never answers


class Lists(NamedTuple):
    """One ascending list of clients per round, one after another."""

    first: npt.NDArray[np.int64]  # [T + 1] where each round's list begins; the last is where the last one ends
    clients: npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False, repr=False)
class Schedule(Sequence[Row]):
    """Who is there in each of T rounds. Immutable and compressed: it holds what happens, not an table of n by T.

    Equal contents are stored equally, whichever way they came: a list that names everybody every round is dropped for
    None, efforts that are all 1 too. Raises ValueError on lists that are not ascending or name a client that is not
    in 0..n-1.
    """

    n: int
    rounds: int
    chosen: Lists | None = None  # None: everybody, every round
    available: Lists | Literal["chosen", "everyone"] = "chosen"
    effort: npt.NDArray[np.float32] | None = None  # one for every entry of chosen; None: all 1
    probabilities: Floats | None = None  # [n] nominal probability of taking part, for weights that know it

    def __post_init__(self) -> None:
        _size(self.n, self.rounds)
        keep = object.__setattr__  # the one moment at which a frozen object may still be written
        chosen = _checked(self.chosen, self.n, self.rounds, "chosen")
        available = self.available
        if isinstance(available, str) and available not in ("chosen", "everyone"):
            raise ValueError(f'available must be lists, "chosen" or "everyone", got "{available}"')
        if not isinstance(available, str):
            lists = _checked(available, self.n, self.rounds, "available")
            available = "everyone" if lists is None else lists
        if (available == "everyone" and chosen is None) or (
            isinstance(available, Lists) and chosen is not None and _same(available, chosen)
        ):
            available = "chosen"
        if isinstance(available, Lists):
            _subset(chosen, available, self.n)
        keep(self, "chosen", chosen)
        keep(self, "available", available)
        entries = self.n * self.rounds if chosen is None else len(chosen.clients)
        if self.effort is not None:
            effort = np.array(self.effort, dtype=np.float32)
            if effort.shape != (entries,):
                raise ValueError(f"effort has shape {effort.shape} but {entries} clients are chosen; give one for each")
            if not np.all((effort >= 0) & (effort <= 1)):
                raise ValueError("effort must be between 0 and 1: the share of the local work that is done")
            keep(self, "effort", None if np.all(effort == 1) else _frozen(effort))
        if self.probabilities is not None:
            keep(self, "probabilities", _frozen(_within(self.probabilities, self.n)))

    def __len__(self) -> int:
        return self.rounds

    def __repr__(self) -> str:
        entries = self.n * self.rounds if self.chosen is None else len(self.chosen.clients)
        return f"Schedule(n={self.n}, rounds={self.rounds}, {entries / max(1, self.rounds):.4g} chosen a round)"

    @overload
    def __getitem__(self, t: int) -> Row: ...
    @overload
    def __getitem__(self, t: slice) -> tuple[Row, ...]: ...
    def __getitem__(self, t: int | slice) -> Row | tuple[Row, ...]:
        """Round t; a negative t counts from the end, a slice gives a tuple of rounds. Raises IndexError beyond T."""
        if isinstance(t, slice):
            return tuple(self[s] for s in range(*t.indices(self.rounds)))
        if not -self.rounds <= t < self.rounds:
            raise IndexError(f"round {t} of a schedule of {self.rounds} rounds")
        import torch

        t %= self.rounds
        chosen = self._clients(self.chosen, t)
        if isinstance(self.available, Lists):
            available = self._clients(self.available, t)
        else:
            available = chosen if self.available == "chosen" else np.arange(self.n)
        if self.effort is None:
            effort = torch.ones(len(chosen))
        else:
            at = t * self.n if self.chosen is None else int(self.chosen.first[t])
            effort = torch.from_numpy(self.effort[at : at + len(chosen)].copy())
        return Row(torch.from_numpy(available), torch.from_numpy(chosen), effort)

    def _clients(self, lists: Lists | None, t: int) -> npt.NDArray[np.int64]:
        if lists is None:
            return np.arange(self.n)
        return lists.clients[lists.first[t] : lists.first[t + 1]].astype(np.int64)

    def matrix(self) -> Tensor:
        """[T, n] bool: chosen, with effort above 0. The full table: T · n bytes."""
        import torch

        table = np.zeros((self.rounds, self.n), dtype=bool)
        worked = True if self.effort is None else self.effort > 0
        if self.chosen is None:
            table[:] = worked if isinstance(worked, bool) else worked.reshape(table.shape)
        else:
            table[np.repeat(np.arange(self.rounds), np.diff(self.chosen.first)), self.chosen.clients] = worked
        return torch.from_numpy(table)

    def rates(self) -> Floats:
        """[n] float64: the share of the rounds in which each client took part (chosen, with effort above 0)."""
        rounds = max(1, self.rounds)
        if self.chosen is None:
            if self.effort is None:
                return np.full(self.n, float(self.rounds > 0))
            return np.asarray((self.effort.reshape(self.rounds, self.n) > 0).mean(0))
        index = self.chosen.clients if self.effort is None else self.chosen.clients[self.effort > 0]
        return np.bincount(index, minlength=self.n) / rounds

    def digest(self) -> str:
        """SHA-256 of the contents, in hexadecimal; the nominal probabilities count as contents."""
        hashed = hashlib.sha256()
        for name, array in self._arrays().items():
            little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
            hashed.update(f"{name} {little.dtype.str} {little.shape}\n".encode())
            hashed.update(little.data)
        return hashed.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a numpy .npz. Whole or not at all: it replaces a file of that name only once complete."""
        target = Path(path)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            with open(partial, "wb") as file:
                np.savez_compressed(file, allow_pickle=False, **self._arrays())
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """What `save` wrote. Raises FileNotFoundError, or ValueError for a file that is something else or damaged."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"no schedule at {path}; give the .npz file that Schedule.save wrote")
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
                found = {name: archive[name] for name in archive.files}
            if str(found["format"]) != _FORMAT:
                raise ValueError(f'its format is "{found["format"]}", not "{_FORMAT}"')
            n, rounds = (int(number) for number in found["size"])
            chosen = Lists(found["first"], found["clients"]) if "first" in found else None
            available: Any = str(found["available"])
            if available == "lists":
                available = Lists(found["available_first"], found["available_clients"])
            return cls(n, rounds, chosen, available, found.get("effort"), found.get("probabilities"))
        except (ValueError, TypeError, KeyError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} is not a schedule that can be read: {reason}; draw it again") from error

    @classmethod
    def from_matrix(cls, matrix: Any, effort: Any = None, probabilities: Any = None) -> Self:
        """A schedule from a bool table [T, n] (numpy, CPU tensor, lists): who is chosen; nobody else is available.

        effort [T, n] is read where the table is true. Raises ValueError on other shapes or types.
        """
        table = np.asarray(matrix)
        if table.ndim != 2 or table.dtype != np.bool_:
            raise ValueError(f"a presence table is bool [T, n], got {table.dtype} of shape {table.shape}")
        rounds, n = table.shape
        t, i = np.nonzero(table)
        if effort is not None:
            effort = np.asarray(effort)
            if effort.shape != table.shape:
                raise ValueError(f"effort has shape {effort.shape} but the presence table has {table.shape}")
            effort = effort[t, i]
        lists = Lists(np.searchsorted(t, np.arange(rounds + 1)).astype(np.int64), i.astype(np.int32))
        return cls(n, rounds, lists, "chosen", effort, None if probabilities is None else np.asarray(probabilities))

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The contents as named arrays, in a fixed order: what is hashed and written."""
        kind = self.available if isinstance(self.available, str) else "lists"
        arrays: dict[str, npt.NDArray[Any]] = {
            "format": np.array(_FORMAT),
            "size": np.array([self.n, self.rounds], dtype=np.int64),
            "available": np.array(kind),
        }
        if self.chosen is not None:
            arrays |= {"first": self.chosen.first, "clients": self.chosen.clients}
        if isinstance(self.available, Lists):
            arrays |= {"available_first": self.available.first, "available_clients": self.available.clients}
        if self.effort is not None:
            arrays["effort"] = self.effort
        if self.probabilities is not None:
            arrays["probabilities"] = self.probabilities
        return arrays


def _frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array.flags.writeable = False
    return array


def _size(n: int, rounds: int = 1) -> None:
    for name, value, least in (("n", n, 1), ("rounds", rounds, 0)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value < 2**31:
            raise ValueError(f"{name} must be a whole number from {least} to 2^31 - 1, got {value!r}")


def _checked(lists: Lists | None, n: int, rounds: int, name: str) -> Lists | None:
    """The lists, read-only and in the stored types; None if they name everybody every round."""
    if lists is None:
        return None
    first = np.asarray(lists.first)
    index = np.asarray(lists.clients)
    if first.shape != (rounds + 1,) or first[0] != 0 or first[-1] != len(index) or np.any(np.diff(first) < 0):
        raise ValueError(f"{name}: the beginnings of {rounds} lists must be {rounds + 1} numbers from 0 to their total")
    if len(index) and not 0 <= index.min() <= index.max() < n:
        raise ValueError(
            f"{name} names client {index.max() if index.max() >= n else index.min()}, clients are 0..{n - 1}"
        )
    rising = np.diff(index) > 0
    border = first[1:-1]
    rising[border[(border > 0) & (border < len(index))] - 1] = True  # the next round begins again from anywhere
    if not rising.all():
        raise ValueError(f"{name}: the clients of every round must be ascending, each at most once")
    if len(index) == n * rounds:
        return None
    return Lists(_frozen(first.astype(np.int64)), _frozen(index.astype(np.int32)))


def _same(a: Lists, b: Lists) -> bool:
    return np.array_equal(a.first, b.first) and np.array_equal(a.clients, b.clients)


def _subset(chosen: Lists | None, available: Lists, n: int) -> None:
    """Raises ValueError if somebody was chosen who was not available."""
    if chosen is None:
        raise ValueError("everybody is chosen but not everybody is available; choose among those available")
    if not np.isin(_codes(chosen, n), _codes(available, n), assume_unique=True).all():
        raise ValueError("a client is chosen in a round in which it is not available; choose among those available")


def _codes(lists: Lists, n: int) -> npt.NDArray[np.int64]:
    """t · n + i, a number for every entry."""
    rounds: npt.NDArray[np.int64] = np.repeat(np.arange(len(lists.first) - 1), np.diff(lists.first))
    return rounds * n + lists.clients


def _within(values: Any, n: int) -> Floats:
    """A new float64 [n] of probabilities. Raises ValueError on another length, NaN, or a value outside 0..1."""
    found = np.array(values, dtype=np.float64)
    if found.shape != (n,):
        raise ValueError(
            f"{len(found) if found.ndim == 1 else found.shape} probabilities for {n} clients; give one each"
        )
    wrong = np.flatnonzero(~((found >= 0) & (found <= 1)))
    if len(wrong):
        raise ValueError(f"the probability of client {wrong[0]} must be between 0 and 1, got {found[wrong[0]]}")
    return found


def _number(name: str, value: Any, least: float, most: float = math.inf, *, open_below: bool = False) -> None:
    """Raises ValueError unless value is a plain number within its bounds; NaN and booleans are not."""
    plain = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not plain or not math.isfinite(value) or not least <= value <= most or (open_below and value == least):
        above = f"above {least:g}" if open_below else f"at least {least:g}"
        bounds = above if most == math.inf else f"{above} and at most {most:g}"
        raise ValueError(f"{name} must be a number {bounds}, got {value!r}")


# --- probabilities ----------------------------------------------------------------------------------------------------


class Probabilities(ABC):
    """How likely each client is to take part."""

    @abstractmethod
    def draw(self, n: int, seed: int, histogram: Any = None, sizes: Any = None) -> Floats:
        """[n] float64 in 0..1; histogram is [n, C] examples of each class, sizes [n] examples of each client."""


@dataclass(frozen=True)
class Equal(Probabilities):
    """The same probability p for every client."""

    p: float = 0.1

    def __post_init__(self) -> None:
        _number("p", self.p, 0, 1)

    def draw(self, n: int, seed: int, histogram: Any = None, sizes: Any = None) -> Floats:
        return np.full(n, float(self.p))


@dataclass(frozen=True)
class LabelCorrelated(Probabilities):
    """Clients that hold popular classes take part more often. Wang and Ji, ICLR 2024 (2306.03401)

    p_i = min(1, max(floor, mean · C · ⟨κ_i, q⟩)), κ_i the class shares of client i, q ~ Dirichlet(alpha · 1_C) drawn
    once per seed. With balanced classes the expectation before the floor is `mean`. From IBM/fedau, which has no cap
    at 1; needs the class histogram of the clients (ValueError without).
    """

    mean: float = 0.1
    floor: float = 0.02
    alpha: float = 0.1

    def __post_init__(self) -> None:
        _number("mean", self.mean, 0, 1)
        _number("floor", self.floor, 0, 1)
        _number("alpha", self.alpha, 0, open_below=True)

    def draw(self, n: int, seed: int, histogram: Any = None, sizes: Any = None) -> Floats:
        if histogram is None:
            raise ValueError("label-correlated probabilities need the clients' labels; use a classification task")
        counts = np.asarray(histogram, dtype=np.float64)
        if counts.ndim != 2 or len(counts) != n or counts.shape[1] < 1:
            raise ValueError(
                f"the class histogram has shape {counts.shape} but there are {n} clients; give [n, classes]"
            )
        if not np.all(np.isfinite(counts)) or np.any(counts < 0):
            raise ValueError("the class histogram holds a negative number or NaN; give counts or shares")
        total = counts.sum(1, keepdims=True)
        if not total.all():
            empty = int(np.flatnonzero(total[:, 0] == 0)[0])
            raise ValueError(
                f"client {empty} has no examples, so no label-correlated probability; give it at least one"
            )
        classes = counts.shape[1]
        generator = np.random.default_rng(keyed.seed(seed, "participation", "label-correlated"))
        popular = generator.dirichlet(np.full(classes, float(self.alpha)))
        return np.asarray(np.clip(self.mean * classes * (counts / total) @ popular, self.floor, 1.0))


PROBABILITIES: dict[str, type[Probabilities]] = {"equal": Equal, "label-correlated": LabelCorrelated}


# --- processes --------------------------------------------------------------------------------------------------------


class Participation(ABC):
    """A process that draws schedules."""

    def check(self, n: int) -> None:
        """Raises ValueError if no schedule for n clients can be drawn. Cheap; called before anything is."""
        _size(n)

    @abstractmethod
    def draw(self, n: int, rounds: int, seed: int, *, histogram: Any = None, sizes: Any = None) -> Schedule:
        """A schedule of n clients; the same seed gives the same one. histogram [n, C], sizes [n]: what clients hold."""


@dataclass(frozen=True)
class Everyone(Participation):
    """All clients, every round."""

    def draw(self, n: int, rounds: int, seed: int, *, histogram: Any = None, sizes: Any = None) -> Schedule:
        self.check(n)
        return Schedule(n, rounds, probabilities=np.ones(n))


@dataclass(frozen=True)
class Uniform(Participation):
    """The server picks k of the n clients, all equally likely, afresh every round."""

    k: int

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise ValueError(f"k must be a whole number of at least 1, got {self.k!r}")

    def check(self, n: int) -> None:
        _size(n)
        if self.k > n:
            raise ValueError(f"uniform participation picks k = {self.k} clients but there are only {n}; lower k")

    def draw(self, n: int, rounds: int, seed: int, *, histogram: Any = None, sizes: Any = None) -> Schedule:
        self.check(n)
        _size(n, rounds)
        _affordable(n, rounds, self.k * rounds)
        generator = np.random.default_rng(keyed.seed(seed, "participation", "uniform"))
        index = np.empty((rounds, self.k), dtype=np.int32)
        for row in index:  # O(k) each: numpy's choice draws small subsets of large sets without listing the set
            row[:] = generator.choice(n, self.k, replace=False, shuffle=False)
        index.sort(axis=1)
        lists = Lists(np.arange(rounds + 1, dtype=np.int64) * self.k, index.reshape(-1))
        return Schedule(n, rounds, lists, "everyone", probabilities=np.full(n, self.k / n))


@dataclass(frozen=True)
class _Own(Participation):
    """Clients that come and go by themselves, each with its own probability; those who come are all chosen."""

    probabilities: float | tuple[float, ...] | Probabilities
    label: ClassVar[str]

    def __post_init__(self) -> None:
        _settle(self)

    def check(self, n: int) -> None:
        _size(n)
        if isinstance(self.probabilities, tuple) and len(self.probabilities) != n:
            raise ValueError(
                f"{len(self.probabilities)} probabilities for {n} clients; give one each, or a single number"
            )

    def draw(self, n: int, rounds: int, seed: int, *, histogram: Any = None, sizes: Any = None) -> Schedule:
        self.check(n)
        _size(n, rounds)
        if isinstance(self.probabilities, Probabilities):
            p = _within(self.probabilities.draw(n, seed, histogram, sizes), n)
        elif isinstance(self.probabilities, tuple):
            p = np.array(self.probabilities)
        else:
            p = np.full(n, float(self.probabilities))
        _affordable(n, rounds, float(p.sum()) * rounds)
        who = np.flatnonzero(p > 0)
        codes = self._appearances(who, p[who], n, rounds, keyed.seed(seed, "participation", self.label))
        codes.sort()
        t, index = np.divmod(codes, n)
        lists = Lists(np.searchsorted(t, np.arange(rounds + 1)).astype(np.int64), index.astype(np.int32))
        return Schedule(n, rounds, lists, "chosen", probabilities=p)

    @abstractmethod
    def _appearances(
        self, who: npt.NDArray[np.int64], p: Floats, n: int, rounds: int, key: int
    ) -> npt.NDArray[np.int64]:
        """t · n + i for every round t in which client i of `who` is there, in any order; p > 0 is its probability."""


def _settle(process: _Own) -> None:
    """Checks the probabilities of a process that is being made, and keeps a list as a tuple of floats."""
    given: Any = process.probabilities
    if isinstance(given, np.ndarray | list | tuple):
        listed = np.asarray(given, dtype=object)
        if listed.ndim != 1 or not len(listed):
            raise ValueError(f"probabilities must be one list of numbers, got shape {listed.shape}")
        for i, value in enumerate(listed):
            _number(f"probabilities[{i}]", value, 0, 1)
        object.__setattr__(process, "probabilities", tuple(float(value) for value in listed))
    elif not isinstance(given, Probabilities):
        _number("probabilities", given, 0, 1)


@dataclass(frozen=True)
class Bernoulli(_Own):
    """Each client is there with its own probability, independently in every round."""

    label: ClassVar[str] = "bernoulli"

    def _appearances(
        self, who: npt.NDArray[np.int64], p: Floats, n: int, rounds: int, key: int
    ) -> npt.NDArray[np.int64]:
        return _chain(who, p, 1.0 - p, p, n, rounds, key)


@dataclass(frozen=True)
class Markov(_Own):
    """Clients that come and go in spells, the longer the smaller `memory`. Wang and Ji, ICLR 2024 (2306.03401)

    P(inactive → active) = m and P(active → inactive) = m (1/p - 1), for m = `memory`. Where that exceeds 1
    (p < m/(1+m)) they are p/(1-p) and 1. The chain starts stationary, so a client is there with probability p in every
    round; its correlation from one round to the next is 1 minus both.
    """

    memory: float = 0.05
    label: ClassVar[str] = "markov"

    def __post_init__(self) -> None:
        _settle(self)
        _number("memory", self.memory, 0, 1, open_below=True)

    def _appearances(
        self, who: npt.NDArray[np.int64], p: Floats, n: int, rounds: int, key: int
    ) -> npt.NDArray[np.int64]:
        leave = self.memory * (1.0 / p - 1.0)
        short = leave > 1.0
        come = np.divide(p, 1.0 - p, out=np.full_like(p, float(self.memory)), where=short)
        return _chain(who, come, np.where(short, 1.0, leave), p, n, rounds, key)


@dataclass(frozen=True)
class Cyclic(_Own):
    """Clients alternate between a fixed number of rounds on and off. Wang and Ji, ICLR 2024 (2306.03401)

    A = max(1, round(L p)) rounds on, B = max(1, L - A) off, L = `length`: the rate is A/(A+B), which p only names
    approximately. start = "inactive", as published: off for r rounds first, r uniform on 0..B-1, so the first cycle is
    not like the others. start = "stationary": anywhere in the cycle, so every round is alike.
    """

    length: int = 100
    start: Literal["inactive", "stationary"] = "inactive"
    label: ClassVar[str] = "cyclic"

    def __post_init__(self) -> None:
        _settle(self)
        if isinstance(self.length, bool) or not isinstance(self.length, int) or self.length < 1:
            raise ValueError(f"length must be a whole number of rounds, at least 1, got {self.length!r}")
        if self.start not in ("inactive", "stationary"):
            raise ValueError(f'start must be "inactive" or "stationary", got {self.start!r}')

    def _appearances(
        self, who: npt.NDArray[np.int64], p: Floats, n: int, rounds: int, key: int
    ) -> npt.NDArray[np.int64]:
        import torch

        on = np.maximum(1, np.rint(self.length * p)).astype(np.int64)
        off = np.maximum(1, self.length - on)
        cycle = on + off
        u = keyed.uniform(key, torch.from_numpy(who)).numpy()
        offset = np.floor(u * (off if self.start == "inactive" else cycle)).astype(np.int64)
        # spell c of a client begins at offset + c · cycle; c = -1 is the one that may reach into round 0
        count = np.maximum(0, -((offset - rounds) // cycle)) + 1
        c = _counting(count) - 1
        begin = np.repeat(offset, count) + c * np.repeat(cycle, count)
        return _spread(np.repeat(who, count), begin, np.repeat(on, count), n, rounds)


NAMES: dict[str, type[Participation]] = {
    "everyone": Everyone,
    "uniform": Uniform,
    "bernoulli": Bernoulli,
    "markov": Markov,
    "cyclic": Cyclic,
}


# --- drawing spells ---------------------------------------------------------------------------------------------------


def _affordable(n: int, rounds: int, entries: float) -> None:
    if entries > _MOST:
        raise ValueError(
            f"a schedule of {n} clients and {rounds} rounds would hold {entries:.1e} appearances"
            f" ({entries * 4e-9:.0f} GB); lower the rounds or the participation"
        )


def _counting(count: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """0..count[0]-1, 0..count[1]-1, ... one after another."""
    return np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)


def _spread(
    who: npt.NDArray[np.int64], begin: npt.NDArray[np.int64], length: npt.NDArray[np.int64], n: int, rounds: int
) -> npt.NDArray[np.int64]:
    """t · n + i for all rounds t in 0..rounds-1 of the spells [begin, begin + length) of clients who."""
    end = np.minimum(begin + length, rounds)
    begin = np.maximum(begin, 0)
    length = np.maximum(end - begin, 0)
    return (np.repeat(begin, length) + _counting(length)) * n + np.repeat(who, length)


def _geometric(u: Floats, chance: Floats, most: int) -> npt.NDArray[np.int64]:
    """The first success, counted from 1, of trials with this chance, from a uniform u in [0, 1); at most `most`."""
    with np.errstate(divide="ignore", invalid="ignore"):  # chance 1: log 0 = -∞, the first trial; 0: never
        trials = np.log1p(-u) / np.log1p(-chance)
    return (np.fmin(np.floor(trials), most - 1) + 1).astype(np.int64)


def _chain(
    who: npt.NDArray[np.int64], come: Floats, leave: Floats, initial: Floats, n: int, rounds: int, key: int
) -> npt.NDArray[np.int64]:
    """Appearances of independent two-state chains, drawn spell by spell.

    come = P(inactive → active), leave = P(active → inactive), initial = P(active in round 0). Spell s of client i is
    drawn from keys (i, 2s) and (i, 2s + 1) alone, so blocks only decide what is computed together.
    """
    import torch

    found = [np.empty(0, dtype=np.int64)]
    for low in range(0, len(who), _CLIENTS):
        part = slice(low, low + _CLIENTS)
        i, a, b, now = who[part], come[part], leave[part], np.zeros(len(who[part]), dtype=np.int64)
        active = keyed.uniform(key, "start", torch.from_numpy(i)).numpy() < initial[part]
        s = 0  # spells drawn so far, of all clients still before the end
        while len(i):
            expected = float(np.mean((rounds - now) / (1.0 / a + 1.0 / np.maximum(b, 1e-300))))
            width = max(1, min(int(1.1 * expected) + 2, _BLOCK // len(i)))
            draw = torch.arange(2 * s, 2 * (s + width))
            u = keyed.uniform(key, torch.from_numpy(i)[:, None], draw).numpy()
            gap = _geometric(u[:, ::2], a[:, None], rounds + 1)
            length = _geometric(u[:, 1::2], b[:, None], rounds + 1)
            if s == 0:
                gap[active, 0] = 0
            end = now[:, None] + np.cumsum(gap + length, axis=1)
            begin = end - length
            row, column = np.nonzero(begin < rounds)
            found.append(_spread(i[row], begin[row, column], length[row, column], n, rounds))
            alive = end[:, -1] < rounds
            i, a, b, now = i[alive], a[alive], b[alive], end[alive, -1]
            s += width
    return np.concatenate(found)
