"""The Flower app that runs an experiment file: `flwr run .` here, or in a folder made by `fedsim new app`.

    [tool.flwr.app.components]
    serverapp = "fedsim.flower.app:server"     # the strategies of the experiment, over Flower's Grid
    clientapp = "fedsim.flower.app:client"     # one client of it per SuperNode, or many: clients="0-499"

Run config, to be overridden by --run-config:

    experiment = "experiment.toml"   sought in the app, then in the working directory of the ServerApp
    set = "run.rounds=50; task.clients=20"
    out = "runs/mine"                the run folder; left out: runs/NAME-DATE-TIME where the ServerApp runs
    on-failure = "absent"            or "stop"
    timeout = 600.0                  seconds for a round's replies
    patience = 60.0                  seconds for all SuperNodes to come, before the first round

Messages carry the resolved experiment, the seed and the strategy's label. A node makes the task from them once and
keeps it, so nothing but models travels after that; data is read where the node is (`data-dir` and `device` in its
--node-config go before the experiment's own).
"""

from __future__ import annotations

import base64
import functools
import json
import logging
import os
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedsim import compare
from fedsim.clients import LISTED
from fedsim.engine import Loop, Stacked
from fedsim.flower import wire
from fedsim.flower.client import HOSTS, PARTITION, UNDERSTANDS, client_of, host_card, trained, trained_many
from fedsim.flower.over import Over, Value, over
from fedsim.flower.roster import Roster

if TYPE_CHECKING:
    from fedsim.data import Dataset
    from fedsim.experiment import Entry, Experiment
    from fedsim.participation import Schedule
    from fedsim.task import Task

log = logging.getLogger("flwr.fedsim")  # a child of Flower's own, so it shows where Flower's lines show
client = ClientApp()
server = ServerApp()
MARK = "fedsim-event "  # begins a line that is meant for `fedsim run --on flower`


@client.train()
def train(message: Message, context: Context) -> Message:
    """Trains the node's client as the experiment in the message says; the reply's "pid" is the process that did it.

    A node with many clients trains them with the experiment's own engine, so it gives what `fedsim run` gives.
    """
    here = setting_of(message.content, context)
    if HOSTS in context.node_config:
        chunk = int(wire.ours(message.content).get("chunk", 0))
        reply = trained_many(here.task, here.entry.local, Stacked(chunk) if chunk else Loop(), context, message.content)
    else:
        i = client_of(context, here.task.n)
        reply = trained(here.task, here.entry.local, Loop(), i, message.content, here.seed)
    metrics = reply.metric_records["metrics"]
    reply["metrics"] = MetricRecord({**metrics, "pid": os.getpid()})
    return Message(reply, reply_to=message)


@client.query()
def describe(message: Message, context: Context) -> Message:
    """Says which partition the node holds, and that all of a strategy's work is understood."""
    understands = [*UNDERSTANDS, "velocity"]
    if HOSTS in context.node_config:
        return Message(RecordDict({wire.OURS: host_card(context, understands)}), reply_to=message)
    said = {name: context.node_config[name] for name in PARTITION if name in context.node_config}
    card = ConfigRecord({**said, "understands": understands})
    return Message(RecordDict({wire.OURS: card}), reply_to=message)


class Setting(NamedTuple):
    """What a message is about."""

    task: Task
    entry: Entry
    seed: int


def setting_of(content: RecordDict, context: Context) -> Setting:
    """The task and the local training that a message asks for. Raises ValueError where it names none."""
    ours = wire.ours(content)
    if not {"experiment", "seed", "strategy"} <= ours.keys():
        raise ValueError("the message holds no experiment; use this ClientApp with fedsim.flower.app:server")
    node = context.node_config
    data_dir, device = (None if (value := node.get(key)) is None else str(value) for key in ("data-dir", "device"))
    experiment = read(ours["experiment"], data_dir, device)
    entry = next((entry for entry in experiment.entries if entry.label == ours["strategy"]), None)
    if entry is None:
        raise ValueError(f"the experiment has no strategy {ours['strategy']!r}")
    return Setting(task_of(ours["experiment"], data_dir, device, int(ours["seed"])), entry, int(ours["seed"]))


