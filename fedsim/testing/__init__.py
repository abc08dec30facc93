"""The laws that fedsim's own strategies obey, for yours: in a test, or by `fedsim check mine.py:MyStrategy`.

    from fedsim.testing import check_strategy

    def test_laws():
        check_strategy(MyStrategy(beta=0.5), reduces_to=(FedAvg(), {"beta": 0.0}))

laws.py        what holds for every strategy (conduct.py: what it may not look at, write to or hide;
               devices.py: where its tensors are; parity.py: through Flower)
reductions.py  what a strategy says it becomes with certain settings
strategies.py  all of these, tried on one strategy; known.py: which of fedsim's own do not obey which, and why
mixings.py     what holds for every mixing; schedules.py: for every process of presence; tasks.py: for every task
stage.py       the small world in which laws are tried; shrinking.py makes it smaller where one breaks
clients.py     clients whose answers are known; loop.py plays rounds with them
states.py      comparing states, with the difference in words
report.py      what came of it, one sentence a failure
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.testing.report import Report

__all__ = ["check_mixing", "check_participation", "check_strategy", "check_task", "examine"]


def check_strategy(strategy: Any, *, reduces_to: Any = (), waived: Mapping[str, str] | None = None) -> None:
    """Raises AssertionError unless a strategy of yours obeys the laws, one sentence for each that it breaks, with the
    smallest example found: how many clients and parameters, the round, who was present, the numbers.

        def test_halfway() -> None:
            check_strategy(
                Halfway(share=0.3),
                reduces_to=[(FedAvg(), {"share": 1.0})],  # with share = 1 it is FedAvg, round for round
                waived={"the_ledger_is_exact": "its weights depend on the updates"},
            )

    It is tried among at most six clients. What the strategy left out (layout, probabilities, graph, nodes, sizes) is
    filled in, as an experiment does. `reduces_to` is one pair or several: the strategy that it becomes, the settings
    that make it so, and True after them where that holds only while everybody is present. A law that does not hold by
    design is `waived` with the reason; it is tried all the same, and a waiver of a law that holds is a failure. A class
    may state both itself, as `reduces: ClassVar = ...` and `waives: ClassVar = {...}`; `fedsim check` sees these.

    Raises ValueError for what is no strategy, and for waivers and reductions that are none.
    """
    from fedsim.testing import strategies

    strategies.examine(strategy, reduces_to, waived).insist()


def check_mixing(mixing: Any, *, waived: Mapping[str, str] | None = None) -> None:
    """Raises AssertionError unless a mixing of yours obeys the laws: sums, absent nodes, draws by key, its graph.

        def test_triangles() -> None:
            check_mixing(Triangles(self_weight=0.5))

    Tried on 1, 2, 3 and 6 nodes, as far as it takes so few; a graph, `nodes` and `sizes` left out are filled in.
    Raises ValueError for what is no mixing.
    """
    from fedsim.testing import mixings

    mixings.examine(mixing, waived).insist()


def check_participation(process: Any, *, clients: int | None = None, waived: Mapping[str, str] | None = None) -> None:
    """Raises AssertionError unless a process of yours obeys the laws: what it draws, the seed, longer schedules, rates.

        def test_weekends() -> None:
            check_participation(Weekends(length=7, off=2))

    Tried with a few small numbers of clients, as far as its `check` allows them, or with `clients`.
    Raises ValueError for what is no participation.
    """
    from fedsim.testing import schedules

    schedules.examine(process, waived, clients).insist()


def check_task(task: Any, *, waived: Mapping[str, str] | None = None) -> None:
    """Raises AssertionError unless a task of yours, or a data set, obeys the laws: owners of examples, seeds and keys,
    losses that are of their own example, engines that agree.

        def test_hospitals() -> None:
            check_task(fedsim.federate(hospitals(), clients=5, model=Net))

    Raises ValueError for what is neither.
    """
    from fedsim.testing import tasks

    tasks.examine(task, waived).insist()


def examine(thing: Any, *, clients: int | None = None, waived: Mapping[str, str] | None = None) -> Report:
    """What holds of a strategy, mixing, participation, task or data set, as a report that names every law.

    Raises ValueError for anything else.
    """
    from fedsim.data import Dataset
    from fedsim.mixing import Mixing
    from fedsim.participation import Participation
    from fedsim.strategy import Strategy
    from fedsim.task import Task

    if isinstance(thing, Strategy):
        from fedsim.testing import strategies

        return strategies.examine(thing, waived=waived)
    if isinstance(thing, Mixing):
        from fedsim.testing import mixings

        return mixings.examine(thing, waived)
    if isinstance(thing, Participation):
        from fedsim.testing import schedules

        return schedules.examine(thing, waived, clients)
    if isinstance(thing, (Task, Dataset)):
        from fedsim.testing import tasks

        return tasks.examine(thing, waived)
    kinds = "derive it from ServerStrategy, Averaging, Wrapper, Mixing or Participation, or give a Task or Dataset"
    raise ValueError(f"a {type(thing).__name__} is nothing that fedsim has laws for; {kinds}")
