"""Names of records, and what is read of a message whoever sent it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, RecordDict

OURS = "fedsim"
DELTA, SHIFT, VELOCITY, TOLD = f"{OURS}.delta", f"{OURS}.shift", f"{OURS}.velocity", f"{OURS}.told."
OTHER, SCALE, AGAINST = f"{OURS}.other", f"{OURS}.scale", f"{OURS}.against"
TOLD_METRIC = "told."


class Unfit(ValueError):
    """Content of a message that cannot be used, in one line."""


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
