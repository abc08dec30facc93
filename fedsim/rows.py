"""Sparse per-client memory: a row for every client that has appeared, none for the others.

FedVARP's h, MIFA's G and SCAFFOLD's c_i live here. A round costs O(k P) and the memory O(seen * P), never O(n P). The
weighted mean of all rows, absent ones counted as 0, is kept up to date in float64: after many writes it is off by about
1e-16 of the largest values that were ever in it, times the square root of their number.

Rounds whose rows are more than caches hold are summed in float32 where they are float32 in host memory (`rowsums`): as
fast as memory is read, where float64 takes several times as long. So that the mean does not wander off, its value in
float64 is kept for a thousand columns, evenly spread. Where it is off there by more than a millionth of
sqrt(sum_i p_i² rows_i²), root mean square, all rows are summed anew in float64: with 100 of 300 clients a round about
every fifty rounds, and the seldomer the more clients there are.

In host memory address space is set aside for all n rows and taken as rows are written, so a table grows in place. A
GPU's memory cannot be: there it grows by half, and old and new lie side by side for a moment. The rows lie on the
training device while they fit there, and in host memory from the moment they do not. The k rows of a round then travel,
the mean stays on the device, and the numbers are the same bit for bit.
"""

from __future__ import annotations

import contextlib
import mmap
import sys
from typing import TYPE_CHECKING, Any

from fedsim import rowsums

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BLOCK = 1024  # rows that travel at once when all of them have to
PIECE = {"cpu": 2**19, "cuda": 2**24}  # numbers of a cohort's rows that are worked on at once: what caches hold
NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)  # Python names it since 3.13
EVERYTHING = slice(None)
WITNESSES = 1024  # columns whose mean is kept in float64 throughout
TOLERANCE = 1e-6  # how far off the mean may be there, of the size of a sum of such rows with signs at random
WIDE = 2**15  # columns of them, and more where all columns are few: pages of memory are not left too soon


def room(device: torch.device) -> int | None:
    """Bytes that a table may still take on a device; None: there is no better place to go, as in host memory.

    What was left of the device at this process's busiest moment, which training comes back to every round, less a
    tenth of the whole.
    """
    import torch

    if device.type != "cuda":
        return None
    free, whole = torch.cuda.mem_get_info(device)
    busiest = torch.cuda.max_memory_allocated(device)
    return free + torch.cuda.memory_reserved(device) - busiest - whole // 10


