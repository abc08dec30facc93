"""Sparse per-client memory: a row for every client that has appeared, none for the others.

FedVARP's h, MIFA's G and SCAFFOLD's c_i live here. A round costs O(k P) and the memory O(seen * P), never O(n P). The
weighted mean of all rows, absent ones counted as 0, is kept up to date in float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Rows:
    """A table [n, P] that starts at 0 and stores only the rows that were written.

    `rows[who]` reads [k, P], `rows[who] = values` writes; `who` [k] holds no client twice. `rows.mean` [P] is
    sum_i p_i rows_i. Writing is in place: a strategy's step consumes its state.
    """

    p: Tensor  # [n]         weights of the mean, float64
    slot: Tensor  # [n]         where a client's row is stored; -1: never written
    data: Tensor  # [stored, P] the rows
    used: Tensor  # []          how many of them are in use
    total: Tensor  # [P]         sum_i p_i rows_i, float64
    bound: int  #             host's upper bound on `used`, so that growing seldom asks the device

    def __init__(self, p: Tensor, x: Tensor) -> None:
        """An empty table for weights p [n] and rows like x [P]."""
        import torch

        self.p = p.to(device=x.device, dtype=torch.float64)
        self.slot = torch.full((len(p),), -1, dtype=torch.int64, device=x.device)
        self.data = torch.zeros((0, x.shape[-1]), dtype=x.dtype, device=x.device)
        self.used = torch.zeros((), dtype=torch.int64, device=x.device)
        self.total = torch.zeros(x.shape[-1], dtype=torch.float64, device=x.device)
        self.bound = 0

    def __len__(self) -> int:
        return len(self.slot)

    def __repr__(self) -> str:
        return f"Rows(n={len(self)}, P={self.data.shape[1]}, stored={self.data.shape[0]})"

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
            return torch.zeros((len(who), self.data.shape[1]), dtype=self.data.dtype, device=self.data.device)
        slot = self.slot[who]
        rows = self.data[slot.clamp(min=0)]
        return torch.where((slot >= 0)[:, None], rows, torch.zeros((), dtype=rows.dtype, device=rows.device))

    def __setitem__(self, who: Tensor, values: Tensor) -> None:
        import torch

        if not len(who):
            return
        self._reserve(len(who))
        old = self[who]
        slot = self.slot[who]
        new = slot < 0
        slot = torch.where(new, self.used + torch.cumsum(new, 0) - 1, slot)
        self.slot[who] = slot
        self.used = self.used + new.sum()
        self.total += self.p[who] @ (values.to(torch.float64) - old)
        self.data[slot] = values

    def _reserve(self, k: int) -> None:
        """Room for k more rows. Grows by half; asks the device for the true count only when the bound says full."""
        if self.bound + k > len(self.data):
            self.bound = int(self.used)
        if self.bound + k > len(self.data):
            size = min(len(self), max(self.bound + k, self.bound + self.bound // 2))
            grown = self.data.new_zeros((size, self.data.shape[1]))
            grown[: self.bound] = self.data[: self.bound]
            self.data = grown
        self.bound = min(self.bound + k, len(self.data))

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
        """A table holding what `tensors()` gave, of this one's kind."""
        rows = Rows(self.p, self.data)
        for name, tensor in tensors.items():
            setattr(rows, name, tensor.clone())
        rows.bound = int(rows.used)
        return rows

    def copy(self) -> Rows:
        """A table that shares no memory with this one."""
        return self.restored(self.tensors())
