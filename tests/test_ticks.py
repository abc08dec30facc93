"""Gossip on ticks: who trains when, when buffers are emptied, and that all in step is a synchronous round."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from helpers import F64, Frozen, close, drive, last, models, round_of, uniform
from torch import Tensor

from fedsim import LocalSGD, federate, ledger, mixing, simulate
from fedsim.data.partition import IID
from fedsim.participation import Ticks
from fedsim.strategies import DPSGD, BufferedGossip, VarianceCorrection
from fedsim.strategy import Round
from fedsim.task import Layout

LAYOUT = Layout(("w", "bias", "v"), (torch.Size([3, 4]), torch.Size([4]), torch.Size([4, 2])))
PRESETS = ("paper", "dfl-torch", "flocky")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def ticks(n: int, rounds: int, seed: int = 0, **settings: Any) -> list[list[int]]:
    schedule = Ticks(**settings).draw(n, rounds, seed)
    return [schedule[t].chosen.tolist() for t in range(rounds)]


@pytest.mark.parametrize("strategy", [BufferedGossip(nx.cycle_graph(6)), DPSGD(mixing.Metropolis(nx.cycle_graph(6)))])
def test_where_nodes_began_is_not_written_to(strategy: Any) -> None:
    """Also where all are there, and their models need not be copied: a round is told of after its step."""
    state, who = strategy.init(normal(6, 3), torch.full((6,), 1 / 6, dtype=F64), 0), torch.arange(6)
    for t in range(3):
        start = strategy.send(state, who).start
        began = start.clone()
        moves = normal(6, 3, seed=t + 1)
        state = strategy.step(state, Round(t, who, start, moves, torch.ones(6, dtype=F64), torch.ones(6, dtype=F64)))
        assert start.equal(began)


# Who trains when -----------------------------------------------------------------------------------------------------


def test_all_begin_together_and_then_keep_their_own_time() -> None:
    presence = ticks(40, 6000, first=5)
    when = [[t for t, who in enumerate(presence) if i in who] for i in range(40)]
    assert all(times[0] == 5 for times in when)
    gaps = np.array([b - a for times in when for a, b in pairwise(times)])
    share = np.bincount(gaps, minlength=13) / len(gaps)
    assert share[:8].sum() == 0
    assert share[8:] == pytest.approx(np.full(5, 0.2), abs=4 * np.sqrt(0.16 / len(gaps)))
    assert len({tuple(times) for times in when}) == 40


def test_a_longer_schedule_begins_with_the_shorter_one_and_one_period_keeps_all_in_step() -> None:
    assert ticks(7, 300)[:90] == ticks(7, 90)
    assert ticks(9, 300)[20:40] != ticks(9, 300, seed=1)[20:40]
    assert [t for t, who in enumerate(ticks(3, 41, periods=(10,))) if who] == [0, 10, 20, 30, 40]
    assert all(who in ([], [0, 1, 2]) for who in ticks(3, 41, periods=(10,)))
    assert sum(map(len, ticks(4, 3, first=3))) == 0
    assert Ticks().draw(4, 100, 0).probabilities == pytest.approx(np.full(4, 0.1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"periods": ()}, "at least one number of ticks"),
        ({"periods": (8, 0)}, "periods must be a whole number of at least 1, got 0"),
        ({"first": -1}, "first must be a whole number of at least 0, got -1"),
    ],
)
def test_wrong_ticks_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ticks(**settings)


# When buffers are emptied --------------------------------------------------------------------------------------------


def counted(fill: float, periods: tuple[int, ...]) -> tuple[float, float]:
    """Averagings per training, and models per averaging, of 50 nodes on an 8-regular graph in 4000 ticks."""
    n = 50
    strategy = BufferedGossip(nx.random_regular_graph(8, n, seed=0), fill=fill)
    state = strategy.init(torch.zeros(n, 1, dtype=F64), uniform(n))
    trainings = averagings = models = 0
    for t, who in enumerate(ticks(n, 4000, periods=periods)):
        before = state.held.clone()
        reach = strategy.edges(torch.tensor(who, dtype=torch.int64)).i if who else torch.arange(0)
        full = before.index_add(0, reach, torch.ones_like(reach))
        state = strategy.step(state, round_of(t, who, torch.zeros(len(who), 1, dtype=F64)))
        emptied = (full > 0) & (state.held == 0)
        trainings, averagings = trainings + len(who), averagings + int(emptied.sum())
        models += int(full[emptied].sum())
    return averagings / trainings, models / averagings


@pytest.mark.parametrize(
    ("fill", "periods", "rate", "size", "within"),
    [
        (1.0, (8, 9, 10, 11, 12), 0.9635, 8.30, 0.005),
        (4.0, (8, 9, 10, 11, 12), 0.2463, 32.34, 0.005),
        (1.0, (10,), 1.0, 8.0, 0.0),
    ],
    ids=["R=1", "R=4", "in step"],
)
def test_averagings_per_training_are_those_of_the_model(
    fill: float, periods: tuple[int, ...], rate: float, size: float, within: float
) -> None:
    """specs/gossip.md §5.5, 32."""
    found = counted(fill, periods)
    assert found[0] == pytest.approx(rate, rel=within)
    assert found[1] == pytest.approx(size, rel=within)


def twin(graph: nx.Graph, x: Tensor, d: Tensor, presence: list[list[int]], beta: float, fill: float) -> list[Tensor]:
    """The model written out with lists of messages."""
    x, seen = x.clone(), []
    buffers: list[list[Tensor]] = [[] for _ in range(len(x))]
    for who in presence:
        for i in who:
            x[i] += d[i]
        for i in who:
            for j in graph[i]:
                buffers[j].append(x[i].clone())
        for j, buffer in enumerate(buffers):
            if buffer and len(buffer) >= fill * graph.degree[j]:
                x[j] = beta * x[j] + (1 - beta) * torch.stack(buffer).mean(0)
                buffer.clear()
        seen.append(x.clone())
    return seen


@pytest.mark.parametrize("graph", [nx.path_graph(6), nx.star_graph(5), nx.barabasi_albert_graph(6, 2, seed=0)])
@pytest.mark.parametrize(("beta", "fill"), [(0.5, 1.0), (0.0, 1.0), (0.3, 2.0), (1.0, 0.5)])
def test_buffers_kept_as_sums_are_buffers(graph: nx.Graph, beta: float, fill: float) -> None:
    x, d, presence = normal(6, 4), normal(6, 4, seed=1), ticks(6, 60, periods=(1, 2, 4))
    run = drive(BufferedGossip(graph, beta, fill), Frozen(d), presence, n=6, x=x.clone())
    for (state, _), expected in zip(run, twin(graph, x, d, presence, beta, fill), strict=True):
        close(state.x, expected, 1e-12)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("target", [None, "self", "mixing", "conservative", "others"])
def test_a_corrected_average_has_the_variance_of_the_messages(preset: Any, target: Any) -> None:
    """A star's hub, with messages laid in over several ticks: their variances at sending count, not those of now."""
    graph, x = nx.star_graph(3), normal(4, LAYOUT.size) * torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=F64)[:, None]
    strategy: Any = VarianceCorrection(BufferedGossip(graph), preset=preset, target=target, layout=LAYOUT, eps=0.0)
    rule, d = strategy.rule, normal(4, LAYOUT.size, seed=2)
    state, sent = strategy.init(x.clone(), uniform(4)), []
    for t, i in enumerate((1, 2, 2)):  # 2 sends twice
        hub = state.x[0].clone()
        state = strategy.step(state, round_of(t, [i], d[i][None], start=state.x[[i]]))
        sent.append(x[i] + d[i] * (t if i == 2 else 1))
    found = LAYOUT.views(state.x[:1])
    mean = 0.5 * hub + 0.5 * torch.stack(sent).mean(0)
    views = {"own": LAYOUT.views(hub[None]), "sent": LAYOUT.views(torch.stack(sent)), "mean": LAYOUT.views(mean[None])}
    for name, shape in zip(LAYOUT.names, LAYOUT.shapes, strict=True):
        own, messages, average = (views[what][name].flatten(1) for what in ("own", "sent", "mean"))
        if len(shape) < rule.min_ndim:
            close(found[name].flatten(1), average, 1e-12)
            continue
        theirs, mine = messages.var(1, unbiased=rule.unbiased).mean(), own[0].var(unbiased=rule.unbiased)
        want = {"others": theirs, "self": mine}.get(rule.target, 0.5 * theirs + 0.5 * mine)
        close(found[name].flatten(1).var(1, unbiased=rule.unbiased), want[None], 1e-12)
        close(found[name].flatten(1).mean(1), average.mean(1), 1e-12)
    assert int(state.inner.held[0]) == 0
    assert float(state.inner.tags[0].abs().sum()) == 0.0


