"""Arrays of a Flower message that stay tensors until somebody reads them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord
from torch import Tensor

STYPE = "numpy.ndarray"  # Flower's word for "the data are what numpy.save writes"


class TensorArray(Array):
    """A flwr Array that is start + delta of two tensors in host memory, added up when it is read.

    Nothing is serialised unless somebody asks for `data`. `numpy()` gives a new array each time, as Flower's own does,
    so a strategy may write into what it reads: neither the record nor another client's reply changes. The two tensors
    are shared with whoever made the array, who must not write into them any more.
    """

    def __init__(self, delta: Tensor, start: Tensor) -> None:  # what Array's would set, without its checks
        kind = str(delta.dtype).removeprefix("torch.")
        self.__dict__.update(dtype=kind, shape=tuple(delta.shape), stype=STYPE, _parts=(start, delta))

    def numpy(self) -> npt.NDArray[Any]:
        """The values, in memory of their own."""
        if "_given" in self.__dict__:  # somebody has set data
            return super().numpy()
        start, delta = self.__dict__["_parts"]
        values: npt.NDArray[Any] = (start + delta).numpy()
        return values

    @property
    def data(self) -> bytes:
        """The values as `numpy.save` writes them, made anew each time."""
        if "_given" in self.__dict__:
            given: bytes = self.__dict__["_given"]
            return given
        buffer = io.BytesIO()
        np.save(buffer, self.numpy(), allow_pickle=False)
        return buffer.getvalue()

    @data.setter
    def data(self, value: bytes) -> None:
        self.__dict__["_given"] = value

    def deflate(self) -> bytes:
        """What a plain Array would send: its class is part of it."""
        return Array(self.dtype, self.shape, self.stype, self.data).deflate()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Array):
            return NotImplemented
        mine, theirs = ((a.dtype, a.shape, a.stype) for a in (self, other))
        return mine == theirs and self.data == other.data

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:  # a view would drag the whole cohort along
        return Array, (self.dtype, self.shape, self.stype, self.data)


def records(delta: dict[str, Tensor], start: dict[str, Tensor]) -> list[ArrayRecord]:
    """One record per client: start [k or 1, *shape] + delta [k, *shape] under each name, in host memory."""
    k = len(next(iter(delta.values())))
    out = [ArrayRecord() for _ in range(k)]
    for name, moves in delta.items():
        begins = start[name].unbind(0)
        for j, move in enumerate(moves.unbind(0)):
            out[j][name] = TensorArray(move, begins[j if len(begins) > 1 else 0])
    return out
