"""Drawing presence spell by spell: it costs what the appearances cost, whatever the number of clients and rounds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedsim import keyed
from fedsim.participation.checks import Floats

Integers = npt.NDArray[np.int64]

MOST = 2**31  # entries of one schedule: 8 GB
CLIENTS = 2**17  # clients drawn together
BLOCK = 2**20  # spells drawn together: bounds what drawing needs beyond the schedule itself


def affordable(n: int, rounds: int, entries: float) -> None:
    """Raises ValueError if a schedule of so many appearances is too large to hold."""
    if entries > MOST:
        raise ValueError(
            f"a schedule of {n} clients and {rounds} rounds would hold {entries:.1e} appearances"
            f" ({entries * 4e-9:.0f} GB); lower the rounds or the participation"
        )


def counting(count: Integers) -> Integers:
    """0..count[0]-1, 0..count[1]-1, ... one after another."""
    return np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)


def spread(who: Integers, begin: Integers, length: Integers, n: int, rounds: int) -> Integers:
    """t · n + i for all rounds t in 0..rounds-1 of the spells [begin, begin + length) of clients who."""
    end = np.minimum(begin + length, rounds)
    begin = np.maximum(begin, 0)
    length = np.maximum(end - begin, 0)
    return (np.repeat(begin, length) + counting(length)) * n + np.repeat(who, length)


def geometric(u: Floats, chance: Floats, most: int) -> Integers:
    """The first success, counted from 1, of trials with this chance, from a uniform u in [0, 1); at most `most`."""
    with np.errstate(divide="ignore", invalid="ignore"):  # chance 1: log 0 = -∞, the first trial; 0: never
        trials = np.log1p(-u) / np.log1p(-chance)
    return (np.fmin(np.floor(trials), most - 1) + 1).astype(np.int64)


def chain(who: Integers, come: Floats, leave: Floats, initial: Floats, n: int, rounds: int, key: int) -> Integers:
    """Appearances of independent two-state chains, drawn spell by spell.

    come = P(inactive → active), leave = P(active → inactive), initial = P(active in round 0). Spell s of client i is
    drawn from keys (i, 2s) and (i, 2s + 1) alone, so blocks only decide what is computed together.
    """
    import torch

    found = [np.empty(0, dtype=np.int64)]
    for low in range(0, len(who), CLIENTS):
        part = slice(low, low + CLIENTS)
        i, a, b, now = who[part], come[part], leave[part], np.zeros(len(who[part]), dtype=np.int64)
        active = keyed.uniform(key, "start", torch.from_numpy(i)).numpy() < initial[part]
        s = 0  # spells drawn so far, of all clients still before the end
        while len(i):
            expected = float(np.mean((rounds - now) / (1.0 / a + 1.0 / np.maximum(b, 1e-300))))
            width = max(1, min(int(1.1 * expected) + 2, BLOCK // len(i)))
            draw = torch.arange(2 * s, 2 * (s + width))
            u = keyed.uniform(key, torch.from_numpy(i)[:, None], draw).numpy()
            gap = geometric(u[:, ::2], a[:, None], rounds + 1)
            length = geometric(u[:, 1::2], b[:, None], rounds + 1)
            if s == 0:
                gap[active, 0] = 0
            end = now[:, None] + np.cumsum(gap + length, axis=1)
            begin = end - length
            row, column = np.nonzero(begin < rounds)
            found.append(spread(i[row], begin[row, column], length[row, column], n, rounds))
            alive = end[:, -1] < rounds
            i, a, b, now = i[alive], a[alive], b[alive], end[alive, -1]
            s += width
    return np.concatenate(found)
