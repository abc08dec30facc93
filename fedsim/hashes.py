"""What a run's models were, as hashes: hashes.csv beside metrics.csv, a line for each evaluation.

    strategy, seed, round, model, chain

`model` is the SHA-256 of the evaluated model: its precision, shape and bytes. `chain` is that of the run's line before
it and of everything the evaluation recorded:

    chain_0 = H("")      chain = H(chain of the evaluation before | its lines in metrics.csv | model)

So no number of metrics.csv can be changed, left out or added without a line that no longer fits; and whoever makes the
lines fit again finds other models than the experiment does: `fedsim verify` looks at both. A file of its own, as the
values of metrics.csv are numbers, and whoever reads it as such goes on doing so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fedsim import reread

if TYPE_CHECKING:
    from torch import Tensor

FILE = "hashes.csv"
HEAD = ("strategy", "seed", "round", "model", "chain")
START = hashlib.sha256(b"").hexdigest()


class Link(NamedTuple):
    """One line of hashes.csv."""

    strategy: str
    seed: int
    round: int
    model: str
    chain: str


def of_model(model: Tensor) -> str:
    """SHA-256 of a model [P] or [n, P]: of its precision and shape, and its numbers as they lie in memory."""
    found = hashlib.sha256(f"{str(model.dtype).removeprefix('torch.')} {list(model.shape)}\n".encode())
    found.update(model.detach().cpu().contiguous().numpy().data)
    return found.hexdigest()


def link(before: str, lines: bytes, model: str) -> str:
    """The next of a run's chain: after `before`, for an evaluation's lines in metrics.csv and its model's hash."""
    return hashlib.sha256(b"\n".join([before.encode(), lines, model.encode()])).hexdigest()


def read(folder: str | Path) -> list[Link]:
    """The lines of hashes.csv; none in a folder of before there were any. A last line cut short is passed over. Raises
    ValueError where the file is damaged."""
    path = Path(folder) / FILE
    if not path.exists():
        return []
    columns = dict(zip(HEAD, (reread.label, reread.whole, reread.count, reread.digest, reread.digest), strict=True))
    order, found = reread.Order(path), []
    for line, values in reread.table(path, columns):
        one = Link(*values)
        order(line, one.strategy, one.seed, one.round)
        found.append(one)
    return found


def last(links: Iterable[Link]) -> dict[tuple[str, int], str]:
    """Where the chain of each run, by strategy and seed, stands."""
    return {(one.strategy, one.seed): one.chain for one in links}


def broken(links: Iterable[Link], lines: Mapping[tuple[str, int, int], bytes]) -> tuple[str, int, int] | None:
    """The first evaluation (strategy, seed, round) whose lines in metrics.csv are not those that were chained, or that
    only one of the files has; None where all fit."""
    links, stand = list(links), dict[tuple[str, int], str]()
    for one in links:
        where = (one.strategy, one.seed, one.round)
        before = stand.get((one.strategy, one.seed), START)
        if where not in lines or link(before, lines[where], one.model) != one.chain:
            return where
        stand[one.strategy, one.seed] = one.chain
    known = {(one.strategy, one.seed, one.round) for one in links}
    return next((where for where in lines if where not in known), None)
