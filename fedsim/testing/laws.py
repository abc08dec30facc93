"""What holds for every strategy. A law is a function (strategy, stage) that raises Broken where it does not hold.

The strategy comes with everything filled in (`Stage.ready`). A law that says nothing about a kind of strategy raises
Inapplicable there. What a state holds is compared bit for bit unless a law says otherwise.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from fedsim import ledger
from fedsim.checkpoint import load_checkpoint, save_checkpoint
from fedsim.strategy import Strategy, Traffic, Wrapper
from fedsim.testing.clients import Frozen, Honest
from fedsim.testing.loop import drive, last
from fedsim.testing.stage import Stage, changed, is_gossip
from fedsim.testing.states import Broken, Inapplicable, close, contents, copied, finite, kind, same

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


def relabelling_clients_relabels_the_state(strategy: Strategy, stage: Stage) -> None:
    """Client numbers mean nothing: numbered otherwise, everything per client moves along and the rest stays."""
    n = stage.n
    to = torch.tensor([3, 5, 0, 4, 1, 2] if n == 6 else [*range(1, n), 0])
    there = torch.argsort(to)
    x = stage.start(strategy)
    run: dict[str, Any] = {"n": n, "local": stage.training(strategy)}
    one = drive(strategy, stage.clients, stage.presence, x=x.clone(), p=stage.p, **run)
    two = drive(
        relabelled(strategy, to.tolist()),
        Honest(stage.clients.a[there], stage.clients.b[there]),
        [[int(to[i]) for i in who] for who in stage.presence],
        x=x[there] if x.ndim == 2 else x.clone(),
        p=stage.p[there],
        **run,
    )
    for (a, round), (b, _) in zip(one, two, strict=True):
        moved = {k: v[to] if isinstance(v, Tensor) and v.ndim and len(v) == n else v for k, v in contents(b).items()}
        close(contents(a), moved, stage.tolerance, "where clients numbered otherwise give", round.t, round.who)


def relabelled(strategy: Strategy, to: list[int]) -> Strategy:
    """A strategy whose own knowledge of clients is about the same clients under their new numbers."""

    def moved(value: Any) -> Any:
        if not isinstance(value, (tuple, list)) or len(value) != len(to):
            return value
        return type(value)([value[to.index(i)] for i in range(len(to))])

    strategy = changed(strategy, "graph", lambda graph: nx.relabel_nodes(graph, dict(enumerate(to))))
    for name in ("clusters", "probabilities", "sizes"):
        strategy = changed(strategy, name, moved)
    return strategy


def absent_clients_data_do_not_matter(strategy: Any, stage: Stage) -> None:
    """A round is the same whatever the data of those who are absent, NaN included; and an absent node keeps its model
    bit for bit, which nobody else feels."""
    run = stage.settings(strategy, local=stage.training(strategy))
    state = strategy.init(run.pop("x"), stage.p, 7)
    clients = stage.clients
    for t, who in enumerate(stage.presence):
        gone = [i for i in range(stage.n) if i not in who]
        a, b = clients.a.clone(), clients.b.clone()
        a[gone], b[gone] = 17.0, float("nan")
        until, before = stage.presence[: t + 1], state
        ((other, _),) = drive(watching(strategy, b), Honest(a, b), until, state=copied(before), t=t, **run)
        ((state, _),) = drive(watching(strategy, clients.b), clients, until, state=copied(before), t=t, **run)
        same(other, state, "with other data at the absent clients, where otherwise it is", t, who)
        if state.x.ndim == 2:
            same(state.x[gone], before.x[gone], f"of the absent nodes {gone}, whose models were", t, who)
            broken = copied(before)
            broken.x[gone] = float("nan")
            ((other, _),) = drive(strategy, clients, until, state=broken, t=t, **run)
            same(other.x[list(who)], state.x[list(who)], "with NaN at the absent nodes, where otherwise it is", t, who)
            if not bool(other.x[gone].isnan().all()):
                raise Broken(f"the models of the absent nodes {gone}, which were NaN, have changed", t, who)


def watching(strategy: Any, data: Tensor) -> Any:
    """A strategy with a setting `data` [n, P] is shown what the clients hold; others have no way to see it."""
    return dataclasses.replace(strategy, data=data) if hasattr(strategy, "data") else strategy


@dataclasses.dataclass(frozen=True)
class _Deaf:
    """An engine that loses the answers of some clients."""

    clients: Honest
    lost: tuple[int, ...]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        answer = self.clients(*args, **kwargs)
        keep = torch.tensor([i not in self.lost for i in answer.who.tolist()], dtype=torch.bool)
        parts = {name: getattr(answer, name)[keep] for name in ("who", "delta", "span", "loss")}
        return answer._replace(**parts, told={name: value[keep] for name, value in answer.told.items()})


def who_does_not_answer_was_absent(strategy: Strategy, stage: Stage) -> None:
    """Being asked means nothing: a client whose answer is lost, or everybody's, might as well not have been there."""
    lost = (1, 4) if stage.n > 4 else (stage.n - 1,)
    heard = [[i for i in who if i not in lost] for who in stage.presence]
    run = stage.settings(strategy, local=stage.training(strategy))
    x = run.pop("x")
    deaf = drive(strategy, _Deaf(stage.clients, lost), stage.presence, x=x.clone(), **run)
    absent = drive(strategy, stage.clients, heard, x=x.clone(), **run)
    for (a, r), (b, q) in zip(deaf, absent, strict=True):
        asked = stage.presence[r.t]
        silent = [i for i in asked if i in lost]
        text = f"with the answers of {silent} lost, where with {silent} absent it is"
        same({"round.who": r.who}, {"round.who": q.who}, text, r.t, asked)
        same({"round.start": r.start}, {"round.start": q.start}, text, r.t, asked)
        same(a, b, text, r.t, asked)


