"""Parts of a model by name: which parameters are meant, and where they lie in the flat vector.

A pattern is matched against the names of the parameters as a shell matches names of files: "0.weight", "blocks.3.*",
"*.bias". Two words stand for layers that every model calls otherwise: "head" is the last layer, and "norm" are the
normalising ones, those whose weight has one dimension.
"""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from fedsim import resolve

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fedsim.task import Layout

WORDS = ("head", "norm")


def named(layout: Layout, patterns: Sequence[str]) -> tuple[str, ...]:
    """The parameters that any of the patterns means, in the model's order.

    Raises ValueError for a pattern that means none, with the nearest name.
    """
    found: set[str] = set()
    for pattern in patterns:
        hits = _meant(layout, pattern)
        if not hits:
            if pattern == "norm":
                raise ValueError('"norm" means the normalising layers, and the model has none')
            near = resolve.nearest(pattern, (*layout.names, *WORDS))
            raise ValueError(f'"{pattern}" is no parameter of the model{near}')
        found.update(hits)
    return tuple(name for name in layout.names if name in found)


def _meant(layout: Layout, pattern: str) -> list[str]:
    hits = [name for name in layout.names if fnmatch.fnmatchcase(name, pattern)]
    if hits or pattern not in WORDS:
        return hits
    if pattern == "head":
        layers = {_layer(layout.names[-1])}
    else:
        shapes = zip(layout.names, layout.shapes, strict=True)
        layers = {_layer(name) for name, shape in shapes if name.endswith(".weight") and len(shape) == 1}
    return [name for name in layout.names if _layer(name) in layers]


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


class Split(NamedTuple):
    """The entries of a vector of P numbers, in two parts."""

    others: Tensor  # [P_o]  ascending
    meant: Tensor  # [P_m]  ascending; those that the patterns mean

    def join(self, others: Tensor, meant: Tensor) -> Tensor:
        """The vectors [..., P] that have these others [..., P_o] and meant [..., P_m]."""
        whole = others.new_empty((*others.shape[:-1], len(self.others) + len(self.meant)))
        whole[..., self.others] = others
        whole[..., self.meant] = meant
        return whole


@functools.lru_cache(maxsize=16)
def split(layout: Layout, patterns: tuple[str, ...], device: torch.device) -> Split:
    """The entries that the patterns mean, and the others. Raises ValueError as `named` does."""
    import torch

    chosen = set(named(layout, patterns))
    flags = [torch.full((size,), name in chosen) for name, size in zip(layout.names, layout.sizes, strict=True)]
    meant = torch.cat(flags)  # on the host, which need not ask then how many they are
    return Split((~meant).nonzero()[:, 0].to(device), meant.nonzero()[:, 0].to(device))
