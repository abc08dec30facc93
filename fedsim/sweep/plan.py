"""From an experiment file to a sweep: its base, its axes and its cells, all of it checked before anything runs."""

from __future__ import annotations

import copy
import itertools
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w

from fedsim.experiment.overrides import override, put
from fedsim.experiment.reading import located, parse, read
from fedsim.experiment.settings import Mistake, Place, Several, show
from fedsim.experiment.tables import Experiment, names_files
from fedsim.sweep.axes import MOST, Axis, axis, declared, folder_name, short


class Cell(NamedTuple):
    """One combination of the axes' values."""

    number: int  # from 0; the last axis runs fastest
    name: str  # of its folder
    values: tuple[Any, ...]  # one for each axis


class Work(NamedTuple):
    """What a cell will do."""

    strategies: tuple[str, ...]  # labels
    seeds: tuple[int, ...]
    rounds: int  # of each run

    @property
    def runs(self) -> int:
        return len(self.strategies) * len(self.seeds)


@dataclass(frozen=True)
class Sweep:
    """A base experiment and the axes it is crossed over; `load` makes one, in which every cell is valid."""

    name: str
    source: str  # the file, for messages
    base: Path  # the folder that relative paths start from
    document: Mapping[str, Any]  # the experiment, with the first value of every axis
    axes: tuple[Axis, ...]
    changed: Sequence[tuple[Place, str]] = ()  # what the command line changed, for messages
    work: tuple[Work, ...] = field(default=(), repr=False)  # of each cell

    @property
    def cells(self) -> list[Cell]:
        """All combinations."""
        names = short([each.path for each in self.axes])
        n = math.prod(len(each.values) for each in self.axes)
        combinations = itertools.product(*(each.values for each in self.axes))
        return [Cell(i, folder_name(i, n, names, values), values) for i, values in enumerate(combinations)]

    def experiment(self, cell: Cell) -> Experiment:
        """The cell's experiment. Raises ValueError: file, cell, key and reason in one line."""
        document: dict[str, Any] = copy.deepcopy(dict(self.document))
        for each, value in zip(self.axes, cell.values, strict=True):
            for place in each.places:
                at(document, place[:-1])[place[-1]] = copy.deepcopy(value)
        try:
            return parse(document, self.base, self.name)
        except Mistake as mistake:
            plain = Mistake(mistake.place, mistake.text, mistake.key)
            raise located(plain, f"{self.source}, cell {cell.name}", self.changed) from mistake

    def toml(self) -> str:
        """The sweep as a file that sweeps again as it is, whatever the working directory."""
        table: dict[str, Any] = {"name": self.name}
        task = self.document.get("task", {})
        if names_files([self.document, [each.values for each in self.axes]], self.base) or "data-dir" in task:
            table["base"] = str(self.base.absolute())
        table |= {key: value for key, value in self.document.items() if key not in ("name", "base")}
        table["sweep"] = {each.path: list(each.values) for each in self.axes}
        return tomli_w.dumps(table)


def at(document: Any, place: Place) -> Any:
    """What lies at a place of a document."""
    for key in place:
        document = document[key]
    return document


def load(
    path: str | Path,
    overrides: Iterable[str] = (),
    over: Iterable[str] = (),
    device: str | None = None,
    data_dir: Path | None = None,
) -> Sweep:
    """The sweep that a file describes, every cell of it checked.

    Its axes are those of [sweep], those of `over` ("KEY=[...]", which replace the axes of [sweep] with that key), and
    the keys that have a list where one value goes, in this order; `overrides` change the rest.

    Raises FileNotFoundError, and ValueError with one line: file, cell, key and reason.
    """
    path = Path(path)
    document = read(path)
    if isinstance(document.get("strategy"), dict):
        document["strategy"] = [document["strategy"]]
    changed: list[tuple[Place, str]] = []
    try:
        for change in overrides:
            changed.append((override(document, change), f"--set {change}"))
        if device is not None:
            changed.append((put(document, ["run", "device"], device, "--device"), "--device"))
        if data_dir is not None:
            folder = str(data_dir.expanduser().absolute())
            changed.append((put(document, ["task", "data-dir"], folder, "--data-dir"), "--data-dir"))
        axes = _axes(document, document.pop("sweep", {}), over)
        base = path.parent / document["base"] if isinstance(document.get("base"), str) else path.parent
        name = document.get("name", path.stem)
        axes += _lists(document, path.parent, axes)
        _apart(axes, changed)
        if not axes:
            parse(document, path.parent)  # what is wrong with it comes first
    except Mistake as mistake:
        raise located(mistake, str(path), changed) from mistake
    if not axes:
        raise ValueError(
            f"{path}: there is nothing to sweep: give a key a list of values, in a table [sweep], with --over "
            '"KEY=[...]" or where the key is'
        )
    cells = math.prod(len(each.values) for each in axes)
    if cells > MOST:
        raise ValueError(f"{path}: {cells} cells are more than the {MOST} there may be")
    document.pop("base", None)
    made = Sweep(name, str(path), base, document, tuple(axes), changed)
    experiments = [made.experiment(cell) for cell in made.cells]
    for each in axes:
        _untuned(each, experiments[0], str(path))
    return Sweep(name, str(path), base, document, tuple(axes), changed, tuple(map(_work, experiments)))


