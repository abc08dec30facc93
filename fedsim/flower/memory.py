"""What a FlowerStrategy remembers: weights by the numbers of examples, heard bit by bit, and what a checkpoint says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedsim.flower import wire
from fedsim.rows import Rows


def weights(n: int, counts: Mapping[int, float]) -> Tensor:
    """The objective's weights p [n], from the clients' numbers of examples: who is missing counts like the mean of the
    others, and all count the same where none is known."""
    if not counts:
        return torch.full((n,), 1.0 / n, dtype=torch.float64)
    mean = sum(counts.values()) / len(counts)
    p = torch.tensor([counts.get(i, mean) for i in range(n)], dtype=torch.float64)
    return p / p.sum()


def reweighed(state: Any, before: Any, after: Any) -> Any:
    """A state in which what `init` made of the old weights is what it makes of the new ones.

    `before` and `after` are fresh states of both: where they agree nothing depends on the weights; where they differ
    the state must still be as `init` left it. Raises ValueError where it has moved on from there.
    """
    if isinstance(state, Rows):
        if not torch.equal(before.p, after.p):
            state.reweigh(after.p)
        return state
    if isinstance(state, Tensor) and isinstance(before, Tensor):
        if torch.equal(before, after):
            return state
        if state.shape != before.shape or not torch.equal(state, before):
            raise ValueError(
                "the clients' numbers of examples changed, and the strategy has already worked with the old weights; "
                "use objective='uniform', or let the ClientApps answer the query with num-examples"
            )
        return after
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        return type(state)(*(reweighed(*part) for part in zip(state, before, after, strict=True)))
    return state


def read_meta(path: Path) -> dict[str, Any]:
    """What a checkpoint keeps beside the state."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("fedsim", "{}"))
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a checkpoint, or is damaged: {wire.first_line(error)}") from error
    meta: dict[str, Any] = header.get("meta", {})
    return meta
