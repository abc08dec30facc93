"""What holds for every strategy, of the second kind: what it may not look at, write to or hide (see laws.py)."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from fedsim.checkpoint import load_checkpoint, save_checkpoint
from fedsim.strategy import Strategy, Wrapper
from fedsim.testing.clients import Frozen, Honest
from fedsim.testing.loop import drive, last
from fedsim.testing.stage import Stage, changed
from fedsim.testing.states import Broken, close, contents, copied, same


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
        given = {name: getattr(answer, name) for name in ("who", "delta", "span", "loss")}
        parts: dict[str, Any] = {name: None if value is None else value[keep] for name, value in given.items()}
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
        self.given.append((answer, copied(answer)._replace(told=told)))
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
        for answer, kept in engine.given:
            for name in ("who", "delta", "span", "loss"):
                text = "after step, which wrote into it, where the client had answered"
                now, then = {f"round.{name}": getattr(answer, name)}, {f"round.{name}": getattr(kept, name)}
                same(now, then, text, round.t, round.who)
            for name in kept.told:
                at = f"round.told[{name!r}]"
                text = "after step, which wrote into it, where the client had answered"
                same({at: answer.told[name]}, {at: kept.told[name]}, text, round.t, round.who)
        engine.given.clear()
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