def _untuned(axis: Axis, experiment: Experiment, path: str) -> None:
    """Refuse an axis over a key that [tune] would set to its winner in every cell."""
    grids = () if experiment.tuning is None else experiment.tuning.grids
    for place, (i, grid) in itertools.product(axis.places, enumerate(grids)):
        common = place[0] == "local"
        said = ".".join(map(str, place if common else place[2:]))
        if (common or place[:2] == ("strategy", i)) and said in grid.axes:
            raise ValueError(f"{path}: {axis.path} is swept, and [tune] tunes {said} of {grid.label}; do one of both")


def _work(experiment: Experiment) -> Work:
    labels = tuple(entry.label for entry in experiment.entries)
    return Work(labels, experiment.run.seeds, experiment.run.rounds)


def _axes(document: dict[str, Any], table: Any, over: Iterable[str]) -> list[Axis]:
    """The axes of [sweep] and of --over."""
    if not isinstance(table, dict):
        raise Mistake((), f'sweep must be a table: [sweep] and then "KEY" = [...], got {show(table)}', "sweep")
    found: list[Axis] = []
    for path, given in declared(table):
        new = axis(document, path, given, f"[sweep] {path}")
        twice = next((old for old in found if old.places == new.places), None)
        if twice is not None:
            raise Mistake((), f"[sweep] {path}: the same key as {twice.path}")
        found.append(new)
    for change in over:
        path, equals, text = change.partition("=")
        if not equals:
            raise Mistake((), f'--over {change}: write "KEY=[...]", such as --over "run.rounds=[50, 100]"')
        try:
            given = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError as error:
            raise Mistake((), f"--over {change}: what follows = is not TOML: {error}") from error
        new = axis(document, path.strip(), given, f"--over {change}")
        old = next((i for i, each in enumerate(found) if each.places == new.places), None)
        if old is None:
            found.append(new)
        else:
            found[old] = new
    return found


def _lists(document: dict[str, Any], folder: Path, known: Sequence[Axis]) -> list[Axis]:
    """The keys that have a list where one value goes, which the reader tells; each is set to its first value."""
    found: list[Axis] = []
    while True:
        try:
            parse(document, folder)
        except Several as mistake:
            place = (*mistake.place, mistake.key) if mistake.key else mistake.place
            if any(_inside(place, other) for each in (*known, *found) for other in each.places):
                return found  # a list among an axis's values: its cell says so
            path = _said(document, place)
            found.append(axis(document, path, at(document, place), path))
        except ValueError:
            return found  # the cells say so
        else:
            return found


def _said(document: Mapping[str, Any], place: Place) -> str:
    """The path to a place, a strategy by its label where that will do."""
    keys = [str(key) for key in place]
    if place[0] == "strategy" and len(place) > 2:
        label = document["strategy"][place[1]].get("label", document["strategy"][place[1]].get("name"))
        keys[1] = (
            label if isinstance(label, str) and "." not in label and place[2] not in ("label", "name") else keys[1]
        )
    return ".".join(keys)


def _inside(place: Place, other: Place) -> bool:
    return place[: len(other)] == other


def _apart(axes: Sequence[Axis], changed: Sequence[tuple[Place, str]]) -> None:
    """Refuse axes that would overwrite each other, and --set of what is swept."""
    for a, b in itertools.permutations(axes, 2):
        if any(_inside(place, other) for place in a.places for other in b.places):
            raise Mistake((), f"{a.path} lies within {b.path}, and both are swept; put its values into those")
    for place, change in changed:
        for each in axes:
            if any(_inside(place, other) for other in each.places):
                raise Mistake((), f"{change}: {each.path} is swept; --over sweeps over other values")
