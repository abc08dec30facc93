"""A round gathered from several calls of an engine, without those whose update is of no use."""

from __future__ import annotations

import torch
from torch import Tensor

from fedsim.strategy import Round


def finite(delta: Tensor) -> list[bool]:
    """Which updates [k, P] are finite."""
    good = torch.isfinite(delta.sum(1))  # one pass; a sum may overflow, so whoever fails is looked at
    if not bool(good.all()):
        good[~good] = torch.isfinite(delta[~good]).all(1)
    return [bool(one) for one in good.tolist()]


def only(round: Round, good: Tensor) -> Round:
    """The round without those who failed."""
    here = good.to(round.who.device)
    span = None if round.span is None else round.span[here]
    return round._replace(
        who=round.who[here], start=round.start[here], delta=round.delta[here], span=span, loss=round.loss[here]
    )


def together(parts: list[Round]) -> Round:
    """One round from those of several calls of the engine, clients ascending."""
    if len(parts) == 1:
        return parts[0]
    order = torch.cat([part.who for part in parts]).argsort(stable=True)

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])[order]

    span = None if any(part.span is None for part in parts) else joined("span")
    return parts[0]._replace(
        who=joined("who"), start=joined("start"), delta=joined("delta"), span=span, loss=joined("loss")
    )
