"""fedsim: federated and gossip learning, simulated on one machine.

Every algorithm is: where do the present clients start -> train locally -> what do we make of their moves.

    state = strategy.init(x, p)
    for t, (available, chosen, effort) in enumerate(schedule):
        who = strategy.pick(state, available, chosen)             # strategy.py
        work = strategy.send(state, who)                          # strategies/: one paper, one file
        answer = engine(task, who, work, keys(seed, t, who))      # engine/: the cohort as one batched program
        state = strategy.step(state, Round(t, who, answer))
        yield state                                               # simulation.py: the loop, for real

The tour: `federate` spreads data over clients (task.py, data/, models/), `participation` says who is there when,
`LocalSGD` what a client does (local.py), `strategies` what becomes of it, with `weights`, `mixing` and `topology` as
their parts, and `measure` how good it is. `fedsim run experiment.toml` does all of it from one file.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim import data, measure, mixing, models, participation, strategies, topology, weights
    from fedsim.engine import Loop, Stacked
    from fedsim.local import LocalSGD
    from fedsim.simulation import Step, simulate
    from fedsim.strategy import Averaging, GossipStrategy, Round, ServerStrategy, Strategy, Work, Wrapper
    from fedsim.task import Task, federate, make_task

__version__ = "0.1.0"

_WHERE = {
    "LocalSGD": "local",
    "simulate": "simulation",
    "Step": "simulation",
    "Task": "task",
    "federate": "task",
    "make_task": "task",
    "Stacked": "engine",
    "Loop": "engine",
    "Strategy": "strategy",
    "ServerStrategy": "strategy",
    "Averaging": "strategy",
    "GossipStrategy": "strategy",
    "Wrapper": "strategy",
    "Work": "strategy",
    "Round": "strategy",
}
_ROOMS = ("data", "measure", "mixing", "models", "participation", "strategies", "topology", "weights")

__all__ = [
    "Averaging",
    "GossipStrategy",
    "LocalSGD",
    "Loop",
    "Round",
    "ServerStrategy",
    "Stacked",
    "Step",
    "Strategy",
    "Task",
    "Work",
    "Wrapper",
    "data",
    "federate",
    "make_task",
    "measure",
    "mixing",
    "models",
    "participation",
    "simulate",
    "strategies",
    "topology",
    "weights",
]


def __getattr__(name: str) -> Any:
    """Rooms and names are opened when first used, so that importing fedsim stays light."""
    if name in _WHERE:
        value = getattr(importlib.import_module(f"fedsim.{_WHERE[name]}"), name)
    elif name in _ROOMS:
        value = importlib.import_module(f"fedsim.{name}")
    else:
        raise AttributeError(f"module 'fedsim' has no attribute {name!r}")
    globals()[name] = value
    return value
