"""[tune]: which settings of every strategy are tried, and how long, before the experiment is run.

    [tune]
    seeds = [101]                    # none of run.seeds: the winners meet seeds they have not been chosen on
    [tune.grid]                      # for every strategy that has the key
    local.lr = [0.01, 0.03, 0.1]
    lr = [0.3, 1.0]

    [[strategy]]
    name = "FedStale"
    tune = { beta = [0.0, 0.5, 1.0] }    # its own keys, and other values for a key of the common grid

Every point of every grid is made into a strategy here, so an impossible value is found before torch is imported.
`fedsim.tuning` tries them.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fedsim import keyed, resolve
from fedsim.experiment.bundled import Bundled
from fedsim.experiment.settings import Mistake, Place, key_of, settings_of, show
from fedsim.experiment.writing import dump_settings
from fedsim.strategy import GossipStrategy, core
from fedsim.tuning.budget import rungs

if TYPE_CHECKING:
    from fedsim.experiment.tables import Entry

    Make = Callable[[Mapping[str, Any], int], Entry]  # (a table, its number) -> what it describes, or Mistake

POINTS = 10_000  # of one strategy's grid
WORK = ("local.steps", "local.epochs", "local.batch")  # with these a round is not as much work for every trial


@dataclass(frozen=True)
class TuneTable:
    """[tune]: what every strategy may spend, and what its settings are judged on."""

    seeds: tuple[int, ...] = (101,)
    rounds: int | None = None  # of the longest trial; None: as many as the experiment has
    trials: int = 8  # settings that a strategy may try; of a larger grid a random part
    eta: int = 2  # after each rung the best 1/eta of the trials go on
    on: Literal["held-out", "clients"] = "held-out"  # part of everybody's training examples, or some clients' all
    share: float = 0.2  # of the examples, or of the clients
    metric: Literal["loss", "accuracy"] = "loss"

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must have at least one seed, and none twice, got {list(self.seeds)}")
        if not all(0 <= seed < 2**63 for seed in self.seeds):
            raise ValueError("seeds must be between 0 and 2^63 - 1")
        if self.rounds is not None and not 1 <= self.rounds < 2**31:
            raise ValueError(f"rounds must be at least 1 and below 2^31, got {self.rounds}")
        if not 2 <= self.trials <= POINTS:
            raise ValueError(f"trials must be from 2 to {POINTS}, got {self.trials}")
        if self.eta < 2:
            raise ValueError(f"eta must be at least 2, got {self.eta}")
        if not 0 < self.share < 1:
            raise ValueError(f"share must be above 0 and below 1, got {self.share}")


@dataclass(frozen=True)
class Point:
    """A place in a grid: a value for each of its keys, and the strategy they make."""

    settings: Mapping[str, Any]  # dotted key -> value
    entry: Entry


@dataclass(frozen=True)
class Grid:
    """What is tried of a strategy."""

    label: str
    axes: Mapping[str, tuple[Any, ...]]  # dotted key -> values; without any the strategy is not tuned
    size: int  # points of the whole grid
    points: tuple[Point, ...]  # those to try, in the order of the grid
    limits: Mapping[str, tuple[bool, bool]]  # of ordered keys: whether nothing below the lowest value, nothing above
    # the highest is possible

    @property
    def tried(self) -> bool:
        """Whether there is anything to choose from."""
        return len(self.points) > 1


@dataclass(frozen=True)
class Tuning:
    """The table and a grid for every strategy, in their order."""

    table: TuneTable
    rounds: int
    grids: tuple[Grid, ...]
    common: Mapping[str, tuple[Any, ...]]  # [tune.grid], by dotted key
    own: tuple[Mapping[str, tuple[Any, ...]], ...]  # each strategy's own `tune`

    def dump(self) -> dict[str, Any]:
        """[tune] as TOML holds it."""
        return {**dump_settings(dataclasses.replace(self.table, rounds=self.rounds)), "grid": listed(self.common)}


def read(
    table: TuneTable, common: object, document: Mapping[str, Any], entries: Sequence[Entry], rounds: int,
    seeds: Sequence[int], clients: int, make: Make,
) -> Tuning:  # fmt: skip
    """The tuning of an experiment of so many rounds, with these seeds. Raises Mistake."""
    place: Place = ("tune",)
    rounds = rounds if table.rounds is None else table.rounds
    both = [seed for seed in table.seeds if seed in seeds]
    if both:
        why = f"seeds holds {both[0]}, one of run.seeds: the winners have to meet seeds they were not chosen on"
        raise Mistake(place, why, "seeds")
    try:
        rungs(table.trials, rounds, table.eta)
    except ValueError as error:
        raise Mistake(place, str(error), "rounds") from error
    if table.on == "clients":
        nodes = [e.label for e in entries if e.topology is not None or isinstance(core(e.strategy), GossipStrategy)]
        if nodes:
            why = f'on = "clients" takes nodes out of the network that {nodes[0]} runs on; use on = "held-out"'
            raise Mistake(place, why, "on")
        if clients < 2:
            raise Mistake(place, f'on = "clients" leaves nobody to train: there is {clients} client', "on")
    shared = flat(common, (*place, "grid"))
    known = {key: None for entry in entries for key in keys(entry)}  # in order, each once
    for key in shared:
        if not any(has(entry, key) for entry in entries):
            raise Mistake((*place, "grid"), f"no strategy has the key {show(key)}{resolve.nearest(key, known)}", key)
    tables = document["strategy"] if isinstance(document["strategy"], list) else [document["strategy"]]
    own = [flat(given.get("tune", {}), ("strategy", i, "tune")) for i, given in enumerate(tables)]
    grids = []
    for i, (entry, given, more) in enumerate(zip(entries, tables, own, strict=True)):
        for key in more:
            if not has(entry, key):
                why = f"{entry.label} has no key {show(key)}{resolve.nearest(key, keys(entry))}"
                raise Mistake(("strategy", i, "tune"), why, key)
        axes = {key: values for key, values in shared.items() if has(entry, key)} | more
        declared: dict[str, Place] = {key: ("strategy", i, "tune") if key in more else ("tune", "grid") for key in axes}
        grids.append(_grid(entry, axes, given, i, table, declared, make))
    if not any(grid.tried for grid in grids):
        raise Mistake(place, "there is nothing to try: give [tune.grid] a key with several values", "grid")
    return Tuning(table, rounds, tuple(grids), shared, tuple(own))


def listed(axes: Mapping[str, tuple[Any, ...]]) -> dict[str, list[Any]]:
    """A grid as TOML holds it: by dotted key, in the same order, on which it depends what is tried of a large one."""
    return {key: list(values) for key, values in axes.items()}


def flat(table: object, place: Place) -> dict[str, tuple[Any, ...]]:
    """A grid's values by dotted key, whether local.lr was written with quotes or without. Raises Mistake."""
    if not isinstance(table, Mapping):
        raise Mistake(place, f"must be a table of lists such as {{lr = [0.1, 1.0]}}, got {show(table)}")
    found: dict[str, tuple[Any, ...]] = {}

    def walk(inside: Mapping[str, Any], before: str) -> None:
        for name, value in inside.items():
            key = f"{before}{name}"
            if isinstance(value, Mapping):
                walk(value, f"{key}.")
                continue
            if not isinstance(value, list) or not value:
                raise Mistake(place, f"{key} must be a list of the values to try, got {show(value)}", key)
            if key in found:
                raise Mistake(place, f"{key} is given twice", key)
            twice = [item for at, item in enumerate(value) if any(_alike(item, other) for other in value[:at])]
            if twice:
                raise Mistake(place, f"{key} holds {show(twice[0])} twice", key)
            found[key] = tuple(value)

    walk(table, "")
    return found


