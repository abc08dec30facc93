"""What an experiment is: the tables of the file as objects, and as tables again with every default written out."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tomli_w

from fedsim.data import Digits
from fedsim.data.partition import Dirichlet
from fedsim.experiment.bundled import Bundled
from fedsim.experiment.writing import dump, dump_settings
from fedsim.finetune import FineTune
from fedsim.local import LocalSGD
from fedsim.models import MLP
from fedsim.participation import Everyone, Participation
from fedsim.resolve import Family, is_dotted
from fedsim.strategy import Strategy, complete

if TYPE_CHECKING:
    import networkx

    from fedsim.experiment.tuning import Tuning

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class TaskTable:
    """[task]: what is learned from whose data."""

    data: Annotated[Any, Family("data")] = Digits()
    data_dir: str | None = None  # where data files are sought; left out: FEDSIM_DATA, else ./data
    clients: int = 100
    model: Annotated[Any, Family("model")] = MLP()
    partition: Annotated[Any, Family("partition")] = Dirichlet()
    holdout: float = 0.0  # the share of its examples that every client keeps for testing only
    objective: Literal["examples", "uniform"] = "examples"  # each client's weight: n_i/N or 1/n
    init: Literal["shared", "independent"] = "shared"  # of gossip's nodes; a server's model is the shared one

    def __post_init__(self) -> None:
        if self.clients < 1:
            raise ValueError(f"clients must be at least 1, got {self.clients}")
        if not 0 <= self.holdout < 1:
            raise ValueError(f"holdout must be at least 0 and below 1, got {self.holdout}")


@dataclass(frozen=True)
class RunTable:
    """[run]: how long, how often, on what."""

    rounds: int = 100
    seeds: tuple[int, ...] = (1,)
    eval_every: int = 10  # rounds; the first model and the last are always evaluated
    eval_nodes: int | None = None  # in gossip: how many nodes are tested, drawn per seed; None: all
    eval_train: bool = True  # also the training objective, over all training data
    checkpoint_every: int | None = None  # rounds; left out: every minute or so, for at most 1 % of the time
    on_divergence: Literal["stop", "drop"] = "stop"  # a client's update that is not finite ends the run, or is left out
    ledger: bool = True  # also with what weight every client's updates have entered the model
    optimum: bool = False  # also what keeps the model from the minimum: convex models only, takes a while
    device: str = "auto"
    dtype: Literal["float32", "float64"] = "float32"
    products: Literal["float32", "tf32", "bfloat16"] = (
        "float32"  # of float32 numbers: less exact, faster on some devices
    )
    engine: Literal["stacked", "loop"] = "stacked"
    memory: str = "1GiB"  # what clients trained at once may use, and what runs side by side may remember
    chunk: int | None = None  # clients the stacked engine trains side by side; left out: chosen, then fixed,
    measure_chunk: bool = False  # by trying some out, which takes seconds and follows the clock, instead of by a rule
    together: int | None = None  # runs that advance side by side; left out: as many as `memory` holds
    threads: int | None = None  # of the CPU; left out: as many as torch likes

    def __post_init__(self) -> None:
        for name in ("rounds", "eval_every", "eval_nodes", "checkpoint_every", "chunk", "together", "threads"):
            value = getattr(self, name)
            if value is not None and not 1 <= value < 2**31:
                raise ValueError(f"{name} must be at least 1 and below 2^31, got {value}")
        if not self.seeds:
            raise ValueError("seeds must have at least one seed, such as [1]")
        if len(set(self.seeds)) < len(self.seeds):
            twice = next(seed for seed in self.seeds if self.seeds.count(seed) > 1)
            raise ValueError(f"seeds holds {twice} twice: the same run")
        if not all(0 <= seed < 2**63 for seed in self.seeds):
            raise ValueError("seeds must be between 0 and 2^63 - 1")
        check_device(self.device)
        _ = self.bytes

    @property
    def bytes(self) -> int:
        """The memory budget as a number."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]I?B|B)", self.memory.strip(), re.IGNORECASE)
        if not found or float(found[1]) == 0:
            raise ValueError(f'memory must be an amount such as "500MB" or "1GiB", got "{self.memory}"')
        return int(float(found[1]) * _UNITS[found[2].upper()])


def check_device(device: str) -> str:
    """The device, if it is spelt right."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise ValueError(f'device must be "auto", "cpu", "cuda" or "cuda:N", got "{device}"')
    return device


@dataclass(frozen=True)
class Topology:
    """A graph by its recipe's name or its file, with parameters; a `seed` that is left out is the run's."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def graph(self, n: int, seed: int) -> networkx.Graph:
        """The graph on n nodes. Raises ValueError where the recipe or the file does not fit."""
        from fedsim import topology

        given = topology.split(self.name, {"seed": seed} | dict(self.parameters))
        return topology.load(self.name, n, given["seed"], **given["parameters"])


