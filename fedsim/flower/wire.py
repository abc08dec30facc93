"""What travels: a model as named arrays, and the rest of the work in records of our own.

Any ClientApp finds in a train message

    "arrays"  ArrayRecord   where it starts, under the model's names
    "config"  ConfigRecord  the user's own, and "server-round" (1, 2, ...)

and one that declared what it understands (see `client_app`), or is asked for more than to train from there, finds
besides, as far as there is any

    "fedsim"           ConfigRecord  t (0, 1, ...), key, reply ("delta" or "arrays"), mu, scale, shift, against,
                                     effort, ask, and where there are phases "phases" (their shares),
                                     "phases-count" and "phases-free" (see `phases_packed`)
    "fedsim.shift"     ArrayRecord   added to every local gradient
    "fedsim.velocity"  ArrayRecord   local momentum to start with
    "fedsim.other"     ArrayRecord   a second point, whose gradients times `against` are taken off
    "fedsim.scale"     ArrayRecord   scale and against where each parameter has its own, "fedsim.against"

A reply holds one ArrayRecord, the updated model, or instead "fedsim.delta", how far it moved: exact, where the
difference of two models is rounded. Answers to `ask` come as metrics "told.<name>" or ArrayRecords
"fedsim.told.<name>". A config's "honoured" lists which of shift, scale, mu, other, velocity, phases, effort and
"ask <name>" the training went by, and "each parameter" where scale is an ArrayRecord: an app that did not declare it
beforehand must say so.

A node that hosts many clients gets one message for all of its that are asked. "fedsim" then lists "who", their "keys",
"efforts" and, if they differ, "scale", "mu" and "against"; "arrays" and our records hold [k, ...] where they differ
from client to client ("each" lists which do), else what all have in common. The reply is "fedsim.delta" and
"fedsim.told.<name>" [k, ...], and metrics that are lists, in the order of its own "who".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from fedsim.strategy import Phase, Work
from fedsim.task import Layout

OURS = "fedsim"
DELTA, SHIFT, VELOCITY, TOLD = f"{OURS}.delta", f"{OURS}.shift", f"{OURS}.velocity", f"{OURS}.told."
OTHER, SCALE, AGAINST = f"{OURS}.other", f"{OURS}.scale", f"{OURS}.against"
TOLD_METRIC = "told."


class Unfit(ValueError):
    """Content of a message that cannot be used, in one line."""


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


def row(value: Tensor | float, j: int, like: Tensor) -> Tensor | float:
    """Client j's share of what broadcasts against `like` [k, P]: a number, or [P] ([1] for one number per client)."""
    if not isinstance(value, Tensor):
        return float(value)
    if value.ndim == 2:
        return value[j if len(value) > 1 else 0]
    return float(value) if value.ndim == 0 else value


def parameterwise(value: Tensor | float) -> bool:
    """Whether each parameter has its own, and not each client."""
    return isinstance(value, Tensor) and value.ndim > 0 and value.shape[-1] > 1


def needs(work: Work) -> list[str]:
    """What a client must understand of the work beyond where to start, in words."""
    out = []
    if isinstance(work.shift, Tensor) or work.shift:
        out.append("shift")
    if isinstance(work.scale, Tensor) or work.scale != 1.0:
        out.append("scale")
    if parameterwise(work.scale) or parameterwise(work.against):
        out.append("each parameter")
    if isinstance(work.mu, Tensor) or work.mu:
        out.append("mu")
    if work.other is not None:
        out.append("other")
    if work.velocity is not None:
        out.append("velocity")
    if work.phases:
        out.append("phases")
    return out + [f"ask {name}" for name in sorted(work.ask)]


def pack_work(
    form: Form, work: Work, j: int, *, t: int, key: int, reply: str, effort: float = 1.0
) -> dict[str, ArrayRecord | ConfigRecord]:
    """Our own records of the message to client j of the cohort."""
    config = ConfigRecord({"t": t, "key": key, "reply": reply})
    records: dict[str, ArrayRecord | ConfigRecord] = {OURS: config}
    shift, scale = row(work.shift, j, work.start), row(work.scale, j, work.start)
    if isinstance(shift, Tensor):
        records[SHIFT] = form.record(shift.expand(work.start.shape[1]))
    elif shift:
        config["shift"] = shift
    if isinstance(scale, Tensor) and scale.numel() > 1:
        records[SCALE] = form.record(scale)
    elif float(scale) != 1.0:
        config["scale"] = float(scale)
    if mu := float(row(work.mu, j, work.start)):
        config["mu"] = mu
    if work.velocity is not None:
        records[VELOCITY] = form.record(work.velocity[j])
    if work.other is not None:
        records[OTHER], against = form.record(work.other[j]), row(work.against, j, work.start)
        if isinstance(against, Tensor) and against.numel() > 1:
            records[AGAINST] = form.record(against)
        else:
            config["against"] = float(against)
    if work.ask:
        config["ask"] = sorted(work.ask)
    config.update(phases_packed(work.phases))
    if effort < 1:
        config["effort"] = effort
    return records


