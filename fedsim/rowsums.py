"""Weighted sums of many long rows in host memory, at the speed at which memory is read.

Rows are added up in float32, up to `GROUP` at a time, by the kernel of `embedding_bag`: it takes rows by number, where
they lie, and keeps its sums in registers. The groups' sums are added in float64. Of k <= GROUP terms of size s the sum
is off by at most (k - 1) 2^-24 k s, and by about 2^-24 k s / 5 where rounding goes both ways.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

GROUP = 128  # rows that are added up in float32
SEGMENT = 2**17  # numbers that a second row of weights finds in the caches
SHORTEST = 256  # of a segment
PIECE = 2**16  # numbers of a sum that are combined at once


def suits(rows: Tensor) -> bool:
    """Whether rows [k, P] are such as this is for: float32 in host memory."""
    import torch

    return rows.dtype == torch.float32 and rows.device.type == "cpu"


def exchanged(new: Tensor, old: Tensor, place: Tensor, w: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """The sums sum_j w_j new_j and sum_j w_j old[place_j] of rows new [k, P] and of some rows of a table old [r, P],
    for every row of weights w [m, k], float64, but the last: [m - 1, P] float64 each. Their difference for the last
    is added to `total` [P] float64. Tables are contiguous."""
    import torch

    k, size = new.shape
    factors, units = split(w)
    sums = [_sums(new, torch.arange(k), units), _sums(old, place, units)]
    count, kinds, _, length = sums[0].shape
    told = [torch.empty((len(w) - 1, size), dtype=torch.float64) for _ in sums]
    many = max(1, PIECE // length)
    for top in range(0, count, many):  # by pieces that caches hold: what lies between is float64
        some = slice(top, min(top + many, count))
        columns = slice(top * length, some.stop * length)
        fresh, stale = (_together(one[some]).transpose(0, 1).reshape(kinds, -1) for one in sums)
        if factors is None:
            told[0][:, columns], told[1][:, columns] = fresh[:-1], stale[:-1]
            total[columns] += fresh[-1].sub_(stale[-1])
        else:
            torch.mul(factors[:-1], fresh, out=told[0][:, columns])
            torch.mul(factors[:-1], stale, out=told[1][:, columns])
            total[columns] += fresh.sub_(stale)[0].mul_(factors[-1])
    return told[0], told[1]


def _together(sums: Tensor) -> Tensor:
    """What groups [.., groups, length] come to, float64."""
    import torch

    found = sums[..., 0, :].to(torch.float64)
    for group in range(1, sums.shape[-2]):
        found += sums[..., group, :]
    return found


def _sums(rows: Tensor, place: Tensor, units: Tensor) -> Tensor:
    """sum_j units_ij rows[place_j] for all i of every group, segment by segment [segments, i, groups, length]."""
    import torch

    k, size = len(place), rows.shape[1]
    length = segment(size, k)
    count, kinds = size // length, len(units)
    at = (place * count + torch.arange(count)[:, None, None]).expand(count, kinds, k)
    each = units.to(torch.float32).expand(count, kinds, k)
    groups = torch.arange(0, k, GROUP)
    offsets = (torch.arange(0, count * kinds * k, k)[:, None] + groups).reshape(-1)
    found = torch.nn.functional.embedding_bag(
        at.reshape(-1), rows.view(-1, length), offsets, mode="sum", per_sample_weights=each.reshape(-1)
    )
    return found.view(count, kinds, len(groups), length)


def write(rows: Tensor, place: Tensor, values: Tensor) -> None:
    """rows[place] = values [k, P]: NumPy copies whole rows, which on one thread is a quarter faster than torch."""
    import torch

    if torch.get_num_threads() > 1:
        rows.index_copy_(0, place, values)
    else:
        rows.numpy()[place.numpy()] = values.numpy()


def split(w: Tensor) -> tuple[Tensor | None, Tensor]:
    """Weights w [m, k] as factors [m, 1] times one row of units [1, k], which are all 1 where weights are equal; or
    None and the weights themselves, where their rows are not multiples of the last."""
    last = w[-1]
    if bool((last != 0).all()):
        ratios = w / last
        if bool((ratios - ratios[:, :1]).abs().le(1e-14 * ratios[:, :1].abs()).all()):
            return ratios[:, :1] * last[0], (last / last[0])[None]
    return None, w


@functools.lru_cache(maxsize=256)
def segment(size: int, k: int) -> int:
    """How long the equal parts are in which k rows are gone through: the longest that caches hold, or the whole row
    where no part of a fair length divides it."""
    longest = min(size, max(SHORTEST, SEGMENT // k))
    return next((length for length in range(longest, SHORTEST - 1, -1) if size % length == 0), size)
