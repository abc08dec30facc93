"""The shape of what a run folder holds as JSON and TOML, as far as anybody reads it. More may be there."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=0, lt=2**63)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Label = Annotated[str, Field(min_length=1)]
Numbers = dict[str, float | None]  # null: NaN or infinite


class Shape(BaseModel):
    """Types are what they are: 1 is no text, "1" is no number."""

    model_config = ConfigDict(strict=True, extra="allow")


class Part(Shape):
    """Some of the clients together."""

    __pydantic_extra__: dict[str, float | None]
    clients: Count
    measured: Count
    examples: float
    held_out: float
    rate: float


class Harm(Shape):
    """What clients have of taking part, against training alone."""

    against: str
    accuracy: Numbers | None = None
    loss: Numbers | None = None


class Clients(Shape):
    """How the clients of a run fare, in short."""

    on: Literal["held-out", "training"] | None = None
    clients: Count = 0
    unmeasured: Count = 0
    listed: bool = False
    by_participation: list[Part] = []
    by_size: list[Part] = []
    by_group: list[Part] = []
    by_probability: list[Part] = []
    harm: Harm | None = None


class Speed(Shape):
    """How fast a run was."""

    steps: float | None = None
    steps_per_second: float | None = None
    examples: float | None = None
    host_bytes: float | None = None
    device_bytes: float | None = None
    why_no_flop: str | None = None
    flop_per_example: float | None = None
    flop_per_second: float | None = None
    peak_flop_per_second: float | None = None


class Run(Shape):
    """A run that has finished."""

    strategy: Label
    seed: Seed
    rounds: Count
    final: Numbers = {}
    final_mean: Numbers = {}
    seconds: float | None = None
    client_trainings_per_second: float | None = None
    clients: Clients | None = None
    spent: dict[str, float] | None = None
    error: dict[str, float | str | None] | None = None
    speed: Speed | None = None


class Failure(Shape):
    """A run that ended early."""

    strategy: Label
    seed: Seed
    round: Count
    reason: str


class Result(Shape):
    """result.json"""

    runs: list[Run]
    failed: list[Failure] = []
    apart: list[str] | None = None
    together: Count | None = None


class Environment(Shape):
    """environment.json"""

    format: Any = 1  # what it may be is said elsewhere
    packages: dict[str, str] = {}
    on: str | None = None
    started: str | None = None
    device: str | None = None
    gpu: str | None = None
    operators: str | None = None
    processor: str | None = None
    platform: str | None = None
    threads: Count | None = None
    resumed: list[dict[str, Any]] = []


class Trial(Shape):
    """A trial of tuning."""

    settings: dict[str, Any] = {}
    rounds: Count = 0
    value: float | None = None
    failed: str | None = None


class Tuned(Shape):
    """How a strategy's settings were chosen."""

    label: Label
    grid: dict[str, list[Any]] = {}
    winner: dict[str, Any] | None = None
    value: float | None = None
    trials: list[Trial] = []


class Tuning(Shape):
    """tune.json"""

    strategies: list[Tuned] = []


class Entry(Shape):
    """A strategy of a resolved experiment."""

    name: Label
    label: Label


class Task(Shape):
    """[task] of a resolved experiment."""

    clients: Annotated[int, Field(ge=1, lt=2**31)]


class Length(Shape):
    """[run] of a resolved experiment."""

    rounds: Count
    seeds: list[Seed]


class Resolved(Shape):
    """experiment.toml"""

    name: str = ""
    task: Task | None = None
    participation: Any = None
    local: dict[str, Any] = {}
    strategy: list[Entry]
    run: Length | None = None
