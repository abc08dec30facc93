"""What holds for every strategy. A law is a function (strategy, stage) that raises Broken where it does not hold.

The strategy comes with everything filled in (`Stage.ready`). A law that says nothing about a kind of strategy raises
Inapplicable there. What a state holds is compared bit for bit unless a law says otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fedsim import ledger
from fedsim.strategy import Strategy, Traffic
from fedsim.testing.clients import Frozen
from fedsim.testing.conduct import (
    a_wrapper_around_it_changes_nothing,
    absent_clients_data_do_not_matter,
    all_memory_is_in_the_state,
    donation_is_safe,
    relabelling_clients_relabels_the_state,
    state_serialises_and_resumes,
    who_does_not_answer_was_absent,
)
from fedsim.testing.loop import drive, last
from fedsim.testing.stage import Stage, is_gossip
from fedsim.testing.states import Broken, Inapplicable, close, contents, finite, kind, same

Law = Callable[[Any, Stage], None]


def is_well_formed(strategy: Any, stage: Stage) -> None:
    """A frozen dataclass whose state is a NamedTuple with a field x that begins as the model it is given."""
    name, params = type(strategy).__name__, getattr(type(strategy), "__dataclass_params__", None)
    if params is None or not params.frozen:
        raise Broken(f"{name} is not a frozen dataclass: write @dataclass(frozen=True) above it")
    if dataclasses.replace(strategy) != strategy:
        raise Broken(f"{name} made again with the same settings is not equal to itself")
    try:
        hash(strategy)
    except TypeError as error:
        raise Broken(f"{name} cannot be hashed ({error}): its settings are numbers, text, tuples and such") from error
    x = stage.start(strategy)
    state = strategy.init(x.clone(), stage.p)
    fields = getattr(state, "_fields", None)
    if fields is None:
        raise Broken(f"init gives a {type(state).__name__} where a NamedTuple with a field x is wanted")
    if "x" not in fields:
        raise Broken(f"the state has the fields {', '.join(fields)} and no x, which is where the model lives")
    same(state.x, x, "after init, where the model it was given has")


def keeps_its_shapes(strategy: Strategy, stage: Stage) -> None:
    """x keeps its shape, the clients start from one model each, and the model is [P], in gossip [n, P]."""
    nodes = is_gossip(strategy)
    wanted = [stage.n, stage.size] if nodes else [stage.size]
    for state, round in drive(strategy, stage.clients, stage.presence, **stage.settings(strategy)):
        for name, value in (("x", state.x), ("model(state)", strategy.model(state))):
            if list(value.shape) != wanted:
                raise Broken(f"{name} has the shape {list(value.shape)} where {wanted} is wanted", round.t, round.who)
        k = len(round.who)
        start = strategy.send(state, round.who).start
        if list(start.shape) != [k, stage.size]:
            text = f"send gives start the shape {list(start.shape)} where [{k}, {stage.size}] is wanted"
            raise Broken(text, round.t, round.who)


def keeps_its_precision(strategy: Strategy, stage: Stage) -> None:
    """Everything of the size of a model stays in the model's precision, and both precisions tell the same story."""
    for state, round in drive(strategy, stage.clients, stage.presence, **stage.settings(strategy)):
        work = strategy.send(state, round.who)
        named = {**contents(state), "model(state)": strategy.model(state), "start of send": work.start}
        if isinstance(work.shift, Tensor):
            named["shift of send"] = work.shift
        for name, value in named.items():
            like = isinstance(value, Tensor) and value.ndim and value.shape[-1] == stage.size
            if like and value.is_floating_point() and value.dtype != stage.dtype:
                text = f"{name.removeprefix('.')} is {kind(value)} though the model is {_word(stage.dtype)}"
                raise Broken(text, round.t, round.who)
    double = dataclasses.replace(stage, dtype=torch.float64)
    fine = last(strategy, double.clients, double.presence, **double.settings(strategy))
    close({"x": state.x.double()}, {"x": fine.x}, 1e-3, "in float32 where in float64 it is")


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def an_empty_round_survives(strategy: Strategy, stage: Stage) -> None:
    """When nobody is present nothing breaks: every number of the state stays finite."""
    for state, round in drive(strategy, stage.clients, stage.presence, **stage.settings(strategy)):
        found = finite(state) or finite(strategy.model(state))
        if found:
            raise Broken(found, round.t, round.who)


