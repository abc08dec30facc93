"""From a TOML file to an `Experiment`: what is wrong with it is said here, in one line, before torch is imported."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsim import resolve
from fedsim.experiment import bundled, tuning
from fedsim.experiment.overrides import override
from fedsim.experiment.settings import (
    Mistake,
    Place,
    Several,
    build,
    instance,
    make,
    member,
    names,
    settings_of,
    show,
    unfit,
)
from fedsim.experiment.tables import Entry, Experiment, RunTable, TaskTable, Topology
from fedsim.finetune import FineTune
from fedsim.local import LocalSGD
from fedsim.mixing import Mixing
from fedsim.participation import Everyone, Participation
from fedsim.strategy import GossipStrategy, Strategy, core, scrutinise

KEYS = ("name", "base", "task", "participation", "local", "strategy", "run", "finetune", "tune")
ENTRY_KEYS = ("name", "label", "local", "topology", "tune")


def load(path: str | Path, overrides: Iterable[str] = ()) -> Experiment:
    """The experiment in a TOML file, with overrides such as "run.rounds=50" or "strategy.0.lr=0.5".

    Raises FileNotFoundError, and ValueError with one line: file, key, reason, and the nearest valid name.
    """
    path = Path(path)
    document = read(path)
    changed: list[tuple[Place, str]] = []
    try:
        for change in overrides:
            changed.append((override(document, change), f"--set {change}"))
        return parse(document, path.parent, path.stem)
    except Mistake as mistake:
        raise located(mistake, str(path), changed) from mistake


def read(path: Path) -> dict[str, Any]:
    """What a TOML file says. Raises FileNotFoundError, and ValueError with one line."""
    if not path.is_file():
        if (path / "experiment.toml").is_file():
            raise FileNotFoundError(f"{path} is a run folder; the experiment in it is {path / 'experiment.toml'}")
        raise FileNotFoundError(f"there is no file {path}" if not path.exists() else f"{path} is not a file")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not TOML: {error}") from error
    except RecursionError:
        raise ValueError(
            f"{path}: not TOML that can be read: its lists and tables lie too deep in each other"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error


def located(mistake: Mistake, source: str, changed: Sequence[tuple[Place, str]] = ()) -> ValueError:
    """A mistake as one line with the file and the place, and which of the changes (where, in words) is to blame."""
    full = (*mistake.place, mistake.key) if mistake.key else mistake.place
    blamed = [words for place, words in changed if full and (place[: len(full)] == full or full[: len(place)] == place)]
    source = f"{source} with {blamed[-1]}" if blamed else source
    where = f" [{'.'.join(map(str, mistake.place))}]" if mistake.place else ""
    hint = "; fedsim sweep tries each value of a list" if isinstance(mistake, Several) else ""
    return ValueError(f"{source}:{where} {mistake.text}{hint}")


# ---------------------------------------------------------------------------------------------------------------------
# The tables
# ---------------------------------------------------------------------------------------------------------------------


def parse(document: Mapping[str, Any], base: Path = Path(), name: str = "experiment") -> Experiment:
    """The experiment in a document as TOML gives it. Raises `Mistake`, a ValueError."""
    if "sweep" in document:
        raise Mistake((), "has a table [sweep]: run it with fedsim sweep", "sweep")
    for key in document:
        if key not in KEYS:
            raise Mistake((), f"unknown key {show(key)}{resolve.nearest(key, KEYS)}", key)
    name = _text(document, "name", name)
    if not name.strip() or any(c in name for c in '/\\:*?"<>|') or name.startswith(".") or not name.isprintable():
        raise Mistake((), f"name must do as part of a folder's name, got {show(name)}", "name")
    base = base / _text(document, "base", "")
    task = instance(TaskTable, _table(document, "task"), ("task",), base)
    if task.data_dir is not None:
        task = dataclasses.replace(task, data_dir=str((base / task.data_dir).expanduser().absolute()))
    if "local" not in document:
        raise Mistake((), "missing table [local]: give lr, and steps or epochs", "local")
    local = _local(_table(document, "local"), ("local",), base)
    run = instance(RunTable, _table(document, "run"), ("run",), base)
    participation: Participation = Everyone()
    if "participation" in document:
        participation = build("participation", document["participation"], ("participation",), base)
        _need(participation, "participation", ("draw", "check"), ("participation",))
    entries = tuple(_entry(table, i, base, local) for i, table in enumerate(_strategies(document)))
    if "clients" not in _table(document, "task"):
        task = dataclasses.replace(task, clients=_clients(entries, task.clients))
    tune = None
    if "finetune" in document:
        tune = instance(FineTune, _table(document, "finetune"), ("finetune",), base)
    experiment = Experiment(name, entries, local, task, participation, run, base, document, tune)
    check(experiment)
    return _tuned(experiment, document, base, local)


def _tuned(experiment: Experiment, document: Mapping[str, Any], base: Path, local: LocalSGD) -> Experiment:
    """The experiment with what [tune] says, every point of every grid made and checked."""
    if "tune" not in document:
        for i, entry in enumerate(experiment.entries):
            if "tune" in entry.given:
                raise Mistake(("strategy", i), "tune needs a table [tune] in the file, and there is none", "tune")
        return experiment
    table = _table(document, "tune")
    grid = table.get("grid", {})
    settings = instance(tuning.TuneTable, {k: v for k, v in table.items() if k != "grid"}, ("tune",), base)
    task, run = experiment.task, experiment.run
    graphs: set[str] = set()  # those checked

    def make(table: Mapping[str, Any], i: int) -> Entry:
        entry = _entry(table, i, base, local)
        _check_lists(entry.strategy, task.clients, ("strategy", i))
        graph = repr((i, entry.topology, _mixings(entry.strategy)))
        if graph not in graphs:
            _check_graph(entry, task.clients, settings.seeds[0], ("strategy", i))
            graphs.add(graph)
        return entry

    found = tuning.read(settings, grid, document, experiment.entries, run.rounds, run.seeds, task.clients, make)
    return dataclasses.replace(experiment, tuning=found)


def _text(document: Mapping[str, Any], key: str, default: str) -> str:
    value = document.get(key, default)
    if not isinstance(value, str):
        raise Mistake((), f"{key} must be text, got {show(value)}", key)
    return value


def _table(document: Mapping[str, Any], key: str, place: Place = ()) -> dict[str, Any]:
    value = document.get(key, {})
    if not isinstance(value, dict):
        raise Mistake(place, f"{key} must be a table, got {show(value)}", key)
    return value


def _strategies(document: Mapping[str, Any]) -> Sequence[Any]:
    found = document.get("strategy", [])
    found = [found] if isinstance(found, dict) else found
    if not isinstance(found, list) or not found:
        raise Mistake((), 'no strategy to run: add [[strategy]] with name = "FedAvg", or another', "strategy")
    return found


def _local(table: Mapping[str, Any], place: Place, base: Path, start: LocalSGD | None = None) -> LocalSGD:
    """[local], or what a strategy overrides of it."""
    table = {key: math.inf if key == "batch" and value == "all" else value for key, value in table.items()}
    if start is not None:  # steps and epochs exclude each other, so one replaces the other
        dropped = {"steps": "epochs", "epochs": "steps"}
        gone = {other: None for key, other in dropped.items() if key in table and other not in table}
        start = LocalSGD(**{**_fields(start), **gone, **{key: 1 for key in dropped if key in table}}) if gone else start
    found: LocalSGD = instance(LocalSGD, table, place, base, start)
    return found


def _fields(value: Any) -> dict[str, Any]:
    return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}


def _entry(table: Any, i: int, base: Path, local: LocalSGD) -> Entry:
    """One [[strategy]]."""
    place: Place = ("strategy", i)
    if not isinstance(table, dict):
        raise Mistake(place, f'must be a table with name = "...", got {show(table)}')
    if not isinstance(table.get("name"), str):
        raise Mistake(place, f'missing key "name"{resolve.nearest("", names("strategy"))}', "name")
    name = table["name"]
    label = table.get("label", name)
    if not isinstance(label, str) or not label.strip() or not label.isprintable():
        raise Mistake(place, f"label must be text on one line, got {show(label)}", "label")
    own = {key: value for key, value in table.items() if key not in ("name", "label", "local", "tune")}
    settings, graphs = _without_topology(own, place)
    if len(graphs) > 1:
        raise Mistake(place, "has more than one topology; a strategy runs on one graph", "topology")
    strategy: Any = None
    if bundled.is_flower(name, base, place):
        strategy = bundled.read(name, settings, place, base)
    else:
        cls = member("strategy", name, place, base)
        if isinstance(cls, type) and dataclasses.is_dataclass(cls):
            _misplaced(cls, settings, place)
        strategy = make(cls, "strategy", name, settings, place, base)
        if not isinstance(strategy, Strategy):
            raise Mistake(place, f"{name} is not a strategy: derive it from ServerStrategy, Averaging or Wrapper")
    topology = _topology(*graphs[0], base) if graphs else None
    return Entry(
        label, strategy, _local(_table(table, "local", place), (*place, "local"), base, local), topology, table
    )


def _without_topology(table: Mapping[str, Any], place: Place) -> tuple[dict[str, Any], list[tuple[Any, Place]]]:
    """A strategy's settings without the `topology` in them or in what it wraps, and the topologies."""
    settings = {key: value for key, value in table.items() if key != "topology"}
    graphs = [(table["topology"], (*place, "topology"))] if "topology" in table else []
    if isinstance(settings.get("inner"), dict):
        settings["inner"], more = _without_topology(settings["inner"], (*place, "inner"))
        graphs += more
    return settings, graphs