def phases_packed(phases: Sequence[Phase]) -> dict[str, list[int] | list[float]]:
    """The settings that say what stands still when: shares, whether steps count, and of each phase how many parameters
    in a row stand still, move, stand still, ..., until all are named."""
    if not phases:
        return {}
    runs: list[int] = []
    for phase in phases:
        free, lengths = torch.unique_consecutive(phase.free, return_counts=True)
        runs += [0] * bool(free[0]) + lengths.tolist()
    return {
        "phases": [float(phase.share) for phase in phases],
        "phases-count": [int(phase.counts) for phase in phases],
        "phases-free": runs,
    }


def phases_unpacked(config: Mapping[str, Any], size: int, device: torch.device) -> tuple[Phase, ...]:
    """What `phases_packed` packed, for models of `size` parameters. Raises Unfit for runs of another number."""
    shares, counts, runs = (list(config.get(name, ())) for name in ("phases", "phases-count", "phases-free"))
    found = []
    for share, counted in zip(shares, counts, strict=False):
        lengths = [
            run for run, before in zip(runs, itertools.accumulate(runs, initial=0), strict=False) if before < size
        ]
        free = (torch.arange(len(lengths)) % 2 == 1).repeat_interleave(torch.tensor(lengths, dtype=torch.int64))
        if len(free) != size:
            raise Unfit(f"the phases say of {len(free)} of {size} parameters which move")
        found.append(Phase(share, free.to(device), bool(counted)))
        runs = runs[len(lengths) :]
    return tuple(found)


def unpack_work(form: Form, content: RecordDict, start: Tensor) -> Work:
    """The work [1, P] of the client that got this message."""
    config = ours(content)
    arrays = content.array_records

    def value(name: str, usual: float) -> Tensor | float:
        """One number, or one for each parameter."""
        at = f"{OURS}.{name}"
        return form.flat(arrays[at])[None].to(start) if at in arrays else float(config.get(name, usual))

    return Work(
        start[None],
        shift=value("shift", 0.0),
        scale=value("scale", 1.0),
        mu=float(config.get("mu", 0.0)),
        velocity=form.flat(arrays[VELOCITY])[None].to(start) if VELOCITY in arrays else None,
        ask=frozenset(config.get("ask", ())),
        other=form.flat(arrays[OTHER])[None].to(start) if OTHER in arrays else None,
        against=value("against", 0.0),
        phases=phases_unpacked(config, len(start), start.device),
    )


def ours(content: RecordDict) -> dict[str, Any]:
    """Our own settings in a message, none when it comes from a strategy that knows nothing of us."""
    return dict(content.config_records[OURS]) if OURS in content.config_records else {}


def foreign(names: Iterable[str]) -> list[str]:
    """The names of records that are not ours."""
    return [name for name in names if name != OURS and not name.startswith(f"{OURS}.")]


def only_arrays(content: RecordDict) -> ArrayRecord:
    """The one ArrayRecord that holds a model. Raises Unfit when there are none or several."""
    names = foreign(content.array_records)
    if len(names) != 1:
        raise Unfit(f"expected one ArrayRecord, got {len(names)}")
    return content.array_records[names[0]]


def values(content: RecordDict) -> dict[str, Any]:
    """Everything in the message's configs and metrics, by key."""
    out: dict[str, Any] = {}
    for records in (content.config_records, content.metric_records):
        for entries in records.values():
            out.update(entries)
    return out


def honoured(content: RecordDict) -> frozenset[str]:
    """What of the work beyond where to start a reply says it went by."""
    said = values(content).get("honoured", [])
    return frozenset(said if isinstance(said, list) else [said])


def number(value: Any) -> float | None:
    """A finite number, or None."""
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if plain and math.isfinite(value) else None


def first_line(what: object) -> str:
    """The line of an error that says what happened: the last one of a traceback, the first one of anything else."""
    lines = [line.strip() for line in str(what).strip().splitlines() if line.strip()]
    if not lines:
        return type(what).__name__
    return lines[-1] if lines[0].startswith("Traceback") else lines[0]