def nan_is_not_hidden(strategy: Strategy, stage: Stage) -> None:
    """An answer that is NaN shows in the model at once, so that the run stops, or leaves no trace in the state."""
    for t, who in enumerate(stage.presence):
        if not who:
            continue
        run = stage.settings(strategy, local=stage.training(strategy))
        state = last(strategy, _Poisoned(stage, who[0], t), stage.presence[: t + 1], **run)
        found = finite(state)
        if found and bool(strategy.model(state).isfinite().all()):
            text = f"client {who[0]} answers NaN, the model stays finite, yet {found} in the state"
            raise Broken(text, t, who)


@dataclasses.dataclass(frozen=True)
class _Poisoned:
    """An engine in which one client answers NaN in one round."""

    stage: Stage
    client: int
    round: int

    def __call__(
        self, task: Any, who: Tensor, work: Any, keys: Tensor, local: Any, t: int = 0, effort: Any = None
    ) -> Any:
        answer = self.stage.clients(task, who, work, keys, local, t, effort)
        if t == self.round:
            answer.delta[who == self.client] = float("nan")
        return answer


def traffic_is_counted(strategy: Strategy, stage: Stage) -> None:
    """Traffic is whole numbers of bits, and a round without anybody present costs nothing."""
    for state, round in drive(strategy, stage.clients, stage.presence, **stage.settings(strategy)):
        traffic = strategy.traffic(state, round)
        if not isinstance(traffic, Traffic) or not all(type(bits) is int and bits >= 0 for bits in traffic):
            text = f"traffic is {traffic!r} where Traffic(up, down) in whole numbers of bits is wanted"
            raise Broken(text, round.t, round.who)
        if not len(round.who) and traffic != Traffic(0, 0):
            raise Broken(f"traffic is {traffic} where nobody was asked anything", round.t, round.who)


def the_ledger_is_exact(strategy: Strategy, stage: Stage) -> None:
    """The model is x_0 + Σ_i W_i d_i for clients that always answer d_i, W read off the twin that answers e_i."""
    if not strategy.linear:
        raise Inapplicable("it says that its weights depend on the updates (linear is False)")
    n, x = stage.n, stage.start(strategy, shared=True)
    d = torch.randn(n, stage.size, dtype=stage.dtype, generator=torch.Generator().manual_seed(8))
    twin = ledger.open(strategy, stage.p, 7)
    first = x.expand(n, -1).clone() if is_gossip(strategy) else x
    run = stage.settings(strategy, x=first, local=stage.training(strategy))
    for state, round in drive(strategy, Frozen(d), stage.presence, **run):
        try:
            twin = ledger.enter(strategy, twin, round, torch.arange(n))
        except Exception as error:  # whatever an update of another size runs into
            reason = f"{type(error).__name__}: {error}"
            text = f"step cannot be carried out for models of another size, as the ledger does ({reason})"
            raise Broken(f"{text}; or say linear = False", round.t, round.who) from error
        wanted = x + strategy.model(twin).to(stage.dtype) @ d
        text = "where the weights in the ledger make it; if its weights depend on the updates, say linear = False:"
        close(
            {"model(state)": strategy.model(state)}, {"model(state)": wanted}, stage.tolerance, text, round.t, round.who
        )


STRATEGY_LAWS: tuple[Law, ...] = (
    is_well_formed,
    keeps_its_shapes,
    keeps_its_precision,
    an_empty_round_survives,
    nan_is_not_hidden,
    donation_is_safe,
    relabelling_clients_relabels_the_state,
    absent_clients_data_do_not_matter,
    who_does_not_answer_was_absent,
    all_memory_is_in_the_state,
    state_serialises_and_resumes,
    a_wrapper_around_it_changes_nothing,
    traffic_is_counted,
    the_ledger_is_exact,
)
SINGLE_TOO = (is_well_formed, keeps_its_shapes, keeps_its_precision, state_serialises_and_resumes, traffic_is_counted)
# also in float32: the others have nothing to do with precision
