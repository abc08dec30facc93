"""What clients answer: what of it can be used, and the mean of their metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from flwr.app import Message, MetricRecord, RecordDict
from torch import Tensor

from fedsim.flower import wire
from fedsim.strategy import Work

Aggregate = Callable[[list[RecordDict], str], MetricRecord]


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


def loss_of(metrics: dict[str, Any]) -> float:
    """The training loss of a reply, NaN where it gives none."""
    for name in ("loss", "train_loss", "train-loss"):
        if (loss := wire.number(metrics.get(name))) is not None:
            return loss
    return float("nan")


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
