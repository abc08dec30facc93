"""What tuning may cost: rungs, how many trials each has room for, and the same allowance for every strategy.

Successive halving (Jamieson & Talwalkar, AISTATS 2016, 1502.07943), with trials that go on from where they are. With
8 trials, eta = 2 and 200 rounds: 8 trials run to round 50, the best 4 of them to round 100, the best 2 to round 200.
That is 8 · 50 + 4 · 50 + 2 · 100 = 800 rounds, the allowance of every strategy.

A strategy with fewer than 8 points to try, or whose trials diverge, leaves room empty. What it has not spent in one
rung it may spend in the next, where more of its trials then go on: four points all run to round 200. So nobody spends
more than the allowance, all are judged after the same rounds, and only a strategy that has run all it could to the end
spends less (or one whose next trial would not fit).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

LOOKS = 5  # at most, at a trial in a rung


class Rung(NamedTuple):
    """A stretch of tuning, at whose end the trials are compared."""

    rounds: int  # how far its trials have come at the end
    slots: int  # trials that there is room for


def rungs(trials: int, rounds: int, eta: int) -> tuple[Rung, ...]:
    """The rungs for so many trials, of which the longest has so many rounds; the last is the one that leaves a winner.

    Raises ValueError where the rounds do not suffice.
    """
    slots = [trials]
    while slots[-1] > eta:
        slots.append(-(-slots[-1] // eta))
    least = eta ** (len(slots) - 1)
    if rounds < least:
        raise ValueError(
            f"rounds must be at least {least} for {trials} trials in {len(slots)} rungs (eta = {eta}), got {rounds}; "
            "give more rounds, fewer trials or a larger eta"
        )
    return tuple(Rung(rounds // eta ** (len(slots) - 1 - k), room) for k, room in enumerate(slots))


def looks(rounds: int) -> list[int]:
    """After which rounds a trial that has come so far is looked at: at most LOOKS of the last fifth of its rounds,
    evenly apart, the last among them. It is judged by their mean, as runs are, so that no lucky round wins."""
    late = rounds - int(0.8 * rounds)  # rounds 1 + ... of the last fifth
    apart = max(1, late // LOOKS)
    return [rounds - i * apart for i in range(min(LOOKS, late)) if rounds - i * apart > 0.8 * rounds][::-1]


def lengths(rungs: Sequence[Rung]) -> list[int]:
    """How many rounds a trial runs in each rung."""
    return [rung.rounds - before for rung, before in zip(rungs, [0, *(r.rounds for r in rungs)], strict=False)]


def allowance(rungs: Sequence[Rung], upto: int | None = None) -> int:
    """The rounds of all trials together, with one seed: in all rungs, or in the first so many."""
    spent = [rung.slots * length for rung, length in zip(rungs, lengths(rungs), strict=True)]
    return sum(spent[:upto])


def room(rungs: Sequence[Rung], k: int, spent: int, seeds: int = 1) -> int:
    """How many trials may run in rung k after so many rounds were spent with so many seeds."""
    return (seeds * allowance(rungs, k + 1) - spent) // (seeds * lengths(rungs)[k])