@pytest.mark.parametrize("wrap", [None, *PRESETS])
def test_all_in_step_is_a_synchronous_round(wrap: Any) -> None:
    """One period for all and R = 1: D-PSGD, adapt then combine, with half of oneself, corrected or not."""
    graph = nx.random_regular_graph(3, 8, seed=1)
    synchronous: Any = DPSGD(mixing.Neighbour(graph, self_weight=0.5), order="atc")
    buffered: Any = BufferedGossip(graph)
    if wrap:
        synchronous, buffered = (
            VarianceCorrection(s, preset=wrap, target="others", layout=LAYOUT) for s in (synchronous, buffered)
        )
    x, d = normal(8, LAYOUT.size), normal(8, LAYOUT.size, seed=1)
    run = {"n": 8, "x": x}
    one = models(synchronous, Frozen(d), [list(range(8))] * 12, **run | {"x": x.clone()})
    two = models(buffered, Frozen(d), ticks(8, 34, periods=(3,)), **run | {"x": x.clone()})
    close(two[::3], one, 1e-11)


def test_nobody_waits_for_an_isolated_node_and_it_trains_on() -> None:
    graph = nx.path_graph(4)
    graph.add_node(4)
    d = normal(5, 2)
    presence = ticks(5, 50, periods=(1, 2))
    x = last(BufferedGossip(graph), Frozen(d), presence, n=5, x=torch.zeros(5, 2, dtype=F64)).x
    close(x[4], d[4] * sum(4 in who for who in presence), 1e-12)
    assert (x[:4] - d[:4] * 50).norm() > 1