class _Watched:
    """An engine that keeps what it answered, and a copy."""

    def __init__(self, clients: Honest) -> None:
        self.clients = clients
        self.given: list[tuple[Any, Any]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        answer = self.clients(*args, **kwargs)
        told = {name: value.clone() for name, value in answer.told.items()}
        kept = answer._replace(**{k: getattr(answer, k).clone() for k in ("who", "delta", "span", "loss")}, told=told)
        self.given.append((answer, kept))
        return answer


def donation_is_safe(strategy: Strategy, stage: Stage) -> None:
    """Run again on copies of all it is given it does the same, and it writes to nothing but its state: not to the
    answers, not to p, not to the model that the caller started it with."""
    x, p, engine = stage.start(strategy), stage.p.clone(), _Watched(stage.clients)
    run: dict[str, Any] = {"n": stage.n, "local": stage.training(strategy)}
    donated = drive(strategy, engine, stage.presence, x=x, p=p, **run)
    cloned = drive(strategy, stage.clients, stage.presence, x=x.clone(), p=p.clone(), before=copied, **run)
    for (a, round), (b, other) in zip(donated, cloned, strict=True):
        text = "where on copies of its state it is"
        same({"round.who": round.who}, {"round.who": other.who}, text, round.t, round.who)
        same({"round.delta": round.delta}, {"round.delta": other.delta}, text, round.t, round.who)
        same(a, b, text, round.t, round.who)
        for answer, kept in engine.given[-1:]:
            for name in ("who", "delta", "span", "loss"):
                text = "after step, which wrote into it, where the client had answered"
                now, then = {f"round.{name}": getattr(answer, name)}, {f"round.{name}": getattr(kept, name)}
                same(now, then, text, round.t, round.who)
            for name in kept.told:
                at = f"round.told[{name!r}]"
                text = "after step, which wrote into it, where the client had answered"
                same({at: answer.told[name]}, {at: kept.told[name]}, text, round.t, round.who)
    text = "after the run, which wrote into it, where it was"
    same(
        {"the first model, which is the caller's,": x},
        {"the first model, which is the caller's,": stage.start(strategy)},
        text,
    )
    same({"p": p}, {"p": stage.p}, text)


def all_memory_is_in_the_state(strategy: Strategy, stage: Stage) -> None:
    """Two runs by turns on one strategy are the two runs one after the other: nothing hides in the object."""
    run = stage.settings(strategy, local=stage.training(strategy))
    x = run.pop("x")
    pristine = copy.deepcopy(strategy)
    there = np.random.default_rng(3).random((len(stage.presence), stage.n)) < 0.5
    others = [np.flatnonzero(row).tolist() for row in there]
    both = [drive(strategy, stage.clients, who, x=x.clone(), **run) for who in (stage.presence, others)]
    mixed = [[contents(next(one)[0]) for one in both] for _ in stage.presence]
    for j, who in enumerate((stage.presence, others)):
        alone = drive(copy.deepcopy(pristine), stage.clients, who, x=x.clone(), **run)
        for t, (state, round) in enumerate(alone):
            text = "in one of two runs by turns on one object, where by itself it is"
            same(mixed[t][j], contents(state), text, t, round.who)


def state_serialises_and_resumes(strategy: Strategy, stage: Stage) -> None:
    """Saved after any round and loaded into a fresh state, the run goes on bit for bit."""
    run = stage.settings(strategy, local=stage.training(strategy))
    x = run.pop("x")
    straight = [contents(s) for s, _ in drive(strategy, stage.clients, stage.presence, x=x.clone(), **run)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        for t in sorted({0, 1, 4, 7} & set(range(len(stage.presence)))):
            state = strategy.init(x.clone(), stage.p, 7)
            if t:
                state = last(strategy, stage.clients, stage.presence[:t], state=state, **run)
            fresh = strategy.init(torch.zeros_like(x), stage.p, 7)
            try:
                save_checkpoint(path, state, t)
                state, begin, _ = load_checkpoint(path, fresh)
            except ValueError as error:
                reason = str(error).removeprefix(f"{path} ")
                raise Broken(f"its state cannot be saved and loaded: {reason}", t - 1 if t else None) from error
            assert begin == t
            for s, (now, round) in enumerate(
                drive(strategy, stage.clients, stage.presence, state=state, t=t, **run), t
            ):
                text = f"resumed after {t} rounds, where the uninterrupted run has"
                same(contents(now), straight[s], text, s, round.who)


def a_wrapper_around_it_changes_nothing(strategy: Strategy, stage: Stage) -> None:
    """Inside two wrappers that do nothing it is what it was; and where x of the state is changed, as a wrapper does,
    that is where the clients start and what is evaluated."""
    wrapped = Wrapper(Wrapper(strategy))
    run = stage.settings(strategy, local=stage.training(strategy))
    x = run.pop("x")
    inner = drive(strategy, stage.clients, stage.presence, x=x.clone(), **run)
    outer = drive(wrapped, stage.clients, stage.presence, x=x.clone(), **run)
    a: Any = None
    for (a, r), (b, s) in zip(inner, outer, strict=True):
        text = "without a wrapper, where inside two that do nothing it is"
        same(a, b.inner.inner, text, r.t, r.who)
        same({"x": a.x}, {"x": b.x}, text, r.t, r.who)
        same({"model(state)": strategy.model(a)}, {"model(state)": wrapped.model(b)}, text, r.t, r.who)
        if strategy.traffic(a, r) != wrapped.traffic(b, s):
            what = f"its traffic is {strategy.traffic(a, r)} but inside two wrappers {wrapped.traffic(b, s)}"
            raise Broken(what, r.t, r.who)
    moved = a._replace(x=a.x + 1)
    who = torch.tensor([0, 4] if stage.n > 4 else [0])
    there = moved.x[who] if moved.x.ndim == 2 else moved.x.expand(len(who), -1)
    text = "though a wrapper has set the state's x to"
    same({"start of send": strategy.send(moved, who).start}, {"start of send": there}, text)
    same({"model(state)": strategy.model(moved)}, {"model(state)": moved.x}, text)
    still = Frozen(torch.zeros(stage.n, stage.size, dtype=stage.dtype))
    shared: dict[str, Any] = {"n": stage.n, "local": stage.local}
    plain = last(strategy, still, [who.tolist()], state=copied(a), **shared)
    moved = last(strategy, still, [who.tolist()], state=copied(moved), **shared)
    text = "after a wrapper added 1 to x and nobody moved, where it should be"  # the averages of moved models are moved
    close({"x": moved.x}, {"x": plain.x + 1}, 1e-5, text)


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