@functools.lru_cache(maxsize=4)
def read(text: str, data_dir: str | None, device: str | None) -> Experiment:
    """The experiment of a document, as this node runs it; sets the number of threads."""
    from fedsim.experiment import check_device, parse

    experiment = parse(tomllib.loads(text))
    if data_dir is not None:
        experiment = experiment.with_data_dir(Path(data_dir))
    return compare.settle(experiment if device is None else experiment.settled(device=check_device(device)))


@functools.lru_cache(maxsize=1)
def data_of(text: str, data_dir: str | None, device: str | None) -> Dataset:
    """The data set of an experiment, for all its seeds."""
    return compare.load_data(read(text, data_dir, device))


@functools.lru_cache(maxsize=2)
def task_of(text: str, data_dir: str | None, device: str | None, seed: int) -> Task:
    """The task of an experiment and seed, the same in every process."""
    return compare.make_world(read(text, data_dir, device), data_of(text, data_dir, device), seed).task


def played(experiment: Experiment, grid: Callable[[], Grid], **settings: Any) -> Iterator[compare.Event]:
    """`compare.compare` with the training done by this app's clients behind a grid, which is asked for when the first
    run begins. `settings` are those of `over`; what clients report comes as `compare.Heard`, who was absent and why as
    `compare.Absent`."""
    experiment = compare.settle(experiment)
    text, roster = experiment.toml(), Roster(timeout=settings.get("patience", 60.0))
    engines: list[Over] = []

    def engine(world: compare.World, entry: Entry) -> Over:
        extra: dict[str, Value] = {"experiment": text, "seed": world.seed, "strategy": entry.label}
        if chunk is not None and experiment.run.engine == "stacked":  # for nodes that host many clients
            extra["chunk"] = chunk
        engines.append(over(grid(), extra=extra, roster=roster, **settings))
        return engines[-1]

    told, chunk = 0, experiment.run.chunk
    for event in compare.compare(experiment, engine):
        if isinstance(event, compare.Planned):
            chunk = event.experiment.run.chunk
        if isinstance(event, compare.Played | compare.Failed) and engines:
            label, seed, made = event.strategy, event.seed, engines[-1]
            for t, client, _, reason in made.absences[told:]:
                yield compare.Absent(label, seed, t + 1, client, reason)
            told = len(made.absences)
            if isinstance(event, compare.Played) and made.heard:
                yield compare.Heard(label, seed, event.round, {i: numbers(said) for i, said in made.heard.items()})
            made.heard = {}  # a round in which nobody is asked hears nothing
        if isinstance(event, compare.Finished | compare.Failed):
            told, engines[:] = 0, []
        yield event


def numbers(said: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are plain numbers."""
    return {key: value for key, value in said.items() if isinstance(value, int | float)}


# The server ----------------------------------------------------------------------------------------------------------


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Runs the experiment over the grid and records it, as `fedsim run` does; or tells it in lines for that command."""
    config = context.run_config
    settings = {
        "on_failure": str(config.get("on-failure", "absent")),
        "timeout": float(config.get("timeout", 600.0)),
        "patience": float(config.get("patience", 60.0)),
    }
    experiment = find(str(config.get("experiment", "experiment.toml")), str(config.get("set", "")))
    happening = played(experiment, lambda: grid, **settings)
    if config.get("tell"):
        tell(happening)
    else:
        record(compare.settle(experiment), happening, str(config.get("out", "")))


def find(name: str, changes: str = "") -> Experiment:
    """The experiment file of that name in the app or the working directory, with changes "key=value; key=value"."""
    from fedsim.experiment import load

    places = [Path(folder) / name for folder in sys.path if folder]  # where Flower puts the app first
    path = next((place for place in places if place.is_file()), Path(name))
    return load(path, [change.strip() for change in changes.split(";") if change.strip()])


def record(experiment: Experiment, happening: Iterator[compare.Event], out: str) -> Path:
    """Writes the run folder. Raises ValueError at the end if a run failed."""
    from fedsim.record import RunFolder, check_free, default_folder, environment, note
    from fedsim.report import write_figures
    from fedsim.report.page import write_page

    folder = Path(out) if out else default_folder(experiment.name)
    check_free(folder)
    failures, written = list[str](), None
    try:
        for event in happening:
            if isinstance(event, compare.Planned):
                experiment = event.experiment
            if written is None:
                written = RunFolder(folder, experiment.toml(), environment(experiment.run.device))
            match event:
                case compare.Began(seed, schedule, _):
                    written.schedule(seed, schedule)
                case compare.Measured(strategy, seed, round, metrics):
                    written.measured(*event)
                    shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if name in SHOWN)
                    log.info("%s, seed %d, round %d: %s", strategy, seed, round, shown)
                case compare.Timed():
                    written.timed(*event)
                case compare.Absent() | compare.Heard():
                    note(folder, event)
                case compare.Clients():
                    written.clients(*event)
                case compare.Finished():
                    written.finished(compare.as_result(event))
                case compare.Failed(strategy, seed, round, reason):
                    written.failed(event._asdict())
                    failures.append(f"{strategy}, seed {seed}, round {round}: {reason}")
    finally:
        if written is not None:
            written.close()
    write_figures(folder)
    write_page(folder)
    log.info("run folder: %s", folder.absolute())
    if failures:
        raise ValueError("; ".join(failures))
    return folder


