"""A strategy of Flower driven over a CohortGrid round by round: `Strategy.start` as a generator that never waits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import strategy as flower

from fedsim import keyed
from fedsim.flower.cohort import CohortGrid
from fedsim.strategy import Round


class Played(NamedTuple):
    """A round of Flower that is over."""

    server_round: int  # 1, 2, ...
    arrays: ArrayRecord  # the model: the former one after an empty round
    train_metrics: MetricRecord | None
    evaluate_metrics: MetricRecord | None
    round: Round  # who answered with what


def rounds(
    strategy: flower.Strategy, grid: CohortGrid, initial_arrays: ArrayRecord, num_rounds: int = 3, *,
    train_config: ConfigRecord | None = None, evaluate_config: ConfigRecord | None = None,
) -> Iterator[Played]:  # fmt: skip
    """What `Strategy.start` does on a CohortGrid, round by round, beginning with the grid's round 0.

    The same calls in the same order, with two differences: where fewer clients are there than the strategy says it
    needs (min_available_nodes, min_train_nodes, min_evaluate_nodes, of itself or the strategy it wraps), nothing is
    asked and the model stays, without the second that waiting costs; and where nobody answers, nothing is aggregated.

    Raises ValueError where the strategy needs more clients than the task has.
    """
    enough(strategy, grid.task.n)
    train_config = ConfigRecord() if train_config is None else train_config
    evaluate_config = ConfigRecord() if evaluate_config is None else evaluate_config
    arrays = initial_arrays
    for number in range(1, num_rounds + 1):
        grid.t = number - 1
        there = len(grid.row.chosen)
        made, train_metrics, evaluate_metrics = None, None, None
        try:
            go = there >= wanted(strategy, "train")
            with grid.dice.held(keyed.seed(grid.seed, "flower", "before", number)):
                messages = strategy.configure_train(number, arrays, train_config, grid) if go else []
                replies = list(grid.send_and_receive(messages))
                grid.dice.hold(keyed.seed(grid.seed, "flower", "aggregate", number - 1))
                if replies:
                    made, train_metrics = strategy.aggregate_train(number, replies)
            arrays = arrays if made is None else made
            del replies
            if there >= wanted(strategy, "evaluate"):
                with grid.dice.held(keyed.seed(grid.seed, "flower", "between", number)):
                    messages = strategy.configure_evaluate(number, arrays, evaluate_config, grid)
                    replies = list(grid.send_and_receive(messages))
                    evaluate_metrics = strategy.aggregate_evaluate(number, replies) if replies else None
        finally:
            grid.dice.release()
        assert grid.last is not None  # send_and_receive has set it
        yield Played(number, arrays, train_metrics, evaluate_metrics, grid.last)


def wanted(strategy: flower.Strategy, phase: Literal["train", "evaluate"]) -> int:
    """How many clients must be there so that the strategy does not wait, as far as it says so."""
    while isinstance(inner := getattr(strategy, "strategy", None), flower.Strategy):
        strategy = inner
    if getattr(strategy, f"fraction_{phase}", None) == 0:
        return 0
    least = (getattr(strategy, name, 0) for name in ("min_available_nodes", f"min_{phase}_nodes"))
    return max((number for number in least if isinstance(number, int)), default=0)


def enough(strategy: flower.Strategy, n: int) -> flower.Strategy:
    """The strategy, if n clients are enough for it."""
    if (most := max(wanted(strategy, "train"), wanted(strategy, "evaluate"))) > n:
        raise ValueError(
            f"the strategy waits for {most} clients and there are {n}; lower min_available_nodes, min_train_nodes or "
            "min_evaluate_nodes"
        )
    return strategy
