"""The laws that fedsim's own strategies obey, for yours: in a test, or by `fedsim check mine.py:MyStrategy`.

    from fedsim.testing import check_strategy

    def test_laws():
        check_strategy(MyStrategy(beta=0.5), reduces_to=(FedAvg(), {"beta": 0.0}))

laws.py        what holds for every strategy (devices.py: where its tensors are; parity.py: through Flower)
reductions.py  what a strategy says it becomes with certain settings
stage.py       the small world in which laws are tried; shrinking.py makes it smaller where one breaks
clients.py     clients whose answers are known; loop.py plays rounds with them
states.py      comparing states, with the difference in words
report.py      what came of it, one sentence a failure
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["check_strategy"]


def check_strategy(strategy: Any, *, reduces_to: Any = (), waived: Mapping[str, str] | None = None) -> None:
    """Raises AssertionError unless a strategy of yours obeys the laws, one sentence for each that it breaks, with the
    smallest example found: how many clients and parameters, the round, who was present, the numbers.

        def test_halfway() -> None:
            check_strategy(
                Halfway(share=0.3),
                reduces_to=[(FedAvg(), {"share": 1.0})],  # with share = 1 it is FedAvg, round for round
                waived={"the_ledger_is_exact": "its weights depend on the updates"},
            )

    What the strategy left out (layout, probabilities, graph, nodes, sizes) is filled in, as an experiment does.
    `reduces_to` is one pair or several: the strategy that it becomes and the settings that make it so, and True after
    them where that holds only while everybody is present. A law that does not hold by design is `waived` with the
    reason; it is tried all the same, and a waiver of a law that holds is a failure. A class may state both itself, as
    `reduces: ClassVar = ...` and `waives: ClassVar = {...}`, which `fedsim check` sees as well.

    Raises ValueError for what is no strategy, and for waivers and reductions that are none.
    """
    from fedsim.testing.strategies import examine

    examine(strategy, reduces_to, waived).insist()
