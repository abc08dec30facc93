"""The work of one client, in records of our own."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from fedsim.flower.wire.form import Form
from fedsim.flower.wire.words import AGAINST, OTHER, OURS, SCALE, SHIFT, VELOCITY, Unfit, ours
from fedsim.strategy import Phase, Work


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
