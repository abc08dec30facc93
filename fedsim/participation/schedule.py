"""Who is there in every round: a row, and the schedule that holds them compressed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, overload

import numpy as np
import numpy.typing as npt

from fedsim.guarded import arrays
from fedsim.participation.checks import Floats, frozen, possible, within

if TYPE_CHECKING:
    from torch import Tensor

_FORMAT = "fedsim schedule 1"


class Row(NamedTuple):
    """One round, on the CPU."""

    available: Tensor  # [m] int64, ascending: could have been chosen
    chosen: Tensor  # [k] int64, ascending: asked to train
    effort: Tensor  # [k] float32: share of the local work done; 0 = dropped out, never answers
    chance: Tensor | None = None  # [k] float32: how likely each was to take part this round; None: `probabilities` say


class Lists(NamedTuple):
    """One ascending list of clients per round, one after another."""

    first: npt.NDArray[np.int64]  # [T + 1] where each round's list begins; the last is where the last one ends
    clients: npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False, repr=False)
class Schedule(Sequence[Row]):
    """Who is there in each of T rounds. Immutable and compressed: it holds what happens, not an table of n by T.

    Equal contents are stored equally, whichever way they came: a list that names everybody every round is dropped for
    None, efforts that are all 1 too, and chances that are everybody's nominal probability. Raises ValueError on lists
    that are not ascending or name a client that is not in 0..n-1.
    """

    n: int
    rounds: int
    chosen: Lists | None = None  # None: everybody, every round
    available: Lists | Literal["chosen", "everyone"] = "chosen"
    effort: npt.NDArray[np.float32] | None = None  # one for every entry of chosen; None: all 1
    probabilities: Floats | None = None  # [n] nominal probability of taking part, for weights that know it
    chance: npt.NDArray[np.float32] | None = None  # one for every entry of chosen: how likely that client was to take
    # part in that round, where it changes from round to round; None: it does not, or nobody knows

    def __post_init__(self) -> None:
        possible(self.n, self.rounds)
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
            keep(self, "effort", None if np.all(effort == 1) else frozen(effort))
        if self.probabilities is not None:
            keep(self, "probabilities", frozen(within(self.probabilities, self.n)))
        if self.chance is not None:
            keep(self, "chance", self._changing(np.array(self.chance, dtype=np.float32), entries))

    def _changing(self, chance: npt.NDArray[np.float32], entries: int) -> npt.NDArray[np.float32] | None:
        """The chances, if they are and say more than the nominal probabilities."""
        if chance.shape != (entries,):
            raise ValueError(f"chance has shape {chance.shape} but {entries} clients are chosen; give one for each")
        if not np.all((chance > 0) & (chance <= 1)):
            raise ValueError("chance must be above 0 and at most 1: how likely a client was to be where it is")
        if self.probabilities is not None:
            p = self.probabilities
            nominal = np.tile(p, self.rounds) if self.chosen is None else p[self.chosen.clients]
            if np.allclose(chance, nominal, rtol=1e-6, atol=0):
                return None
        return frozen(chance)

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
        at = self._entry(t)
        if self.effort is None:
            effort = torch.ones(len(chosen))
        else:
            effort = torch.from_numpy(self.effort[at : at + len(chosen)].copy())
        chance = None if self.chance is None else torch.from_numpy(self.chance[at : at + len(chosen)].copy())
        return Row(torch.from_numpy(available), torch.from_numpy(chosen), effort, chance)

    def present(self, t: int) -> npt.NDArray[np.int64]:
        """[k] int64, ascending: who took part in round t in 0..T-1 (chosen, with effort above 0)."""
        chosen = self._clients(self.chosen, t)
        if self.effort is None:
            return chosen
        at = self._entry(t)
        return chosen[self.effort[at : at + len(chosen)] > 0]

    def _entry(self, t: int) -> int:
        """Where the efforts and chances of round t begin."""
        return t * self.n if self.chosen is None else int(self.chosen.first[t])

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
        """SHA-256 of the contents, in hexadecimal; probabilities and chances count as contents."""
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
            found = arrays(Path(path))
            if str(found["format"]) != _FORMAT:
                raise ValueError(f'its format is "{found["format"]}", not "{_FORMAT}"')
            n, rounds = (int(number) for number in found["size"])
            chosen = Lists(found["first"], found["clients"]) if "first" in found else None
            available: Any = str(found["available"])
            if available == "lists":
                available = Lists(found["available_first"], found["available_clients"])
            listed = (found.get(name) for name in ("effort", "probabilities", "chance"))
            return cls(n, rounds, chosen, available, *listed)
        except (ValueError, TypeError, KeyError, OverflowError) as error:
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
        if self.chance is not None:
            arrays["chance"] = self.chance
        return arrays


def _checked(lists: Lists | None, n: int, rounds: int, name: str) -> Lists | None:
    """The lists, read-only and in the stored types; None if they name everybody every round."""
    if lists is None:
        return None
    first = np.asarray(lists.first)
    index = np.asarray(lists.clients)
    for what, array in (("beginnings", first), ("clients", index)):
        if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
            raise ValueError(
                f"{name}: the {what} must be a list of whole numbers, got {array.dtype} {list(array.shape)}"
            )
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
    return Lists(frozen(first.astype(np.int64)), frozen(index.astype(np.int32)))


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