@pytest.mark.parametrize("graph", [nx.path_graph(7), nx.cycle_graph(7), nx.star_graph(6)], ids=["line", "ring", "star"])
def test_sparse_graphs_never_deadlock(graph: nx.Graph) -> None:
    """With nobody moving, every buffer goes on being emptied, and all come to one model."""
    presence = ticks(7, 4000, periods=(1, 2, 3))
    x = last(BufferedGossip(graph), Frozen(torch.zeros(7, 2, dtype=F64)), presence, n=7, x=normal(7, 2)).x
    close(x, x.mean(0).expand_as(x), 1e-9)


def test_its_ledger_is_exact() -> None:
    """Weights counted on the twin, against moves of one number."""
    graph, n = nx.cycle_graph(5), 5
    strategy, presence, d = BufferedGossip(graph), ticks(5, 40, periods=(2, 3)), normal(5, 3)
    twin = ledger.open(strategy, uniform(n))
    state = None
    for state, r in drive(strategy, Frozen(d), presence, n=n, x=torch.zeros(n, 3, dtype=F64)):  # noqa: B007
        twin = ledger.enter(strategy, twin, r, torch.arange(n))
    assert state is not None
    close(state.x.mean(0), ledger.weights(strategy, twin) @ d, 1e-12)


def test_a_message_goes_to_every_neighbour() -> None:
    graph, presence = nx.barabasi_albert_graph(6, 2, seed=0), ticks(6, 20, periods=(1, 2))
    strategy = BufferedGossip(graph)
    for state, r in drive(strategy, Frozen(normal(6, 3)), presence, n=6, x=normal(6, 3)):
        assert strategy.traffic(state, r).up == 64 * 3 * sum(graph.degree[i] for i in r.who.tolist())


def test_momentum_stays_with_its_node() -> None:
    task = federate("digits", clients=6, partition=IID())
    local = LocalSGD(lr=0.05, steps=1, batch=16, momentum=0.9)
    schedule = Ticks(periods=(2, 3)).draw(6, 9, 0)
    kept = [
        step.model.clone()
        for strategy in (BufferedGossip(nx.cycle_graph(6)), BufferedGossip(nx.cycle_graph(6), keep_momentum=False))
        for step in simulate(task, strategy, schedule, local)
    ]
    assert torch.equal(kept[1], kept[10])  # everybody's first training is without
    assert not torch.equal(kept[8], kept[17])


def test_wrong_settings_are_refused() -> None:
    for settings, message in (
        ({"self_weight": 1.5}, "self_weight must be between 0 and 1, got 1.5"),
        ({"fill": 0.0}, "fill must be above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            BufferedGossip(**settings)
    with pytest.raises(ValueError, match="BufferedGossip mixing needs a graph"):
        BufferedGossip().init(torch.zeros(3), uniform(4))
    with pytest.raises(ValueError, match="the graph has 5 nodes for 4 clients"):
        BufferedGossip(nx.cycle_graph(5)).init(torch.zeros(3), uniform(4))