@dataclass(frozen=True)
class Entry:
    """[[strategy]]: a strategy, what it is called here, and the local training and graph that go with it."""

    label: str
    strategy: Strategy | Bundled
    local: LocalSGD
    topology: Topology | None = None
    given: Mapping[str, Any] = field(default_factory=dict, repr=False)  # what the file said

    def ready(self, n: int, seed: int) -> Any:
        """The strategy with its graph."""
        known = {"nodes": n, "graph": None if self.topology is None else self.topology.graph(n, seed)}
        return complete(self.strategy, **known)


@dataclass(frozen=True)
class Experiment:
    """All of an experiment file. `base` is the folder its relative paths start from."""

    name: str
    entries: tuple[Entry, ...]
    local: LocalSGD
    task: TaskTable = TaskTable()
    participation: Participation = Everyone()
    run: RunTable = RunTable()
    base: Path = Path()
    given: Mapping[str, Any] = field(default_factory=dict, repr=False)  # what the file said
    finetune: FineTune | None = None  # before clients are measured; None: they are measured as they are
    tuning: Tuning | None = field(default=None, repr=False)  # what is to be tried first; None: settings are as they are

    def __post_init__(self) -> None:
        if self.run.optimum and not getattr(self.task.model, "convex", False):
            raise ValueError(
                "[run] optimum needs a convex model, which has one minimum: logistic, or scalar; or leave optimum out"
            )
        theirs = [entry.label for entry in self.entries if isinstance(entry.strategy, Bundled)]
        if self.run.on_divergence == "drop" and theirs:
            raise ValueError(
                f'[run] on-divergence = "drop" is not for strategies of Flower, which hear their clients themselves: '
                f"leave out {theirs[0]}, or on-divergence"
            )
        if self.run.optimum and not self.run.eval_train:
            raise ValueError("[run] optimum needs the training objective: set eval-train = true")

    @property
    def personal(self) -> bool:
        """Whether clients of some strategy have models of their own, so that the comparison is about these."""
        return any(getattr(entry.strategy, "personal", False) for entry in self.entries)

    def settled(self, **run: Any) -> Experiment:
        """The same with parts of [run] decided: the device found, the number of threads."""
        return replace(self, run=replace(self.run, **run))

    def with_data_dir(self, folder: Path) -> Experiment:
        """The same with another folder for data files."""
        return replace(self, task=replace(self.task, data_dir=str(folder.expanduser().absolute())))

    def document(self) -> dict[str, Any]:
        """The whole experiment, defaults and all, as tables that make the same experiment again."""
        out: dict[str, Any] = {"name": self.name}
        sought = {
            key: value for key, value in self.given.items() if key in ("task", "participation", "strategy", "tune")
        }
        if names_files(sought, self.base):
            out["base"] = str(self.base.absolute())
        out["task"] = dump_settings(self.task, self.given.get("task"))
        out["participation"] = dump(self.participation, self.given.get("participation"))
        out["local"] = _dump_local(self.local, self.given.get("local"))
        out["strategy"] = [self._dump_entry(entry) for entry in self.entries]
        out["run"] = dump_settings(self.run)
        if self.finetune is not None:
            out["finetune"] = dump_settings(self.finetune)
        if self.tuning is not None:
            from fedsim.experiment.tuning import listed

            out["tune"] = self.tuning.dump()
            for table, own in zip(out["strategy"], self.tuning.own, strict=True):
                table |= {"tune": listed(own)} if own else {}
        return out

    def toml(self) -> str:
        """The document as text."""
        return tomli_w.dumps(self.document())

    def _dump_entry(self, entry: Entry) -> dict[str, Any]:
        table = entry.strategy.dump() if isinstance(entry.strategy, Bundled) else dump(entry.strategy, entry.given)
        out = {"name": table.pop("name"), "label": entry.label, **table}
        if entry.topology is not None:
            out["topology"] = {"name": entry.topology.name, **entry.topology.parameters}
        if entry.local != self.local:
            out["local"] = _dump_local(entry.local, entry.given.get("local"))
            for name in ("clip", "curriculum"):  # inf: none, where [local] has one
                if getattr(entry.local, name) is None and getattr(self.local, name) is not None:
                    out["local"][name] = math.inf
        return out


def _dump_local(local: LocalSGD, given: object = None) -> dict[str, Any]:
    """[local], with "all" for a batch of everything."""
    table = dump_settings(local, given)
    return {key: "all" if key == "batch" and value == math.inf else value for key, value in table.items()}


def names_files(value: Any, base: Path) -> bool:
    """Whether anything in a document is sought from its folder: the user's own code or a graph's file."""
    if isinstance(value, Mapping):
        return any(names_files(item, base) for item in value.values())
    if isinstance(value, (list, tuple)):
        return any(names_files(item, base) for item in value)
    if isinstance(value, str) and value.startswith(("flwr:", "networkx:")):
        return False
    return isinstance(value, str) and (is_dotted(value) or (0 < len(value) < 256 and (base / value).is_file()))