SHOWN = ("test_loss", "test_accuracy", "train_objective")


# What happens, as lines of a log -------------------------------------------------------------------------------------


def tell(happening: Iterator[compare.Event]) -> None:
    """Writes what happens to the log, line after line, and how it ended."""

    def say(kind: str, content: Any) -> None:
        sys.stdout.write(f"\n{MARK}{json.dumps([kind, content])}\n")
        sys.stdout.flush()

    try:
        for event in happening:
            if isinstance(event, compare.Planned):
                continue  # whoever asked has the experiment, and settles it for itself
            if isinstance(event, compare.Began):
                say("Began", [event.seed, packed(event.schedule), event.moved])
            elif isinstance(event, compare.Clients):
                say("Clients", [event.strategy, event.seed, told_of(event.table)])
            else:
                say(type(event).__name__, list(event))
    except (ValueError, OSError) as error:
        say("error", [type(error).__name__, str(error)])
        raise
    say("end", [])


def told(line: str) -> compare.Event | None:
    """What a line of the log says; None for lines of others, and at the end.

    Raises the ValueError or OSError that ended the run.
    """
    if not line.startswith(MARK):
        return None
    kind, content = json.loads(line.removeprefix(MARK))
    if kind == "Began":
        seed, schedule, moved = content
        return compare.Began(seed, unpacked(schedule), moved)
    if kind == "error":
        name, text = content
        raise ValueError(text) if name == "ValueError" else OSError(text)
    if kind == "end":
        return None
    if kind == "Clients":
        content[2] = {name: np.asarray(column) for name, column in content[2].items()}
    if kind == "Heard":
        content[3] = {int(client): said for client, said in content[3].items()}  # JSON has text for keys only
    event: compare.Event = KINDS[kind](*content)
    return event


KINDS: dict[str, Any] = {
    cls.__name__: cls
    for cls in (
        compare.Played, compare.Measured, compare.Timed, compare.Clients, compare.Finished, compare.Failed,
        compare.Absent, compare.Heard,
    )
}  # fmt: skip


def told_of(table: Mapping[str, Any]) -> dict[str, list[Any]]:
    """A table of clients for a line of the log; nothing of more clients than a run folder lists."""
    columns = {name: np.asarray(column).tolist() for name, column in table.items()}
    return columns if max(map(len, columns.values()), default=0) <= LISTED else {}


def packed(schedule: Schedule) -> str:
    """A schedule as text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "schedule.npz"
        schedule.save(path)
        return base64.b64encode(path.read_bytes()).decode()


def unpacked(text: str) -> Schedule:
    """The schedule that `packed` made text of."""
    from fedsim.participation import Schedule

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "schedule.npz"
        path.write_bytes(base64.b64decode(text))
        return Schedule.load(path)