def _misplaced(cls: type, settings: Mapping[str, Any], place: Place) -> None:
    """A key of [local] beside the strategy's own: say where it goes."""
    known = settings_of(cls)
    for key in settings:
        if key not in known and key in settings_of(LocalSGD):
            raise Mistake(place, f"unknown key {show(key)}; local training is set in local = {{{key} = ...}}", key)
        if key not in known:
            raise Mistake(place, f"unknown key {show(key)}{resolve.nearest(key, (*known, *ENTRY_KEYS))}", key)


def _topology(value: Any, place: Place, base: Path) -> Topology:
    """A graph by name or file, with parameters. Files are sought from the experiment's folder."""
    from fedsim import topology

    table = dict(value) if isinstance(value, dict) else {"name": value}
    name = table.pop("name", None)
    if not isinstance(name, str):
        said, key = (name, "name") if isinstance(value, dict) else (value, None)
        raise unfit(said, place, 'must be the name of a recipe or file, or a table {name = "...", ...}', key)
    if name in topology.recipes():  # whose parameters are numbers
        for key in (key for key in topology.recipes()[name].parameters if isinstance(table.get(key), list)):
            raise unfit(table[key], place, f"{key} must be a number, got {show(table[key])}", key)
    if "n" in table and not name.startswith("networkx:"):
        raise Mistake(place, 'unknown key "n": the graph has as many nodes as [task] has clients', "n")
    seed = table.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise unfit(seed, place, f"seed must be a whole number of at least 0, got {show(seed)}", "seed")
    file, colon, function = name.rpartition(":") if name.rpartition(":")[0].endswith(".py") else (name, "", "")
    if name not in topology.recipes() and (base / file).is_file():
        name = f"{(base / file).absolute()}{colon}{function}"
    return Topology(name, table)