# Many clients in one message -----------------------------------------------------------------------------------------


class Cohort(NamedTuple):
    """The work of some clients of one node."""

    t: int
    who: Tensor  # [k]  ascending, on the host
    work: Work
    keys: Tensor  # [k]
    efforts: Tensor  # [k]


def pack_cohort(
    form: Form, work: Work, rows: list[int], *, t: int, who: list[int], keys: list[int], efforts: list[float]
) -> dict[str, ArrayRecord | ConfigRecord]:
    """The records of the message to a node with the clients `who`, who are these rows of the cohort."""
    config = ConfigRecord({"t": t, "who": who, "keys": keys, "efforts": efforts})
    records: dict[str, ArrayRecord | ConfigRecord] = {}
    each = []

    def vectors(name: str, value: Tensor) -> None:
        """Each client's own, or what they have in common."""
        mine = value[rows] if len(value) > 1 and not is_one(value) else value[:1]
        if len(mine) > 1:
            each.append(name)
        records[name] = form.record(mine if len(mine) > 1 else mine[0])

    vectors("arrays", work.start)
    if isinstance(work.shift, Tensor):
        shift = work.shift if work.shift.ndim == 2 else work.shift.reshape(1, -1)
        vectors(SHIFT, shift.expand(len(shift), work.start.shape[1]))
    elif work.shift:
        config["shift"] = float(work.shift)

    def values(name: str, value: Tensor | float, usual: float) -> None:
        """A number for all, for each client, or for each parameter."""
        if isinstance(value, Tensor) and parameterwise(value):
            vectors(f"{OURS}.{name}", value.reshape(-1, value.shape[-1]))
        elif isinstance(value, Tensor):
            config[name] = value.expand(len(work.start), 1)[rows, 0].tolist()
        elif value != usual:
            config[name] = float(value)

    values("scale", work.scale, 1.0)
    values("mu", work.mu, 0.0)
    if work.velocity is not None:
        vectors(VELOCITY, work.velocity)
    if work.other is not None:
        vectors(OTHER, work.other)
        values("against", work.against, 0.0)
    if work.ask:
        config["ask"] = sorted(work.ask)
    config.update(phases_packed(work.phases))
    config["each"] = each
    return {**records, OURS: config}


def is_one(value: Tensor) -> bool:
    """Whether all rows [k, P] are the same, bit for bit."""
    if value.stride(0) == 0 or len(value) == 1:
        return True
    bits = value.contiguous().view(torch.int64 if value.element_size() == 8 else torch.int32)
    return bool((bits[1:] == bits[:1]).all())


def unpack_cohort(form: Form, content: RecordDict, device: torch.device) -> Cohort:
    """What `pack_cohort` packed. Raises Unfit for a message to a single client."""
    config, arrays = ours(content), content.array_records
    if not {"t", "who", "keys", "efforts"} <= config.keys():
        raise Unfit("the message is for one client and this node hosts many; use the engine fedsim.flower.over")
    k = len(config["who"])
    like = torch.zeros(0, dtype=form.dtype, device=device)

    def vectors(name: str) -> Tensor:
        return (form.flat(arrays[name], k) if name in config.get("each", ()) else form.flat(arrays[name])[None]).to(
            like
        )

    def value(name: str, usual: float) -> Tensor | float:
        """A number for all, for each client, or for each parameter."""
        if (at := f"{OURS}.{name}") in arrays:
            return vectors(at)
        given = config.get(name, usual)
        return torch.tensor(given, dtype=torch.float64).to(like)[:, None] if isinstance(given, list) else float(given)

    work = Work(
        vectors("arrays").expand(k, -1),
        shift=value("shift", 0.0),
        scale=value("scale", 1.0),
        mu=value("mu", 0.0),
        velocity=vectors(VELOCITY).expand(k, -1) if VELOCITY in arrays else None,
        ask=frozenset(config.get("ask", ())),
        other=vectors(OTHER).expand(k, -1) if OTHER in arrays else None,
        against=value("against", 0.0),
        phases=phases_unpacked(config, sum(form.layout.sizes), device),
    )
    keys = torch.tensor(config["keys"], dtype=torch.int64, device=device)
    efforts = torch.tensor(config["efforts"], dtype=torch.float32)
    return Cohort(int(config["t"]), torch.tensor(config["who"], dtype=torch.int64), work, keys, efforts)
