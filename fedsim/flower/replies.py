"""What clients answer: what of it can be used, and the mean of their metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from flwr.app import Message, MetricRecord, RecordDict
from torch import Tensor

from fedsim.flower import wire
from fedsim.strategy import Round, Work

Aggregate = Callable[[list[RecordDict], str], MetricRecord]


class Absence(NamedTuple):
    """Somebody who was asked and did not take part."""

    t: int  # round, 0, 1, ...
    client: int
    node: int
    reason: str


class Reply(NamedTuple):
    """A client's usable answer."""

    delta: Tensor  # [P]
    metrics: dict[str, Any]
    told: dict[str, Tensor]  # [P] or []
    content: RecordDict


def read(reply: Message, form: wire.Form, work: Work, j: int, count: str, lenient: bool) -> Reply:
    """The answer of client j of the cohort. Raises wire.Unfit when it cannot be used.

    `count` is the metric that holds the number of examples; it may be missing when `lenient`, never be nonsense.
    """
    if reply.has_error():
        raise wire.Unfit(wire.first_line(reply.error.reason or f"error {reply.error.code}"))
    content = reply.content
    if wire.DELTA in content.array_records:
        delta = form.flat(content.array_records[wire.DELTA])
    else:
        delta = form.flat(wire.only_arrays(content)) - form.sent(work.start[j])
    metrics = wire.values(content)
    told: dict[str, Tensor] = {}
    for name in work.ask:
        if wire.TOLD + name in content.array_records:
            told[name] = form.flat(content.array_records[wire.TOLD + name])
        elif (value := wire.number(metrics.get(wire.TOLD_METRIC + name))) is not None:
            told[name] = torch.tensor(value, dtype=form.dtype)
        elif name != "velocity":  # of which there is none without local momentum
            raise wire.Unfit(f"the reply lacks {name!r}, which was asked for")
    if not all(bool(torch.isfinite(vector).all()) for vector in (delta, *told.values())):
        raise wire.Unfit("the update is not finite (NaN or infinity)")
    if not (lenient and count not in metrics) and not (wire.number(metrics.get(count)) or 0) > 0:
        raise wire.Unfit(f"{count} must be a positive number, got {metrics.get(count)}")
    return Reply(delta, metrics, told, content)


def read_cohort(reply: Message, form: wire.Form, work: Work, clients: list[int]) -> dict[int, Reply | str]:
    """What each of a node's clients answered, or why it cannot be used."""
    try:
        return _read_cohort(reply, form, work, clients)
    except wire.Unfit as unfit:
        return dict.fromkeys(clients, str(unfit))


def _read_cohort(reply: Message, form: wire.Form, work: Work, clients: list[int]) -> dict[int, Reply | str]:
    if reply.has_error():
        raise wire.Unfit(wire.first_line(reply.error.reason or f"error {reply.error.code}"))
    content = reply.content
    who = wire.ours(content).get("who", [])
    k = len(who)
    if wire.DELTA not in content.array_records:
        raise wire.Unfit(f"the reply lacks {wire.DELTA!r}")
    if not k:
        raise wire.Unfit("the reply of its node is without it")
    if len(set(who)) < k:
        raise wire.Unfit("the reply has a client twice")
    delta = form.flat(content.array_records[wire.DELTA], k)
    metrics = wire.values(content)
    for name in ("who", "honoured"):
        metrics.pop(name, None)
    said = {name: value for name, value in metrics.items() if not name.startswith(wire.TOLD_METRIC)}
    if wrong := [name for name, value in metrics.items() if isinstance(value, list) and len(value) != k]:
        raise wire.Unfit(f"the metric {wrong[0]!r} has {len(metrics[wrong[0]])} values for {k} clients")
    told: dict[str, Tensor] = {}
    for name in work.ask:
        if wire.TOLD + name in content.array_records:
            told[name] = form.flat(content.array_records[wire.TOLD + name], k)
        elif isinstance(metrics.get(wire.TOLD_METRIC + name), list):
            told[name] = torch.tensor(metrics[wire.TOLD_METRIC + name], dtype=form.dtype)
        else:
            raise wire.Unfit(f"the reply lacks {name!r}, which was asked for")
    sound = torch.stack([torch.isfinite(value.reshape(k, -1)).all(1) for value in (delta, *told.values())]).all(0)
    out: dict[int, Reply | str] = dict.fromkeys(clients, "the reply of its node is without it")
    for row, (client, good) in enumerate(zip(who, sound.tolist(), strict=True)):
        if client not in out:
            raise wire.Unfit(f"the reply is of client {client}, which was not asked")
        mine = {name: value[row] if isinstance(value, list) else value for name, value in said.items()}
        answers = {name: value[row] for name, value in told.items()}
        found = Reply(delta[row], mine, answers, content)
        out[client] = found if good else "the update is not finite (NaN or infinity)"
    return out


def loss_of(metrics: dict[str, Any]) -> float:
    """The training loss of a reply, NaN where it gives none."""
    for name in ("loss", "train_loss", "train-loss"):
        if (loss := wire.number(metrics.get(name))) is not None:
            return loss
    return float("nan")


def rate_of(heard: list[Reply], before: float | None) -> float | None:
    """The clients' learning rate: their mean where they differ, `before` where nobody says."""
    rates = [rate for reply in heard if (rate := wire.number(reply.metrics.get("lr"))) is not None and rate >= 0]
    if not rates:
        return before
    return rates[0] if len(set(rates)) == 1 else sum(rates) / len(rates)


def round_of(
    t: int, who: Tensor, start: Tensor, heard: list[Reply], ask: frozenset[str], available: Tensor, lr: float | None
) -> Round:
    """What reached the strategy: the usable answers of clients who [k], ascending, that began at start [k, P]. There is
    no span unless all say it, and the same goes for each of the extras that they were asked for."""
    if not heard:
        nothing = start.new_zeros(0)
        return Round(t, who, start, start.clone(), nothing, nothing, available, lr)
    spans = [wire.number(reply.metrics.get("span")) for reply in heard]
    known = [span for span in spans if span is not None and span > 0]
    return Round(
        t,
        who,
        start,
        torch.stack([reply.delta for reply in heard]),
        torch.tensor(known, dtype=start.dtype) if len(known) == len(heard) else None,
        torch.tensor([loss_of(reply.metrics) for reply in heard], dtype=start.dtype),
        available,
        lr,
        told={
            name: torch.stack([reply.told[name] for reply in heard])
            for name in ask
            if all(name in reply.told for reply in heard)
        },
    )


def weighted_mean(contents: list[RecordDict], weighted_by_key: str) -> MetricRecord:
    """The mean of the metrics that all replies give, weighted by one of them (equally where somebody lacks it)."""
    every = [{k: v for record in content.metric_records.values() for k, v in record.items()} for content in contents]
    weights = [wire.number(metrics.get(weighted_by_key)) for metrics in every]
    w = [1.0 if None in weights else weight or 0.0 for weight in weights]
    out = MetricRecord()
    for name, first in every[0].items():
        column = [metrics.get(name) for metrics in every]
        if name == weighted_by_key or None in column:
            continue
        lists = [value if isinstance(value, list) else [value] for value in column]
        if len({len(values) for values in lists}) > 1:
            continue
        mean = [sum(a * b for a, b in zip(w, values, strict=True)) / sum(w) for values in zip(*lists, strict=True)]
        out[name] = mean if isinstance(first, list) else mean[0]
    return out
