"""A model as named arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from fedsim.flower.wire.words import Unfit, first_line
from fedsim.task import Layout


@dataclass(frozen=True)
class Form:
    """How a model [P] lies in an ArrayRecord.

    The floating-point arrays are the model. What else is there (counters, masks) is no part of it: it is sent along
    as it was given, and what replies make of it is not looked at.
    """

    layout: Layout
    kinds: tuple[np.dtype[Any], ...]  # of the arrays, as they are sent
    dtype: torch.dtype  # of the vector: float32, or float64 if any array is
    order: tuple[str, ...]  # all names, in the order in which they are sent
    others: Mapping[str, Array] = field(default_factory=dict)

    @classmethod
    def of(cls, record: ArrayRecord) -> Form:
        """The form of a record. Raises ValueError when there is nothing to learn in it."""
        names, shapes, kinds, others = [], [], [], {}
        for name, array in record.items():
            values = array.numpy()
            if values.dtype.kind == "f":
                names.append(name)
                shapes.append(torch.Size(values.shape))
                kinds.append(values.dtype.newbyteorder("="))
            else:
                others[name] = array
        if not names:
            raise ValueError("the initial arrays hold no floating-point array, so there is nothing to learn")
        dtype = torch.float64 if np.result_type(*kinds) == np.float64 else torch.float32
        return cls(Layout(tuple(names), tuple(shapes)), tuple(kinds), dtype, tuple(record), others)

    @classmethod
    def of_layout(cls, layout: Layout, dtype: torch.dtype) -> Form:
        """The form of a task's models."""
        kind = np.dtype(str(dtype).removeprefix("torch."))
        return cls(layout, (kind,) * len(layout.names), dtype, layout.names)

    def flat(self, record: ArrayRecord, *lead: int) -> Tensor:
        """A vector [P] with the record's numbers, whatever their memory layout, byte order or precision; its own copy.

        With `lead`, arrays [*lead, ...] become vectors [*lead, P].

        Raises Unfit when a name is missing or unknown, a shape differs, or an array is not of floating point.
        """
        missing = [name for name in self.layout.names if name not in record]
        unknown = [name for name in record if name not in self.order]
        if missing or unknown:
            what, name = ("lacks", missing[0]) if missing else ("holds an unknown", unknown[0])
            raise Unfit(f"the ArrayRecord {what} array {name!r}")
        parts = []
        for name, shape, size in zip(self.layout.names, self.layout.shapes, self.layout.sizes, strict=True):
            try:
                values = record[name].numpy()
            except (ValueError, TypeError, OSError, EOFError) as error:
                raise Unfit(f"array {name!r} cannot be read: {first_line(error)}") from error
            if values.dtype.kind != "f":
                raise Unfit(f"array {name!r} is {values.dtype}, not floating point")
            if values.shape != (*lead, *shape):
                raise Unfit(f"array {name!r} has shape {values.shape}, not {(*lead, *shape)}")
            double = values.dtype.itemsize >= 8 or self.dtype == torch.float64
            plain = np.require(values, np.float64 if double else np.float32, ["C", "W"])
            parts.append(torch.from_numpy(plain).reshape((*lead, size)).to(self.dtype))
        return torch.cat(parts, -1)

    def sent(self, flat: Tensor) -> Tensor:
        """A vector [P] as who receives its record reads it: arrays of half precision are rounded on the way."""
        whole = all(kind.itemsize >= self.dtype.itemsize for kind in self.kinds)
        return flat if whole else self.flat(self.record(flat))

    def record(self, flat: Tensor) -> ArrayRecord:
        """The record that holds a vector [P], or vectors [k, P]."""
        parts, lead = flat.detach().cpu().split(self.layout.sizes, -1), flat.shape[:-1]
        found = zip(self.layout.names, self.layout.shapes, self.kinds, parts, strict=True)
        arrays = {name: array(part.reshape((*lead, *shape)), kind) for name, shape, kind, part in found}
        record = ArrayRecord()
        for name in self.order:
            record[name] = self.others[name] if name in self.others else arrays[name]
        return record


def array(tensor: Tensor, kind: np.dtype[Any]) -> Array:
    """A tensor as flwr sends it."""
    return Array(np.ascontiguousarray(tensor.numpy(), dtype=kind).reshape(tensor.shape))


def share(record: ArrayRecord) -> ArrayRecord:
    """A record of its own with the same arrays: who empties it empties it for nobody else."""
    out = ArrayRecord()
    for name, value in record.items():
        out[name] = value
    return out
