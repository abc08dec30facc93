"""Strategies of Flower in a comparison: made from an experiment's entry, and played on a CohortGrid round by round."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from flwr.clientapp import mod
from flwr.serverapp import strategy as flower
from torch import Tensor

from fedsim import resolve
from fedsim.flower import wire
from fedsim.flower.client import initial_arrays
from fedsim.flower.cohort import CohortGrid
from fedsim.flower.drive import enough, rounds
from fedsim.flower.mods import Mod
from fedsim.simulation import sound
from fedsim.strategy import Round, Traffic

if TYPE_CHECKING:
    from typing import Literal

    from fedsim.engine import Engine
    from fedsim.experiment.bundled import Bundled
    from fedsim.local import LocalSGD
    from fedsim.participation import Schedule
    from fedsim.task import Task


class FlowerStep(NamedTuple):
    """A round that is over: `simulation.Step`, and what the clients said of the model."""

    t: int
    state: None  # a strategy of Flower keeps its own
    round: Round
    model: Tensor  # [P]
    traffic: Traffic
    metrics: dict[str, float]  # the strategy's own evaluation by clients, if it asks for one


def made(entry: Bundled, n: int) -> flower.Strategy:
    """The strategy of an entry, for n clients. Raises ValueError, one line, where its constructor does not like its
    settings, and where it would wait for more clients than there are."""
    cls: Any = entry.cls or getattr(flower, entry.name.partition(":")[2])
    settings = {name: value if not hasattr(value, "dump") else made(value, n) for name, value in entry.settings.items()}
    with quiet():
        try:
            strategy = cls(**settings)
        except Exception as error:  # whatever the user's own constructor raises
            text = " ".join(str(error).split()) if isinstance(error, ValueError) else resolve.line(error)
            raise ValueError(text) from error
    if not isinstance(strategy, flower.Strategy):
        raise ValueError(f"{entry.name} makes a {type(strategy).__name__}, which is no strategy of Flower")
    return enough(strategy, n)


def mods_of(strategy: Any) -> list[Mod]:
    """What the clients of a strategy must do besides training, as Flower's documentation says."""
    if isinstance(strategy, flower.DifferentialPrivacyClientSideFixedClipping):
        return [mod.fixedclipping_mod, *mods_of(strategy.strategy)]
    if isinstance(strategy, flower.DifferentialPrivacyClientSideAdaptiveClipping):
        return [mod.adaptiveclipping_mod, *mods_of(strategy.strategy)]
    inner = getattr(strategy, "strategy", None)
    return mods_of(inner) if isinstance(inner, flower.Strategy) else []


def steps(
    strategy: flower.Strategy, task: Task, schedule: Schedule, local: LocalSGD, *, seed: int, engine: Engine,
    objective: Literal["examples", "uniform"] = "examples",
) -> Iterator[FlowerStep]:  # fmt: skip
    """What `fedsim.simulate` is to our strategies: the same first model, presence, minibatches and errors.

    Traffic counts what the clients that answered got and sent. Raises ValueError where training diverges, and for
    whatever the strategy raises.
    """
    grid = CohortGrid(
        task, local, schedule=schedule, engine=engine, seed=seed, objective=objective, on_failure="stop",
        mods=mods_of(strategy),
    )  # fmt: skip
    form = wire.Form.of_layout(task.layout, task.dtype)
    played = rounds(strategy, grid, initial_arrays(task, seed), len(schedule))
    for t in range(len(schedule)):
        try:
            with quiet():
                step = next(played)
            model = form.flat(step.arrays).to(task.device)
        except ValueError:
            raise
        except Exception as error:  # Flower's own exceptions, and whatever the user's strategy raises
            raise ValueError(f"round {t}: {resolve.line(error)}") from error
        sound(model, step.round)
        bits = step.round.delta.numel() * step.round.delta.element_size() * 8
        said: dict[str, Any] = dict(step.evaluate_metrics or {})
        figures = {f"clients_{name}": float(x) for name, x in said.items() if isinstance(x, (int, float))}
        yield FlowerStep(t, None, step.round, model, Traffic(bits, bits), figures)


class quiet:
    """A block in which Flower says nothing below an error: its strategies log several lines per round."""

    def __enter__(self) -> None:
        self.log = logging.getLogger("flwr")
        self.level = self.log.level
        self.log.setLevel(logging.ERROR)

    def __exit__(self, *error: object) -> None:
        self.log.setLevel(self.level)
