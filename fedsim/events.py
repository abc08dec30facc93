"""What happens in a comparison, as it happens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from fedsim.clients import Table
    from fedsim.experiment import Experiment
    from fedsim.participation import Schedule
    from fedsim.standing import Progress


class Planned(NamedTuple):
    """Everything that can be decided beforehand is: what comes first."""

    experiment: Experiment  # with its device, threads and chunk
    apart: tuple[str, ...]  # labels of strategies that own their loop: each of their runs goes by itself
    rounding: float | None = None  # of products other than float32: how far off a gradient is, as a share of its norm


class Began(NamedTuple):
    """A seed's world is made; its runs follow."""

    seed: int
    schedule: Schedule  # who is present when
    moved: int  # examples given to clients the partition had left empty


class Played(NamedTuple):
    """A round is over."""

    strategy: str  # the label
    seed: int
    round: int  # 1, 2, ...: how many are over
    present: int  # how many took part


class Measured(NamedTuple):
    """An evaluation."""

    strategy: str
    seed: int
    round: int  # how many rounds are over: 0 is the first model
    metrics: dict[str, float]
    model: str = ""  # the model's hash, see `fedsim.hashes`


class Timed(NamedTuple):
    """How long a run has taken until an evaluation was over. Apart from `Measured`, which is the same every time."""

    strategy: str
    seed: int
    round: int
    seconds: float  # its own: of what it shared with others, its share


class Clients(NamedTuple):
    """How every client fares with the last model of a run that is about to finish: see `fedsim.clients.table`."""

    strategy: str
    seed: int
    table: Table  # columns [n]: client, examples, held_out, rate, ..., loss, accuracy


class Finished(NamedTuple):
    """A run is over."""

    strategy: str
    seed: int
    rounds: int
    final: dict[str, float]  # the last evaluation
    final_mean: dict[str, float]  # mean over the evaluations of the last fifth of the rounds
    seconds: float  # evaluations included
    client_trainings_per_second: float  # of the engine's time; evaluations and aggregation left out
    clients: dict[str, Any] | None = None  # `fedsim.clients.summary`, and "harm"; None: clients were not measured
    spent: dict[str, float] | None = (
        None  # seconds of "training", "aggregation" (all that strategies do), "evaluation",
    )
    # and "recording" (whatever the caller does with what it is told), which is no part of the run's own seconds
    error: dict[str, Any] | None = None  # `fedsim.optimum.Split`, or how far from the minimum and why no more is known
    speed: dict[str, Any] | None = None  # `fedsim.speed.Meter.told`


class Failed(NamedTuple):
    """A run ended early: it diverged, or its settings turned out not to go together."""

    strategy: str
    seed: int
    round: int
    reason: str


class Absent(NamedTuple):
    """Somebody was asked to train, and did not answer with anything usable: a remote client, or one whose update is
    not finite where on-divergence = "drop"."""

    strategy: str
    seed: int
    round: int  # 1, 2, ...
    client: int
    reason: str


class Heard(NamedTuple):
    """What remote clients reported beside their models in a round."""

    strategy: str
    seed: int
    round: int  # 1, 2, ...
    replies: dict[int, dict[str, float]]  # client -> metric -> value


class Stand(NamedTuple):
    """All runs under way have played a round: what there is to save, to go on from here (`fedsim.standing`).

    What comes next consumes it: save it before asking for the next event. There is none while a strategy that
    owns its loop is under way, which keeps its state to itself, and none where clients train elsewhere.
    """

    under_way: Mapping[tuple[str, int], Progress]  # by strategy and seed; those that advance side by side
    over: list[tuple[str, int]]  # strategy and seed of all that have finished or failed
    alone: dict[int, Clients]  # by seed, of those: how clients fare who train by themselves
    worlds: dict[int, str]  # by seed, a hash of who holds what and is present when


Event = Planned | Began | Played | Measured | Timed | Clients | Finished | Failed | Absent | Heard | Stand
