"""Sparse per-client memory: a row for every client that has appeared, none for the others.

FedVARP's h, MIFA's G and SCAFFOLD's c_i live here. A round costs O(k P) and the memory O(seen * P), never O(n P). The
weighted mean of all rows, absent ones counted as 0, is kept up to date in float64: after many writes it is off by about
1e-16 of the largest values that were ever in it, times the square root of their number.

The rows lie on the training device while they fit there, and in host memory from the moment they do not. The k rows of
a round then travel, the mean stays on the device, and the numbers are the same bit for bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BLOCK = 1024  # rows that travel at once when all of them have to
PIECE = 2**17  # numbers of a cohort's rows that a CPU works on at once
EVERYTHING = slice(None)


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


def allocate(rows: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for a table [rows, size], its contents anything."""
    import torch

    return torch.empty((rows, size), dtype=dtype, device=device)


class Rows:
    """A table [n, P] that starts at 0 and stores only the rows that were written.

    `rows[who]` reads [k, P], `rows[who] = values` writes; `who` [k] holds no client twice. `rows.mean` [P] is
    sum_i p_i rows_i. Writing is in place: a strategy's step consumes its state.
    """

    p: Tensor  # [n]         weights of the mean, float64
    slot: Tensor  # [n]         where a client's row is stored; -1: never written
    data: Tensor  # [stored, P] the rows; all else lives on the training device, these where there is room
    used: Tensor  # []          how many of them are in use
    total: Tensor  # [P]         sum_i p_i rows_i, float64
    bound: int  #             host's upper bound on `used`, so that growing seldom asks the device
    host: bool  #             whether the rows had to go to host memory; they do not come back

    def __init__(self, p: Tensor, x: Tensor) -> None:
        """An empty table for weights p [n] and rows like x [P]."""
        import torch

        self.p = p.to(device=x.device, dtype=torch.float64)
        self.slot = torch.full((len(p),), -1, dtype=torch.int64, device=x.device)
        self.data = torch.zeros((0, x.shape[-1]), dtype=x.dtype, device=x.device)
        self.used = torch.zeros((), dtype=torch.int64, device=x.device)
        self.total = torch.zeros(x.shape[-1], dtype=torch.float64, device=x.device)
        self.bound = 0
        self.host = False

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
        import torch

        if not len(self.data):
            return torch.zeros((len(who), self.data.shape[1]), dtype=self.data.dtype, device=self.total.device)
        slot = self.slot[who]
        rows = self._read(slot.clamp(min=0))
        return torch.where((slot >= 0)[:, None], rows, torch.zeros((), dtype=rows.dtype, device=rows.device))

    def __setitem__(self, who: Tensor, values: Tensor) -> None:
        import torch

        if not len(who):
            return
        self._reserve(len(who))
        known = self.slot[who]
        new = known < 0
        slot = torch.where(new, self.used + torch.cumsum(new, 0) - 1, known)
        self.slot[who] = slot
        self.used = self.used + new.sum()
        # on a CPU by pieces that its cache holds: what lies between is float64 and as large as the cohort
        size = self.data.shape[1]
        width = max(1, PIECE // len(who)) if self.total.device.type == "cpu" else max(1, size)
        p, zero = self.p[who], torch.zeros((), dtype=self.data.dtype, device=self.total.device)
        for first in range(0, size, width):
            piece = slice(first, first + width)
            old = torch.where(new[:, None], zero, self._read(known.clamp(min=0), piece))
            self.total[piece] += p @ (values[:, piece].to(torch.float64) - old)
            self._write(slot, values[:, piece], piece)

    def _read(self, slot: Tensor, piece: slice = EVERYTHING) -> Tensor:
        """A piece of stored rows [k, ...], on the training device."""
        import torch

        data = self.data[:, piece]
        if not self.host:
            return data.index_select(0, slot)
        stage = torch.index_select(data, 0, slot.cpu(), out=self._stage(len(slot), data.shape[1]))
        return stage.to(self.total.device, non_blocking=True)

    def _write(self, slot: Tensor, values: Tensor, piece: slice = EVERYTHING) -> None:
        """Overwrites a piece of stored rows [k, ...]."""
        if self.host:
            slot, values = slot.cpu(), self._stage(*values.shape).copy_(values)
        self.data[:, piece][slot] = values

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
        """A larger table with the same rows, in host memory if there is no room for it where it is."""
        import torch

        grown = None if self.host else self._here(size)
        if grown is None:
            self.host = True
            grown = allocate(size, self.data.shape[1], self.data.dtype, torch.device("cpu"))
        grown[: self.bound] = self.data[: self.bound]
        self.data = grown

    def _here(self, size: int) -> Tensor | None:
        """Memory for that many rows on the training device; None: it does not fit. Old and new lie there together."""
        import torch

        here, width = self.total.device, self.data.shape[1]
        left = room(here)
        if left is not None and left < size * width * self.data.element_size():
            return None
        try:
            return allocate(size, width, self.data.dtype, here)
        except torch.OutOfMemoryError:
            return None

    def reweigh(self, p: Tensor) -> None:
        """Other weights p [n] for the mean, which is summed anew: O(seen P)."""
        import torch

        self.p = p.to(device=self.total.device, dtype=torch.float64)
        self.total = torch.zeros_like(self.total)
        used = int(self.used)
        weight = self.p.new_zeros(used + 1)
        weight[self.slot] = self.p  # of each stored row; those without one share the last place, which nobody reads
        for first in range(0, used, BLOCK):
            last = min(first + BLOCK, used)
            self.total += weight[first:last] @ self.data[first:last].to(self.total.device).to(torch.float64)

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
        }

    def restored(self, tensors: dict[str, Tensor]) -> Rows:
        """A table holding what `tensors()` gave, on this one's device; its rows, which may come from anywhere, go
        where there is room."""
        rows = Rows(self.p, self.mean)
        for name in ("p", "slot", "used", "total"):
            setattr(rows, name, tensors[name].to(self.total.device, copy=True))
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