def allocate(rows: int, most: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory full of zeros for a table of at least `rows` rows [rows or more, size]; in host memory for `most` rows,
    which take room only when they are written, wherever the system has address space for that."""
    import torch

    if device.type == "cpu":
        found = reserve(most * size * dtype.itemsize)
        if found is not None:
            return torch.frombuffer(found, dtype=dtype).view(most, size)
    return torch.zeros((rows, size), dtype=dtype, device=device)


def reserve(size: int) -> mmap.mmap | None:
    """Address space for so many bytes, all 0; pages are there once they are written to. None: there is not so much."""
    if sys.platform == "win32" or not size:  # Windows counts what is reserved as taken
        return None
    try:
        found = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE)
    except (OSError, OverflowError, ValueError):  # limited, or more than there are addresses
        return None
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # large pages are faster; not every kernel has them
            found.madvise(mmap.MADV_HUGEPAGE)
    return found


class Rows:
    """A table [n, P] that starts at 0 and stores only the rows that were written.

    `rows[who]` reads [k, P], `rows[who] = values` writes; `who` [k] holds no client twice. `rows.mean` [P] is
    sum_i p_i rows_i. Writing is in place: a strategy's step consumes its state.
    """

    p: Tensor  # [n]         weights of the mean, float64
    slot: Tensor  # [n]         where a client's row is stored; -1: never written
    table: Tensor  # [1 + stored, P] a row of zeros, for those never written, and the rows; all else lies on the
    #             training device, these where there is room
    used: Tensor  # []          how many of them are in use
    total: Tensor  # [P]         sum_i p_i rows_i, float64
    bound: int  #             host's upper bound on `used`, so that growing seldom asks the device
    witness: Tensor  # [about WITNESSES]  total, of every so many columns, as float64 has it
    host: bool  #             whether the rows had to go to host memory; they do not come back

    def __init__(self, p: Tensor, x: Tensor) -> None:
        """An empty table for weights p [n] and rows like x [P]."""
        import torch

        self.p = p.to(device=x.device, dtype=torch.float64)
        self.slot = torch.full((len(p),), -1, dtype=torch.int64, device=x.device)
        self.table = torch.zeros((1, x.shape[-1]), dtype=x.dtype, device=x.device)
        self._whole = self.table  # all the memory there is, rows yet to come included
        self.used = torch.zeros((), dtype=torch.int64, device=x.device)
        self.total = torch.zeros(x.shape[-1], dtype=torch.float64, device=x.device)
        self._columns = slice(None, None, -(-x.shape[-1] // WITNESSES) or 1)
        self.witness = self.total[self._columns].clone()
        self.bound = 0
        self.host = False

    @property
    def data(self) -> Tensor:
        """The rows [stored, P], in the order in which clients appeared."""
        return self.table[1:]

    def __len__(self) -> int:
        return len(self.slot)

    def __repr__(self) -> str:
        where = ", in host memory" if self.host else ""
        return f"Rows(n={len(self)}, P={self.data.shape[1]}, stored={self.data.shape[0]}{where})"

    @property
    def mean(self) -> Tensor:
        """sum_i p_i rows_i [P]."""
        return self.total.to(self.data.dtype, copy=True)

    def seen(self, who: Tensor | None = None) -> Tensor:
        """bool: which clients (all [n], or `who` [k]) have ever been written."""
        return (self.slot if who is None else self.slot[who]) >= 0

    def __getitem__(self, who: Tensor) -> Tensor:
        return self._read(self.slot[who] + 1)

    def __setitem__(self, who: Tensor, values: Tensor) -> None:
        self._replace(who, values, self.p.new_zeros((0, len(who))))

    def exchange(self, who: Tensor, values: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """`rows[who] = values`, and the sums sum_i w_i values_i and sum_i w_i rows_i [P], float64, over the clients
        `who` [k] with what they had before: in one pass over their rows, and with no copy of them."""
        new, old = self._replace(who, values, w[None].to(self.p))
        return new[0], old[0]

    def _replace(self, who: Tensor, values: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """Writes rows, and gives the sums [m, P] with weights w [m, k], float64, of what is new and what was there."""
        import torch

        k, size = len(who), self.table.shape[1]
        weight = torch.cat([w, self.p[who][None]])
        self._reserve(k)
        known = self.slot[who]
        unknown = known < 0
        slot = torch.where(unknown, self.used + torch.cumsum(unknown, 0) - 1, known)
        self.slot[who] = slot
        self.used = self.used + unknown.sum()
        if k * size > PIECE["cpu"] and rowsums.suits(self.table) and rowsums.suits(values):
            new, old = self._sum_long(known + 1, values.contiguous(), weight)
            rowsums.write(self.table, slot + 1, values)
            if self._strays(values, weight[-1]):
                self.reweigh(self.p)
            return new, old
        new, old = (torch.zeros((len(w), size), dtype=torch.float64, device=self.total.device) for _ in range(2))
        if not k:
            return new, old
        before = self.total[self._columns].clone()
        # by pieces that caches hold: what lies between is float64
        kind = self.total.device.type
        piece = PIECE.get(kind, PIECE["cuda"])
        wide = max(1, min(size, max(WIDE if kind == "cpu" else size, piece // k)))
        tall = max(1, min(k, piece // wide))
        between = torch.empty(tall * wide, dtype=torch.float64, device=self.total.device)
        for left in range(0, size, wide):
            columns = slice(left, min(left + wide, size))
            for top in range(0, k, tall):
                rows = slice(top, min(top + tall, k))
                at = (rows.stop - top, columns.stop - left)
                exact = between[: at[0] * at[1]].view(at)
                sums = weight[:, rows] @ exact.copy_(values[rows, columns])
                gone = weight[:, rows] @ exact.copy_(self._read(known[rows] + 1, columns))
                new[:, columns] += sums[:-1]
                old[:, columns] += gone[:-1]
                self.total[columns] += sums[-1] - gone[-1]
        self.witness += self.total[self._columns] - before
        self._write(slot + 1, values)
        return new, old

    def _sum_long(self, place: Tensor, values: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The sums of `_replace` in float32, of what is to come [k, P] and of what is there."""
        import torch

        found = rowsums.exchanged(values, self.table, place, weight, self.total)
        gone = self.table[:, self._columns].index_select(0, place)
        self.witness += weight[-1] @ (values[:, self._columns].to(torch.float64) - gone)
        return found

    def _strays(self, values: Tensor, p: Tensor) -> bool:
        """Whether the mean is too far off where it is known better, beside rows like these [k, P] of weights p [k]."""
        fair = (p.square() @ values[:, self._columns].to(p.dtype).square()).mean() * (self.used / len(p))
        off = (self.total[self._columns] - self.witness).square().mean()
        return bool(off > TOLERANCE**2 * fair)

    def _read(self, place: Tensor, columns: slice = EVERYTHING) -> Tensor:
        """Rows of the table [k, ...], or columns of them, on the training device."""
        import torch

        table = self.table[:, columns]
        if not self.host:
            return table.index_select(0, place)
        stage = torch.index_select(table, 0, place.cpu(), out=self._stage(len(place), table.shape[1]))
        return stage.to(self.total.device, non_blocking=True)

    def _write(self, place: Tensor, values: Tensor) -> None:
        """Overwrites rows of the table [k, P]."""
        if not self.host or self.total.device.type == "cpu":
            self.table.index_copy_(0, place, values.to(self.table.dtype))
            return
        for some, part in zip(place.cpu().split(BLOCK), values.split(BLOCK), strict=True):
            self.table.index_copy_(0, some, self._stage(*part.shape).copy_(part))

    def _stage(self, k: int, width: int) -> Tensor:
        """Host memory [k, width] that a GPU copies from and to at full speed; the table itself need not be pinned."""
        import torch

        return torch.empty((k, width), dtype=self.data.dtype, pin_memory=self.total.device.type == "cuda")

    def _reserve(self, k: int) -> None:
        """Room for k more rows. Grows by half; asks the device for the true count only when the bound says full."""
        stored, n = len(self.data), len(self)
        if stored < n and self.bound + k > stored:
            if self.bound:
                self.bound = int(self.used)
            if self.bound + k > stored:
                self._grow(min(n, max(self.bound + k, self.bound + self.bound // 2)))
        self.bound = min(self.bound + k, len(self.data))

    def _grow(self, size: int) -> None:
        """Room for `size` rows, in host memory if there is none for them where they are."""
        if len(self._whole) <= size:
            whole = self._larger(size)
            whole[: len(self.table)] = self.table
            self._whole = whole
        self.table = self._whole[: 1 + size]

    def _larger(self, size: int) -> Tensor:
        """Memory for a table of so many rows. On a GPU old and new lie there together, unless all n rows take no more
        than a quarter of the room there is: then they have it at once."""
        import torch

        here, width, dtype, n = self.total.device, self.table.shape[1], self.table.dtype, len(self)
        left = None if self.host else room(here)
        if left is not None:
            self.host = left < size * width * dtype.itemsize
            size = n if n * width * dtype.itemsize <= left // 4 else size
        if not self.host:
            try:
                return allocate(1 + size, 1 + n, width, dtype, here)
            except torch.OutOfMemoryError:
                self.host = True
        return allocate(1 + size, 1 + n, width, dtype, torch.device("cpu"))

    def reweigh(self, p: Tensor) -> None:
        """Other weights p [n] for the mean, which is summed anew: O(seen P)."""
        import torch

        self.p = p.to(device=self.total.device, dtype=torch.float64)
        self.total = torch.zeros_like(self.total)
        used, size = int(self.used), len(self.total)
        weight = self.p.new_zeros(used + 1)
        weight[self.slot] = self.p  # of each stored row; those without one share the last place, which nobody reads
        on_cpu = self.total.device.type == "cpu"
        wide, tall = (min(size, WIDE), PIECE["cpu"] // WIDE) if on_cpu else (size, BLOCK)
        for left in range(0, size, wide):
            columns = slice(left, min(left + wide, size))
            for top in range(0, used, tall):
                rows = slice(top, min(top + tall, used))
                there = self.data[rows, columns].to(self.total.device)
                self.total[columns] += weight[rows] @ there.to(torch.float64)
        self.witness = self.total[self._columns].clone()

    def dense(self) -> Tensor:
        """The whole table [n, P]: for tests and small problems."""
        import torch

        return self[torch.arange(len(self), device=self.slot.device)]

    def tensors(self) -> dict[str, Tensor]:
        """All memory, by name, for a checkpoint: only the rows in use."""
        return {
            "p": self.p,
            "slot": self.slot,
            "data": self.data[: int(self.used)],
            "used": self.used,
            "total": self.total,
            "witness": self.witness,
        }

    def restored(self, tensors: dict[str, Tensor]) -> Rows:
        """A table holding what `tensors()` gave, on this one's device; its rows, which may come from anywhere, go
        where there is room."""
        rows = Rows(self.p, self.mean)
        for name in ("p", "slot", "used", "total"):
            setattr(rows, name, tensors[name].to(self.total.device, copy=True))
        known = tensors.get("witness", rows.total[rows._columns])  # checkpoints of fedsim 0.1 have none
        rows.witness = known.to(self.total.device, copy=True)
        rows.host = self.host
        data = tensors["data"]
        if len(data):
            rows._grow(len(data))
            rows.data.copy_(data)
        rows.bound = len(data)
        return rows

    def copy(self) -> Rows:
        """A table that shares no memory with this one."""
        return self.restored(self.tensors())

    def __deepcopy__(self, memo: dict[int, Any]) -> Rows:
        return self.copy()