def _clients(entries: Sequence[Entry], default: int) -> int:
    """How many clients there are where nobody said: as many as a graph's file, or a recipe of one size, has nodes."""
    from fedsim import topology

    for graph in (entry.topology for entry in entries if entry.topology is not None):
        settings = topology.split(graph.name, graph.parameters)
        try:
            size = topology.sized(graph.name, parameters=settings["parameters"])
        except (ValueError, OSError):
            continue  # `check` says what is wrong with it
        if size is not None:
            return size
    return default


# ---------------------------------------------------------------------------------------------------------------------
# What only the whole can show
# ---------------------------------------------------------------------------------------------------------------------


def check(experiment: Experiment) -> None:
    """Raises `Mistake` where the tables do not go together."""
    n = experiment.task.clients
    try:
        experiment.participation.check(n)
    except ValueError as error:
        raise Mistake(("participation",), str(error)) from error
    nodes = any(isinstance(core(entry.strategy), GossipStrategy) for entry in experiment.entries)
    if experiment.task.init == "independent" and not nodes:
        raise Mistake(("task",), 'init = "independent" is for gossip, and no strategy here is one', "init")
    labels: dict[str, int] = {}
    for i, entry in enumerate(experiment.entries):
        place: Place = ("strategy", i)
        if entry.label in labels:
            raise Mistake(place, f"label {show(entry.label)} is taken by strategy {labels[entry.label]}; add a label")
        labels[entry.label] = i
        _check_lists(entry.strategy, n, place)
        _check_graph(entry, n, experiment.run.seeds[0], place)
        if isinstance(entry.strategy, Strategy):
            try:
                scrutinise(entry.strategy, entry.local, experiment.participation, f"{entry.label}: ")
            except ValueError as error:
                raise Mistake(place, f"{entry.label}: {error}") from error


def _check_lists(value: Any, n: int, place: Place) -> None:
    """Refuse lists of one number per client that are not."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return
    for name, item in _fields(value).items():
        if name == "probabilities" and isinstance(item, tuple) and len(item) != n:
            raise Mistake(place, f"probabilities has {len(item)} numbers for {n} clients; give one each")
        _check_lists(item, n, (*place, name))


def _check_graph(entry: Entry, n: int, seed: int, place: Place) -> None:
    """Load the graph once, so that a wrong one is refused now, and ask for one where it is missing."""
    inside = [*_mixings(entry.strategy), core(entry.strategy)]
    wants = [each for each in inside if hasattr(each, "graph")]
    if entry.topology is None:
        if any(each.graph is None for each in wants):
            why = f'{entry.label} runs on a graph: add topology = {{name = "ring"}}, or another'
            raise Mistake(place, why, "topology")
        return
    if not wants:
        raise Mistake(place, f"{entry.label} uses no topology: it does not run on a graph", "topology")
    try:
        graph = entry.topology.graph(n, seed)
    except (ValueError, TypeError, OSError) as error:
        raise Mistake((*place, "topology"), str(error)) from error
    plain = [type(each).__name__ for each in wants if isinstance(each, Mixing) and not each.directed]
    if graph.is_directed() and plain:
        why = f'{plain[0]} mixing needs an undirected graph, and {entry.topology.name} is directed; see mixing = "push"'
        raise Mistake((*place, "topology"), why)


def _mixings(value: Any) -> list[Any]:
    """All mixing rules inside a strategy."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return []
    inside = [found for item in _fields(value).values() for found in _mixings(item)]
    return [value, *inside] if isinstance(value, Mixing) else inside


def _need(value: Any, family: str, methods: Sequence[str], place: Place) -> None:
    for method in methods:
        if not callable(getattr(value, method, None)):
            raise Mistake(place, f"{type(value).__name__} is no {family}: it has no method {method}")
