"""What a sweep found, as plain numbers on the grid of its axes: means, paired differences, who is best where.

All cells share the seeds, and with them data, first models, presence and minibatches as far as the axes leave these
alone, so strategies are compared seed by seed within a cell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedsim import paired, reread, resolve
from fedsim.merit import higher_is_better
from fedsim.sweep.axes import ordered, title
from fedsim.sweep.folder import FILE, HEAD, INDEX, read_index

if TYPE_CHECKING:
    from numpy.typing import NDArray

Place = tuple[int, ...]  # of a cell: where it lies on each axis


class Grid(NamedTuple):
    """A metric's late means in all cells, by place; the values of an axis in the order they are drawn."""

    names: tuple[str, ...]  # of the axes
    values: tuple[tuple[Any, ...], ...]  # of the axes
    metric: str
    strategies: tuple[str, ...]
    seeds: int  # how many there are in the cell that has most
    found: Mapping[Place, Mapping[str, Mapping[int, float]]]  # strategy -> seed -> value, finite ones only

    @property
    def shape(self) -> Place:
        return tuple(map(len, self.values))

    def means(self, strategy: str) -> NDArray[np.float64]:
        """The mean over the seeds, by place; NaN where there is no value."""
        out = np.full(self.shape, math.nan)
        for place, cell in self.found.items():
            if cell.get(strategy):
                out[place] = np.mean(list(cell[strategy].values()))
        return out

    def differences(self, strategy: str, against: str) -> dict[Place, paired.Difference]:
        """A strategy minus another, seed by seed, in every cell."""
        nothing: dict[int, float] = {}
        return {
            place: paired.difference(
                strategy, against, self.metric, cell.get(strategy, nothing), cell.get(against, nothing)
            )
            for place, cell in self.found.items()
        }

    def standings(self, place: Place) -> list[paired.Standing]:
        """Who is how good in a cell, the best mean first."""
        cell = self.found.get(place, {})
        values = {label: cell.get(label, {}) for label in self.strategies}
        return paired.standings(values, self.metric, higher_is_better(self.metric))


def read(folder: Path, metric: str | None = None) -> Grid | None:
    """The grid of a sweep folder, of test accuracy, or of test loss, where no metric is named; None without any run.

    Raises ValueError for a metric that was not measured.
    """
    sweep = reread.toml(folder / FILE).get("sweep")
    if not isinstance(sweep, dict) or not all(isinstance(values, list) and values for values in sweep.values()):
        raise reread.spoilt(folder / FILE, "its table [sweep] is no table of lists")
    rows = read_index(folder)
    if not rows or len({row["cell"] for row in rows}) != math.prod(map(len, sweep.values())):
        raise reread.spoilt(folder / INDEX, f"its cells are not those of {FILE}")
    columns = list(rows[0])
    measured = columns[columns.index(HEAD[-1]) + 1 :]
    runs = [row for row in rows if row["status"] == "finished"]
    if not measured or not runs:
        return None
    if metric is None:
        metric = next((name for name in ("test_accuracy", "test_loss") if name in measured), measured[0])
    if metric not in measured:
        raise ValueError(f'metric "{metric}" was not measured{resolve.nearest(metric, measured)}')
    values = list(sweep.values())
    orders = [ordered(each) for each in values]
    ranks = [{i: rank for rank, i in enumerate(order)} for order in orders]
    cells = {name: number for number, name in enumerate(dict.fromkeys(row["cell"] for row in rows))}
    found: dict[Place, dict[str, dict[int, float]]] = {}
    for row in runs:
        at = np.unravel_index(cells[row["cell"]], tuple(map(len, values)))
        place = tuple(rank[int(i)] for rank, i in zip(ranks, at, strict=True))
        if row[metric] and math.isfinite(float(row[metric])):
            found.setdefault(place, {}).setdefault(row["strategy"], {})[int(row["seed"])] = float(row[metric])
    return Grid(
        tuple(map(title, sweep)),
        tuple(tuple(each[i] for i in order) for each, order in zip(values, orders, strict=True)),
        metric,
        tuple(dict.fromkeys(row["strategy"] for row in rows if row["strategy"])),
        max((len(seeds) for cell in found.values() for seeds in cell.values()), default=0),
        found,
    )
