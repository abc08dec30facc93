"""The work of many clients of one node, in one message."""

from __future__ import annotations

from typing import NamedTuple

import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from fedsim.flower.wire.form import Form
from fedsim.flower.wire.words import OTHER, OURS, SHIFT, VELOCITY, Unfit, ours
from fedsim.flower.wire.work import parameterwise, phases_packed, phases_unpacked
from fedsim.strategy import Work


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