def _alike(a: Any, b: Any) -> bool:
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


# The keys of a strategy ----------------------------------------------------------------------------------------------


def keys(entry: Entry) -> list[str]:
    """All that can be tried of an entry, as dotted keys: its own settings, those of its parts, and local.*."""
    own = entry.strategy
    found = list(_bundled(own)) if isinstance(own, Bundled) else list(_fields(own))
    return found + [f"local.{key}" for key in _fields(entry.local)] + (["topology"] if entry.topology else [])


def _fields(setting: Any) -> Iterator[str]:
    cls: Any = type(setting)
    for key, each in settings_of(cls).items():
        yield key
        value = getattr(setting, each.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from (f"{key}.{inner}" for inner in _fields(value))


def _bundled(strategy: Bundled) -> Iterator[str]:
    for parameter, value in strategy.settings.items():
        yield key_of(parameter)
        if isinstance(value, Bundled):
            yield from (f"{key_of(parameter)}.{inner}" for inner in _bundled(value))


def has(entry: Entry, key: str) -> bool:
    """Whether an entry has a key; a topology's parameters are its recipe's business."""
    return key in keys(entry) or (entry.topology is not None and key.startswith("topology."))


# The points of a grid ------------------------------------------------------------------------------------------------


def _grid(
    entry: Entry, axes: Mapping[str, tuple[Any, ...]], given: Mapping[str, Any], i: int, table: TuneTable,
    declared: Mapping[str, Place], make: Make,
) -> Grid:  # fmt: skip
    """A strategy's grid: all its points made, those kept that will be tried. `declared` says where each key is from."""
    size = math.prod(len(values) for values in axes.values())
    if size > POINTS:
        raise Mistake(("tune", "grid"), f"{entry.label} has a grid of {size} points; at most {POINTS} will do")
    if not axes:
        return Grid(entry.label, {}, 1, (Point({}, entry),), {})
    plain = {key: value for key, value in given.items() if key != "tune"}

    def made(settings: Mapping[str, Any]) -> Entry:
        changed = copy.deepcopy(plain)
        for key, value in settings.items():
            put(changed, key.split("."), value)
        return make(changed, i)

    points = []
    for values in itertools.product(*axes.values()):
        settings = dict(zip(axes, values, strict=True))
        try:
            points.append(Point(settings, made(settings)))
        except Mistake as mistake:
            raise _blamed(mistake, settings, made, declared) from mistake
    chosen = range(size)
    if size > table.trials:  # the same places for all grids of a size
        order = sorted(range(size), key=lambda at: keyed.seed(table.seeds[0], "tune", at))
        chosen = sorted(order[: table.trials])  # type: ignore[assignment]
    first = points[0].settings
    limits = {key: _limits(key, values, first, made) for key, values in axes.items() if ordered(values)}
    return Grid(entry.label, axes, size, tuple(points[at] for at in chosen), limits)


def put(table: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set a dotted key of a strategy's table; a part that has a name only, such as weights = "fedau", becomes a
    table."""
    inside = table
    for key in path[:-1]:
        found = inside.setdefault(key, {})
        if isinstance(found, str):
            found = inside[key] = {"name": found}
        inside = found
    inside[path[-1]] = value


def _blamed(
    mistake: Mistake, settings: Mapping[str, Any], made: Callable[[Mapping[str, Any]], Entry],
    declared: Mapping[str, Place],
) -> Mistake:  # fmt: skip
    """A point's mistake, in the words of the grid: the key and value that are wrong by themselves, else all of them."""
    for key, value in settings.items():
        try:
            made({key: value})
        except Mistake as alone:
            return Mistake(declared[key], f"{key} = {show(value)}: {alone.text}", key)
    point = ", ".join(f"{key} = {show(value)}" for key, value in settings.items())
    return Mistake(declared[next(iter(settings))], f"{point} do not go together: {mistake.text}")


def ordered(values: Sequence[Any]) -> bool:
    """Whether a grid has a lowest and a highest value: several numbers."""
    return len(values) > 1 and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def _limits(
    key: str, values: Sequence[Any], first: Mapping[str, Any], made: Callable[[Mapping[str, Any]], Entry]
) -> tuple[bool, bool]:
    """Whether the next value below the lowest, and above the highest, is one that the strategy refuses."""
    rising = sorted(values)
    refused = []
    for edge, inward in ((rising[0], rising[1]), (rising[-1], rising[-2])):
        if math.isinf(edge):
            refused.append(True)
            continue
        inward = 2 * edge if math.isinf(inward) else inward
        beyond = edge * edge / inward if edge > 0 and inward > 0 else edge + (edge - inward)
        if all(isinstance(value, int) for value in values):
            beyond = math.floor(beyond) if edge < inward else math.ceil(beyond)
            beyond = min(beyond, edge - 1) if edge < inward else beyond
        try:
            made({**first, key: beyond})
            refused.append(False)
        except Mistake:
            refused.append(True)
    return refused[0], refused[1]
