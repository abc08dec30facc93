"""Laws: what holds for every strategy, checked for each of them, and for a near miss that must be caught.

A law is a function (strategy, stage) that raises AssertionError: those of `fedsim.testing`, which are for everybody's
strategies, and here what follows from the papers. A strategy for which a law does not hold by design has
a waiver with the reason; the waived law is run all the same and has to fail, so that no waiver outlives its reason.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from typing import Any, ClassVar, NamedTuple

import networkx as nx
import pytest
import torch
from helpers import close, contents, copied, drive, everyone, models, round_of, same, uniform
from torch import Tensor

from fedsim import ServerStrategy, Strategy, Work, Wrapper, compress, mixing, strategies, weights
from fedsim.lr_schedules import Inverse
from fedsim.rows import Rows
from fedsim.strategies import (
    D2,
    DPSGD,
    F3AST,
    MIFA,
    SCAFFOLD,
    SCAFFOLDM,
    SCAFFOLDMVR,
    SGP,
    SRRW,
    BufferedGossip,
    CAFed,
    ChocoSGD,
    ClientCurriculum,
    ClusterFedVARP,
    DecentLaM,
    DeltaSum,
    DmSGD,
    EpidemicLearning,
    ExactDiffusion,
    FedAdagrad,
    FedAdam,
    FedAU,
    FedAvg,
    FedAvgM,
    FedAvgMVR,
    FedAWE,
    FedCM,
    FedDyn,
    FedNova,
    FedProx,
    FedRep,
    FedStale,
    FedVARP,
    FedYogi,
    GainCorrection,
    GeneralizedFedAvg,
    GossipPGA,
    GradientTracking,
    MaxNormSync,
    Mime,
    MimeLite,
    Personal,
    QGDSGDm,
    RandomWalk,
    RelaySGD,
    ServerLR,
    VarianceCorrection,
)
from fedsim.strategies.fedopt import Adaptive
from fedsim.strategies.fedstale import best
from fedsim.strategy import Traffic, core
from fedsim.task import Layout
from fedsim.testing.laws import (
    SINGLE_TOO,
    STRATEGY_LAWS,
    Law,
    a_wrapper_around_it_changes_nothing,
    absent_clients_data_do_not_matter,
    all_memory_is_in_the_state,
    an_empty_round_survives,
    donation_is_safe,
    is_well_formed,
    keeps_its_precision,
    keeps_its_shapes,
    nan_is_not_hidden,
    relabelling_clients_relabels_the_state,
    state_serialises_and_resumes,
    the_ledger_is_exact,
    traffic_is_counted,
    who_does_not_answer_was_absent,
)
from fedsim.testing.stage import LOCAL, SCRIPT, Stage, changed, is_gossip
from fedsim.weights import Intervals, total

HALVES = Layout(("body", "head"), (torch.Size([5]), torch.Size([3])))
TREE = nx.Graph([(0, 1), (1, 2), (1, 3), (3, 4), (3, 5)])
PRESENCE = SCRIPT
DOUBLE, SINGLE = Stage(), Stage(dtype=torch.float32)
N, P, GRAPH, SHARES, CLIENTS = DOUBLE.n, DOUBLE.size, DOUBLE.graph, DOUBLE.p, DOUBLE.clients

# The table -----------------------------------------------------------------------------------------------------------


def filled(strategy: Strategy) -> Strategy:
    """What the builder of an experiment fills in."""
    return DOUBLE.ready(strategy)  # type: ignore[no-any-return]


def table() -> dict[str, Strategy]:
    """Every strategy that fedsim exports as it is built without arguments, and settings of it that matter."""
    made = {name: getattr(strategies, name)() for name in strategies.__all__}
    made |= {f"FedAvg {name}": FedAvg(weights=kind()) for name, kind in weights.NAMES.items()}
    made |= {f"FedVARP {name}": FedVARP(weights=kind()) for name, kind in weights.NAMES.items()}
    made |= {f"FedStale 0.3 {name}": FedStale(beta=0.3, weights=kind()) for name, kind in weights.NAMES.items()}
    made |= {
        "FedAvg lr": FedAvg(lr=0.5),
        "F3AST rate 1": F3AST(initial=1.0),
        "F3AST rate 1/n": F3AST(initial="uniform", b=0.1),
        "FedProx F3AST": FedProx(F3AST(initial=1.0), mu=0.0),
        "CAFed all": CAFed(c=1e6),
        "CAFed estimate": CAFed(estimate=True, prior=5.0, correlations=0.2, b=0.5),
        "CAFed unasked": CAFed(poll=False, best=0.1, tolerance=0.01),
        "FedAU K=3": FedAU(cutoff=3),
        "FedVARP skip": FedVARP(skip_empty=True),
        "FedStale skip": FedStale(skip_empty=True),
        "FedStale auto": FedStale(beta="auto"),
        "FedStale auto known": FedStale(beta="auto", weights=weights.Known()),
        "ClusterFedVARP 2": ClusterFedVARP(clusters=2),
        "ClusterFedVARP given": ClusterFedVARP(clusters=(0, 1, 0, 3, 1, 0)),
        "ClusterFedVARP given skip": ClusterFedVARP(clusters=(0, 1, 0, 3, 1, 0), skip_empty=True),
        "FedAWE clip": FedAWE(clip=0.1),
        "FedProx FedAWE": FedProx(FedAWE(lr=0.5), mu=0.1),
        "FedAdam FedAWE": FedAdam(FedAWE()),
        "GeneralizedFedAvg P=3": GeneralizedFedAvg(amplification=2.0, period=3),
        "FedAdam GeneralizedFedAvg": FedAdam(GeneralizedFedAvg(amplification=2.0, period=3)),
        "MIFA lr": MIFA(lr=0.7),
        "MIFA wait": MIFA(wait=True),
        "FedProx mu=0": FedProx(mu=0.0),
        "FedProx SCAFFOLD": FedProx(SCAFFOLD(), mu=0.1),
        "FedProx paper": FedProx(mu=0.0, scheme="paper"),
        "FedProx drop": FedProx(mu=0.0, stragglers="drop"),
        "SCAFFOLD I": SCAFFOLD(option="I"),
        "SCAFFOLD both": SCAFFOLD(shortcut=False),
        "SCAFFOLDM both": SCAFFOLDM(beta=0.5, shortcut=False),
        "FedAvgMVR β=1": FedAvgMVR(beta=1.0),
        "SCAFFOLDMVR β=0.5": SCAFFOLDMVR(beta=0.5),
        "FedAdam FedAvgMVR": FedAdam(FedAvgMVR(beta=0.5)),
        "FedProx SCAFFOLDMVR": FedProx(SCAFFOLDMVR(beta=0.5), mu=0.1, stragglers="drop"),
        "FedCM α=1": FedCM(alpha=1.0),
        "FedCM known": FedCM(alpha=0.5, weights=weights.Known()),
        "MimeLite β=0": MimeLite(momentum=0.0),
        "MimeLite present": MimeLite(weights=weights.Present()),
        "MimeLite adam": MimeLite(base="adam"),
        "MimeLite rmsprop": MimeLite(base="rmsprop"),
        "MimeLite adagrad": MimeLite(base="adagrad"),
        "Mime β=0": Mime(momentum=0.0),
        "Mime adam": Mime(base="adam", weights=weights.Present()),
        "FedAdam Mime": FedAdam(Mime(base="rmsprop")),
        "FedProx Mime": FedProx(Mime(momentum=0.5), mu=0.1, stragglers="drop"),
        "FedNova known": FedNova(weights=weights.Known()),
        "FedDyn α=1": FedDyn(alpha=1.0),
        "FedDyn by weight": FedDyn(alpha=1.0, by_weight=True),
        "FedProx DPSGD": FedProx(DPSGD(), mu=0.1),
        "FedAdam corrected": FedAdam(bias_correction=True),
        "FedAdam FedProx MIFA": FedAdam(FedProx(MIFA(), mu=0.1)),
        "FedAdam FedAdam SCAFFOLD": FedAdam(FedAdam(SCAFFOLD())),
        "FedAdagrad FedAU": FedAdagrad(FedAU(), initial=1e-6),
        "FedYogi MIFA": FedYogi(MIFA()),
        "FedAvgM 0": FedAvgM(momentum=0.0),
        "FedAvgM MIFA": FedAvgM(MIFA(), lr=0.3),
        "FedAvgM FedStale nesterov": FedAvgM(FedStale(), lr=0.3, momentum=0.5, nesterov=True),
        "FedAvgM FedProx SCAFFOLD": FedAvgM(FedProx(SCAFFOLD(), mu=0.1), lr=0.5),
        "Personal nothing": Personal(keep=()),
        "Personal nothing FedStale": Personal(FedStale(skip_empty=True), keep=()),
        "Personal half": Personal(layout=HALVES),
        "FedProx Personal SCAFFOLD": FedProx(Personal(SCAFFOLD(), layout=HALVES), mu=0.1),
        "FedAdam Personal FedAU": FedAdam(Personal(FedAU(), layout=HALVES)),
        "FedRep nothing": FedRep(Personal(keep=()), head=0.0),
        "FedRep nothing FedAU": FedRep(Personal(FedAU(), keep=()), head=0.0),
        "FedRep half": FedRep(Personal(layout=HALVES), head=0.5),
        "FedAdam FedRep SCAFFOLD": FedAdam(FedRep(FedProx(Personal(SCAFFOLD(), layout=HALVES), mu=0.1), head=0.5)),
        "ClientCurriculum all MIFA": ClientCurriculum(MIFA(), start=1.0),
        "ServerLR fading": ServerLR(FedAvg(), Inverse(0.5)),
        "ServerLR FedAU": ServerLR(FedAU(), Inverse(0.5)),
        "FedAdam FedAU": FedAdam(FedAU(cutoff=3)),
        "FedProx FedStale": FedProx(FedStale(beta=0.3, weights=weights.Known()), mu=0.1, stragglers="drop"),
        "FedAdam SCAFFOLDM": FedAdam(SCAFFOLDM(beta=0.5)),
        "FedAdam FedCM fedau": FedAdam(FedCM(alpha=0.5, weights=weights.Interval())),
        "FedProx FedNova": FedProx(FedNova(), mu=0.1),
        "FedProx MimeLite": FedProx(MimeLite(momentum=0.5), mu=0.1),
        "FedAdam FedProx FedDyn": FedAdam(FedProx(FedDyn(alpha=1.0), mu=0.1)),
        "DPSGD atc": DPSGD(order="atc"),
        "DPSGD atc complete": DPSGD(mixing=mixing.Complete(), order="atc"),
        "DPSGD cta complete": DPSGD(mixing=mixing.Complete()),
        "DPSGD neighbour": DPSGD(mixing=mixing.Neighbour(), keep_momentum=False),
        "VarianceCorrection dfl-torch": VarianceCorrection(
            DPSGD(mixing=mixing.Neighbour(self_weight=0.0), order="atc"), preset="dfl-torch"
        ),
        "VarianceCorrection flocky": VarianceCorrection(DPSGD(mixing=mixing.Neighbour()), preset="flocky"),
        "FedProx VarianceCorrection": FedProx(VarianceCorrection(), mu=0.1),
        "RelaySGD": RelaySGD(TREE),
        "SGP complete": SGP(mixing.Complete()),
        "ChocoSGD exact complete": ChocoSGD(mixing.Complete(), compress.Identity(), gamma=1.0),
        **{f"ChocoSGD {name}": ChocoSGD(compressor=kind()) for name, kind in compress.NAMES.items()},
        "EpidemicLearning local": EpidemicLearning(sends=2, variant="local"),
        "EpidemicLearning oracle": EpidemicLearning(sends=2),
        "RandomWalk simple": RandomWalk(walk="simple"),
        "SRRW simple": SRRW(walk="simple", alpha=2.0, a=1.0),
        "FedProx SRRW": FedProx(SRRW(), mu=0.1),
        "GradientTracking cta": GradientTracking(order="cta"),
        "GradientTracking atc": GradientTracking(order="atc"),
        "D2 complete": D2(mixing=mixing.Complete()),
        "FedProx ExactDiffusion": FedProx(ExactDiffusion(), mu=0.1),
        "DmSGD β=0 complete": DmSGD(mixing=mixing.Complete(), beta=0.0),
        "DecentLaM β=0 complete": DecentLaM(mixing=mixing.Complete(), beta=0.0),
        "QGDSGDm β=0 complete": QGDSGDm(mixing=mixing.Complete(), beta=0.0),
        "QGDSGDm neighbour": QGDSGDm(mixing=mixing.Neighbour()),
        "GossipPGA every=1": GossipPGA(every=1),
        "GossipPGA every=3": GossipPGA(every=3, keep_momentum=False),
        "VarianceCorrection QGDSGDm": VarianceCorrection(QGDSGDm(mixing=mixing.Neighbour())),
        "VarianceCorrection GossipPGA": VarianceCorrection(GossipPGA(every=3)),
        "GainCorrection none": GainCorrection(gain=1.0, warmup=0),
        "GainCorrection VarianceCorrection": GainCorrection(VarianceCorrection(), warmup=2),
        "MaxNormSync BufferedGossip": MaxNormSync(BufferedGossip()),
        "DeltaSum sum": DeltaSum(scale=0.25, keep_momentum=False),
        "BufferedGossip R=2": BufferedGossip(self_weight=0.3, fill=2.0),
        "VarianceCorrection BufferedGossip": VarianceCorrection(BufferedGossip()),
    }
    return {label: filled(strategy) for label, strategy in made.items()}


TABLE = table()


# The laws ------------------------------------------------------------------------------------------------------------


def everyone_is_fedavg(strategy: Any, stage: Stage) -> None:
    """With everyone present and equal weights, every round is x <- x + 1/n Σ Δ_i."""
    x = stage.start(strategy, shared=True)
    strategy = changed(strategy, "probabilities", lambda _: (1.0,) * N)  # who knows them knows that all are present
    got = models(strategy, CLIENTS, everyone(N, 5), n=N, x=x.clone(), local=LOCAL)
    for model in got:
        work = Work(x.expand(N, -1))
        x = x + CLIENTS(None, torch.arange(N), work, torch.empty(0), LOCAL).delta.mean(0)
        close(model, x.expand_as(model), stage.tolerance)


def beta_0_is_fedavg(strategy: Any, stage: Stage) -> None:
    """Without stale updates it is FedAvg with the same weights."""
    assert hasattr(strategy, "beta"), "has no β"
    assert hasattr(strategy, "weights"), "has no weights"
    fresh, plain = dataclasses.replace(strategy, beta=0.0), FedAvg(weights=strategy.weights)  # type: ignore[type-var]
    run = stage.settings(strategy)
    close(models(fresh, CLIENTS, PRESENCE, **run), models(plain, CLIENTS, PRESENCE, **run), stage.tolerance)


def beta_1_is_mifa(strategy: Any, stage: Stage) -> None:
    """With β = 1 and the weights `all` it is MIFA."""
    assert not is_gossip(strategy), "has no server"
    here = {field.name for field in dataclasses.fields(strategy)}  # type: ignore[arg-type]
    change = {k: v for k, v in {"beta": 1.0, "weights": weights.All()}.items() if k in here}
    stale = dataclasses.replace(strategy, **change)  # type: ignore[type-var]
    run = stage.settings(strategy)
    mifa = models(MIFA(lr=getattr(strategy, "lr", 1.0)), CLIENTS, PRESENCE, **run)
    close(models(stale, CLIENTS, PRESENCE, **run), mifa, stage.tolerance)


def claim(strategy: Any) -> tuple[float, weights.Weights] | None:
    """β and weights of the general rule that a strategy is said to be."""
    if isinstance(strategy, MIFA) and not strategy.wait:
        return 1.0, weights.All()
    if isinstance(strategy, FedAU):
        return 0.0, weights.Interval(strategy.cutoff)
    if isinstance(strategy, CAFed) and strategy.c >= 1e6:  # leaves nobody out
        return 0.0, weights.Known(strategy.probabilities)
    if isinstance(strategy, ClusterFedVARP) and isinstance(strategy.clusters, int) and strategy.clusters >= N:
        return 1.0, strategy.weights
    if isinstance(strategy, FedStale) and strategy.beta == "auto":
        return None
    if isinstance(strategy, FedAvg | FedVARP | FedStale):
        return {FedAvg: 0.0, FedVARP: 1.0}.get(type(strategy), getattr(strategy, "beta", 0.0)), strategy.weights
    return getattr(strategy, "claim", None)


def is_the_general_rule(strategy: Any, stage: Stage) -> None:
    """Every paper's file equals the one rule of specs/participation.md §0.3, and FedStale with that β and weights."""
    claimed = claim(strategy)
    assert claimed is not None, "is no case of the rule"
    beta, kind = claimed
    skip = getattr(strategy, "skip_empty", False)
    run = stage.settings(strategy)
    got = models(strategy, CLIENTS, PRESENCE, **run)
    one = FedStale(lr=strategy.lr, beta=beta, weights=kind, skip_empty=skip)
    close(got, models(one, CLIENTS, PRESENCE, **run), stage.tolerance)

    x, p, h, seen = run["x"], SHARES.to(stage.dtype), torch.zeros(N, P, dtype=stage.dtype), kind.init(SHARES)
    for t, who in enumerate(PRESENCE):
        work = Work(x.expand(len(who), -1))
        delta = CLIENTS(None, torch.tensor(who, dtype=torch.int64), work, torch.empty(0), LOCAL).delta
        w, seen = kind.step(seen, round_of(t, who, delta))
        move = beta * sum(p[i] * h[i] for i in range(N))
        for i, w_i, d in zip(who, w.to(stage.dtype), delta, strict=True):
            move = move + w_i * (d - beta * h[i])
        if who or not skip:
            x = x + strategy.lr * move
        for i, d in zip(who, delta, strict=True):
            h[i] = d
        close(got[t], x, stage.tolerance)


def empty_move(strategy: Any, state: Any) -> Tensor | float | None:
    """What the mathematics says x moves by when nobody is present; None: not known."""
    if isinstance(strategy, Adaptive):
        inner = empty_move(strategy.inner, state.inner)
        assert inner is not None
        m = strategy.beta1 * state.m + (1 - strategy.beta1) * inner
        v = strategy.second(state.v, torch.as_tensor(inner, dtype=state.v.dtype) ** 2)
        return strategy.rate(state.steps + 1) * m / (v**0.5 + strategy.tau)
    if isinstance(strategy, FedAvgM):
        inner, beta = empty_move(strategy.inner, state.inner), strategy.momentum
        assert inner is not None
        return strategy.lr * (inner + beta * (beta * state.v + inner) if strategy.nesterov else beta * state.v + inner)
    if isinstance(strategy, Wrapper):
        return empty_move(strategy.inner, state.inner)
    if isinstance(strategy, MIFA):
        waits = strategy.wait and not state.G.seen().all()
        gamma = LOCAL.lr
        return 0.0 if waits else strategy.lr * gamma * (SHARES.to(state.x.dtype) @ state.G.dense())
    if isinstance(strategy, ClusterFedVARP):
        every = SHARES.to(state.x.dtype) @ state.y.dense()[state.c]
        return 0.0 if strategy.skip_empty else strategy.lr * every  # type: ignore[no-any-return]
    if isinstance(strategy, FedStale) and strategy.beta == "auto":
        return best(state.sums) * (SHARES.to(state.x.dtype) @ state.h.dense())
    beta, _ = claim(strategy) or (0.0, None)
    if not beta or getattr(strategy, "skip_empty", False):
        return 0.0
    return strategy.lr * beta * (SHARES.to(state.x.dtype) @ state.h.dense())  # type: ignore[no-any-return]


def an_empty_round_moves_by_the_stale_term(strategy: Any, stage: Stage) -> None:
    """When nobody is present x moves by the stale term alone, and no memory changes."""
    run = stage.settings(strategy)
    state = strategy.init(run.pop("x"), SHARES, 7)
    for t, who in enumerate(PRESENCE):
        before = copied(state)
        ((state, _),) = drive(strategy, CLIENTS, PRESENCE[: t + 1], state=state, t=t, **run)
        if not who:
            close(state.x, before.x + empty_move(strategy, before), stage.tolerance)
            tables = {k: v for k, v in contents(before).items() if k.endswith((".rows", ".seen"))}
            same(tables, {k: contents(state)[k] for k in tables})


def traffic_counts_what_is_sent(strategy: Any, stage: Stage) -> None:
    """Whole numbers of bits; nobody present costs nothing; a server pays for everyone present, a token for its hops, a
    node for every present neighbour, once for each vector that is sent and what goes with it."""
    word = torch.finfo(stage.dtype).bits * P
    inner = core(strategy)
    complete = isinstance(getattr(inner, "mixing", None), mixing.Complete)
    graph = getattr(inner, "graph", None) or GRAPH
    each = 2 * word if isinstance(inner, GradientTracking) else word
    each += 64 if isinstance(inner, SGP) else word // P if isinstance(inner, RelaySGD) else 0
    each = inner.compressor.bits(P, word // P) if isinstance(inner, ChocoSGD) else each
    for state, round in drive(strategy, CLIENTS, PRESENCE, **stage.settings(strategy)):
        who = round.who.tolist()
        traffic = strategy.traffic(state, round)
        assert isinstance(traffic, Traffic)
        assert all(isinstance(bits, int) and bits >= 0 for bits in traffic)
        if isinstance(inner, RandomWalk | SRRW):
            asked = 64 * sum(GRAPH.degree(i) for i in who) if isinstance(inner, SRRW) else 0
            assert traffic in (Traffic(asked, 0), Traffic(asked + word * len(who), 0))
        elif state.x.ndim == 1:
            assert traffic.up >= len(who) * word
            assert traffic.up % word == traffic.down % word == 0
            assert bool(traffic.down) == bool(who)
        else:
            links = [(i, j) for i in who for j in who if i < j and (complete or graph.has_edge(i, j))]
            sent = 2 * len(links)
            if isinstance(inner, GossipPGA) and (round.t + 1) % inner.every == 0:
                sent = 2 * max(len(who) - 1, 0)
            if isinstance(inner, EpidemicLearning):
                s = min(inner.sends, max(len(who) - 1, 0))
                sent = len(who) * (s - (inner.variant == "oracle" and s * len(who) % 2))
            assert traffic == Traffic(sent * each, 0)
        if not who:
            assert traffic == Traffic(0, 0)


PAPERS: tuple[Law, ...] = (
    everyone_is_fedavg,
    beta_0_is_fedavg,
    beta_1_is_mifa,
    is_the_general_rule,
    an_empty_round_moves_by_the_stale_term,
    traffic_counts_what_is_sent,
)
LAWS: tuple[Law, ...] = (*STRATEGY_LAWS, *PAPERS)

# also in float32: the others have nothing to do with precision
BOTH = (*SINGLE_TOO, everyone_is_fedavg, traffic_counts_what_is_sent)

# law, which strategies, why it does not hold for them
ADAM = "the server takes Adam's step, not FedAvg's"
KEPT = "clients keep a part to themselves, which no move of the server's reaches; with nothing kept the law holds"
HEAVY = "the server's momentum goes on pushing; with momentum 0 it is FedAvg"
PULL = "μ > 0 pulls the local steps; with μ = 0 the law holds"
DRIFT = "corrects the local steps by control variates from the second round on"
MEAN_GRADIENT = "corrects the local steps by the clients' mean gradient"
LOCALLY = "averages with the neighbours only; on the complete graph, atc, the law holds"
RESCALED = "rescales the layers after averaging"
AMPLIFIED = "amplifies the move of every period; with η = 1 it is FedAvg, see test_memory_strategies.py"
ECHOED = "clients start from models of their own and their moves are echoed: no case of the rule"
SHARED = "one memory for a cluster; with a cluster for every client the law holds"
TAKEN_ALONG = "clients take the server's momentum along; without it (β) the law holds"
CORRECTS = "corrects the local steps by what it has tracked, from the second round on"
MEETS = "who meets whom is drawn by number"
LISTED = "its messages are listed by edge"
ONLY = "only the holder of the token trains"
SELDOM = "averages with everybody in some rounds only; with every=1 the law holds"
ROLLS = "has momentum; with β = 0 on the complete graph the law holds"
ELSEWHERE = ("GainCorrection", "GainCorrection VarianceCorrection", "MaxNormSync*")
REACHABLE = "who does not train in a tick is reached all the same, and may average"
DEPENDS = "what an update counts depends on the updates"
ITS_OWN = "asks whom it picks, not whom the schedule chose; where all available are chosen the law holds"
LEARNS = "weighs by rates that it still learns; started from the right ones the law holds"
LEAVES_OUT = "leaves clients out; with c large enough the law holds"
WAIVED: tuple[tuple[Law, str, str], ...] = (
    *((everyone_is_fedavg, name, ADAM) for name in ("FedAdam*", "FedAdagrad*", "FedYogi*")),
    *((everyone_is_fedavg, name, HEAVY) for name in ("FedAvgM", "FedAvgM ?*[A-Za-z]*")),
    *(
        (law, name, KEPT)
        for law in (
            everyone_is_fedavg,
            a_wrapper_around_it_changes_nothing,
            the_ledger_is_exact,
            traffic_counts_what_is_sent,
        )
        for name in (
            *("Personal", "Personal half", "FedProx Personal*", "FedAdam Personal*"),
            *("FedRep", "FedRep half", "FedAdam FedRep*"),
        )
    ),
    (everyone_is_fedavg, "ServerLR ?*", "the server's learning rate is not 1"),
    (everyone_is_fedavg, "FedProx", PULL),
    (everyone_is_fedavg, "FedProx SCAFFOLD", DRIFT),
    *((everyone_is_fedavg, name, DRIFT) for name in ("SCAFFOLD", "SCAFFOLD I", "SCAFFOLD both", "SCAFFOLDM*")),
    (everyone_is_fedavg, "FedCM", TAKEN_ALONG),
    (everyone_is_fedavg, "FedAvgMVR", TAKEN_ALONG),
    (everyone_is_fedavg, "FedProx SCAFFOLDMVR", DRIFT),
    (everyone_is_fedavg, "FedCM known", TAKEN_ALONG),
    *((everyone_is_fedavg, f"MimeLite{name}", TAKEN_ALONG) for name in ("", " present", " a*", " rmsprop")),
    *((everyone_is_fedavg, name, MEAN_GRADIENT) for name in ("Mime", "Mime ?*")),
    (everyone_is_fedavg, "FedProx Mime", PULL),
    (everyone_is_fedavg, "FedDyn*", "regularises the local objectives, and x by what they have told"),
    (everyone_is_fedavg, "FedProx MimeLite", TAKEN_ALONG),
    (everyone_is_fedavg, "FedProx FedNova", PULL),
    (everyone_is_fedavg, "FedProx FedStale", PULL),
    (traffic_counts_what_is_sent, "*FedNova*", "a client also tells how much it worked"),
    (everyone_is_fedavg, "FedProx DPSGD", LOCALLY),
    (everyone_is_fedavg, "DPSGD", LOCALLY),
    (everyone_is_fedavg, "DPSGD atc", LOCALLY),
    (everyone_is_fedavg, "DPSGD neighbour", LOCALLY),
    (everyone_is_fedavg, "DPSGD cta complete", "a node's move is not shared until the next round"),
    (everyone_is_fedavg, "*VarianceCorrection*", RESCALED),
    (everyone_is_fedavg, "GradientTracking*", CORRECTS),
    (everyone_is_fedavg, "D2*", CORRECTS),
    (everyone_is_fedavg, "*ExactDiffusion", CORRECTS),
    (everyone_is_fedavg, "SGP", LOCALLY),
    *((everyone_is_fedavg, f"ChocoSGD{name}", LOCALLY) for name in ("", *(f" {kind}" for kind in compress.NAMES))),
    (everyone_is_fedavg, "EpidemicLearning ?*", LOCALLY),
    (everyone_is_fedavg, "RelaySGD", "hears from those further away later"),
    (everyone_is_fedavg, "*RandomWalk*", ONLY),
    (everyone_is_fedavg, "*SRRW*", ONLY),
    (relabelling_clients_relabels_the_state, "EpidemicLearning ?*", MEETS),
    (relabelling_clients_relabels_the_state, "ChocoSGD random-k", MEETS),
    (relabelling_clients_relabels_the_state, "ChocoSGD qsgd", MEETS),
    (relabelling_clients_relabels_the_state, "*RandomWalk*", MEETS),
    (relabelling_clients_relabels_the_state, "*SRRW*", MEETS),
    (relabelling_clients_relabels_the_state, "RelaySGD", LISTED),
    *((the_ledger_is_exact, f"ChocoSGD{name}", DEPENDS) for name in ("", " qsgd", " random-k", " sign", " top-k")),
    *((everyone_is_fedavg, name, ROLLS) for name in ("DmSGD", "DecentLaM", "QGDSGDm", "QGDSGDm neighbour")),
    (everyone_is_fedavg, "GossipPGA", SELDOM),
    (everyone_is_fedavg, "GossipPGA every=3", SELDOM),
    (everyone_is_fedavg, "FedAvg lr", "the server's learning rate is not 1"),
    (everyone_is_fedavg, "MIFA lr", "the server's learning rate is not 1"),
    (everyone_is_fedavg, "FedAWE clip", "clips the averaged move"),
    (everyone_is_fedavg, "FedProx FedAWE", PULL),
    (everyone_is_fedavg, "GeneralizedFedAvg P=3", AMPLIFIED),
    *(
        (everyone_is_fedavg, f"{name}*", LOCALLY)
        for name in ("BufferedGossip", "DeltaSum", "GainCorrection", "MaxNorm")
    ),
    *((is_well_formed, name, "starts from another model than it is given") for name in ELSEWHERE),
    (the_ledger_is_exact, "GainCorrection", "the ledger's twin has no layers to enlarge"),
    (the_ledger_is_exact, "GainCorrection none", "the ledger's twin has no layers to enlarge"),
    (absent_clients_data_do_not_matter, "*BufferedGossip*", REACHABLE),
    (traffic_counts_what_is_sent, "*BufferedGossip*", REACHABLE),
    (a_wrapper_around_it_changes_nothing, "*BufferedGossip*", "what lies in the buffers is not moved along"),
    *((the_ledger_is_exact, name, DEPENDS) for name in ("FedAdam*", "FedAdagrad*", "FedYogi*")),
    (the_ledger_is_exact, "*VarianceCorrection*", DEPENDS),
    (the_ledger_is_exact, "FedStale auto*", DEPENDS),
    (the_ledger_is_exact, "FedAWE clip", DEPENDS),
    *(
        (law, pattern, reason)
        for law in (beta_0_is_fedavg, beta_1_is_mifa, is_the_general_rule)
        for pattern, reason in (
            *((name, ADAM) for name in ("FedAdam*", "FedAdagrad*", "FedYogi*", "ServerLR*")),
            ("FedAvgM*", HEAVY),
            (
                "ClientCurriculum" if law is beta_1_is_mifa else "ClientCurriculum*",
                "changes who is asked, not the rule",
            ),
            ("FedRep*", "changes who has which part, and when it is trained, not the rule"),
            ("Personal*", "changes who has which part, not the rule"),
            ("FedProx", PULL if law is beta_1_is_mifa else "changes the local steps, not the rule"),
            ("FedProx ?*", "changes the local steps, not the rule"),
            ("SCAFFOLD*", "keeps gradients, not updates: no case of the rule"),
            ("FedAvgMVR*", "keeps a direction, not updates: no case of the rule"),
            ("FedCM*", "keeps a direction, not updates: no case of the rule"),
            ("Mime*", "keeps a momentum, not updates: no case of the rule"),
            ("FedDyn*", "keeps gradients, not updates: no case of the rule"),
            ("FedNova*", "scales updates by the work in them: no case of the rule"),
            ("*DPSGD*", "has no server"),
            ("VarianceCorrection*", "has no server"),
            ("GradientTracking*", "has no server"),
            ("D2*", "has no server"),
            ("ExactDiffusion", "has no server"),
            ("DmSGD*", "has no server"),
            ("DecentLaM*", "has no server"),
            ("QGDSGDm*", "has no server"),
            ("GossipPGA*", "has no server"),
            ("SGP*", "has no server"),
            ("ChocoSGD*", "has no server"),
            ("EpidemicLearning*", "has no server"),
            ("RelaySGD", "has no server"),
            ("RandomWalk*", ONLY),
            ("SRRW*", ONLY),
            *((f"{name}*", "has no server") for name in ("BufferedGossip", "DeltaSum", "GainCorrection", "MaxNorm")),
            ("MIFA wait", "waits until all were heard, as the authors' default trainer does"),
            ("F3AST*", "weighs by rates of its own: no case of the rule"),
            *((("CAFed*", "has no β"),) if law is not is_the_general_rule else ()),
            ("FedAWE*", ECHOED),
            ("GeneralizedFedAvg*", AMPLIFIED),
            ("ClusterFedVARP ?*", "has no β" if law is beta_0_is_fedavg else SHARED),
        )
    ),
    (everyone_is_fedavg, "F3AST", LEARNS),
    (everyone_is_fedavg, "F3AST rate 1/n", LEARNS),
    (everyone_is_fedavg, "CAFed", LEAVES_OUT),
    (everyone_is_fedavg, "CAFed estimate", LEAVES_OUT),
    (everyone_is_fedavg, "CAFed unasked", LEAVES_OUT),
    (is_the_general_rule, "CAFed", LEAVES_OUT),
    (is_the_general_rule, "CAFed estimate", LEAVES_OUT),
    (is_the_general_rule, "CAFed unasked", LEAVES_OUT),
    (traffic_counts_what_is_sent, "CAFed", "who is left out sends its loss only"),
    (traffic_counts_what_is_sent, "CAFed estimate", "who is left out sends its loss only"),
    (relabelling_clients_relabels_the_state, "*F3AST*", "breaks ties by number"),
    (relabelling_clients_relabels_the_state, "ClientCurriculum", "breaks ties by number"),
    (everyone_is_fedavg, "ClientCurriculum", ITS_OWN),
    (absent_clients_data_do_not_matter, "ClientCurriculum", ITS_OWN),
    (who_does_not_answer_was_absent, "ClientCurriculum", ITS_OWN),
    (absent_clients_data_do_not_matter, "*F3AST*", ITS_OWN),
    (who_does_not_answer_was_absent, "*F3AST*", ITS_OWN),
    (beta_0_is_fedavg, "FedAvg", "has no β: it is the right-hand side"),
    (beta_0_is_fedavg, "FedAvg ?*", "has no β: it is the right-hand side"),
    (beta_0_is_fedavg, "FedAU*", "has no β: it is 0, see is_the_general_rule"),
    (beta_0_is_fedavg, "FedVARP*", "has no β: it is 1, see is_the_general_rule"),
    (beta_0_is_fedavg, "MIFA*", "has no β: it is 1, see is_the_general_rule"),
    (beta_0_is_fedavg, "ClusterFedVARP", "has no β: it is 1, see is_the_general_rule"),
    (is_the_general_rule, "FedStale auto*", "β follows from the updates, so it is no number"),
    (relabelling_clients_relabels_the_state, "ClusterFedVARP", "makes its clusters by number; given ones move along"),
    (relabelling_clients_relabels_the_state, "ClusterFedVARP 2", "makes its clusters by number; given ones move along"),
    (a_wrapper_around_it_changes_nothing, "*FedAWE*", "clients start from their own models, not from x"),
    (beta_1_is_mifa, "FedAvg", "has no β: it is 0, see is_the_general_rule"),
    (beta_1_is_mifa, "FedAvg ?*", "has no β: it is 0, see is_the_general_rule"),
    (beta_1_is_mifa, "FedAU*", "has no β: it is 0, see is_the_general_rule"),
    (beta_1_is_mifa, "* skip", "skips empty rounds as released code does; MIFA moves in them"),
)


def waiver(law: Law, label: str) -> str | None:
    return next((why for waived, which, why in WAIVED if waived is law and fnmatch.fnmatchcase(label, which)), None)


def names(values: Any) -> list[str]:
    return [value.__name__ for value in values]


@pytest.mark.parametrize("label", TABLE)
@pytest.mark.parametrize("law", LAWS, ids=names(LAWS))
def test_law(law: Law, label: str) -> None:
    why = waiver(law, label)
    if why is not None:
        with pytest.raises(AssertionError):
            law(TABLE[label], DOUBLE)
        pytest.skip(f"waived: {why}")
    for stage in (DOUBLE, SINGLE) if law in BOTH else (DOUBLE,):
        law(TABLE[label], stage)


def test_the_table_holds_every_strategy_and_no_waiver_is_left_over() -> None:
    assert set(strategies.__all__) <= set(TABLE)
    assert set(strategies.NAMES) == set(strategies.__all__)
    for law, pattern, _ in WAIVED:
        assert fnmatch.filter(TABLE, pattern), (law.__name__, pattern)


# Every law must be able to fail --------------------------------------------------------------------------------------


class Plain(NamedTuple):
    x: Tensor


class Memory(NamedTuple):
    x: Tensor
    h: Rows


class Clock(NamedTuple):
    x: Tensor
    intervals: Intervals


@dataclasses.dataclass(frozen=True)
class Simple(ServerStrategy):
    """FedAvg with equal weights, right: what most near misses are nearly."""

    lr: float = 1.0
    claim: ClassVar[Any] = (0.0, weights.Equal())

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> Any:
        return Plain(x)

    def step(self, s: Any, r: Any) -> Any:
        return s._replace(x=s.x + r.delta.sum(0) / max(len(r.who), 1))


@dataclasses.dataclass(frozen=True)
class DividesByPresent(Simple):
    """FedAU that divides by |S| instead of n."""

    claim: ClassVar[Any] = (0.0, weights.Interval())

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> Any:
        return Clock(x, weights.Interval().init(p))

    def step(self, s: Any, r: Any) -> Any:
        w, intervals = weights.Interval().step(s.intervals, r)
        return Clock(s.x + total(w / SHARES[r.who] / max(len(r.who), 1), r.delta), intervals)


@dataclasses.dataclass(frozen=True)
class KnowsThePresent(DividesByPresent):
    """FedAU whose weights have already seen the round they are used in."""

    def step(self, s: Any, r: Any) -> Any:
        _, intervals = weights.Interval().step(s.intervals, r)
        return Clock(s.x + total((intervals.p * intervals.omega)[r.who], r.delta), intervals)


@dataclasses.dataclass(frozen=True)
class IntervalTooLong(DividesByPresent):
    """FedAU whose first interval is one round too long."""

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> Any:
        intervals = weights.Interval().init(p)
        return Clock(x, intervals._replace(S=intervals.S + 1))

    def step(self, s: Any, r: Any) -> Any:
        w, intervals = weights.Interval().step(s.intervals, r)
        return Clock(s.x + total(w, r.delta), intervals)


@dataclasses.dataclass(frozen=True)
class OldMemory(Simple):
    """MIFA that averages before it has remembered the new updates."""

    claim: ClassVar[Any] = (1.0, weights.All())

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> Any:
        return Memory(x, Rows(p, x))

    def step(self, s: Any, r: Any) -> Any:
        x = s.x + s.h.mean
        s.h[r.who] = r.delta
        return Memory(x, s.h)


@dataclasses.dataclass(frozen=True)
class WrongSign(OldMemory):
    """FedStale with the stale term's sign turned."""

    beta: float = 0.5
    weights: weights.Weights = weights.Equal()
    sign: ClassVar[float] = -1.0

    @property
    def claim(self) -> Any:  # type: ignore[override]
        return self.beta, self.weights

    def step(self, s: Any, r: Any) -> Any:
        w, _ = self.weights.step(weights.Static(s.h.p), r)
        stale = s.h.mean - total(w, s.h[r.who])
        x = s.x + total(w, r.delta) + self.sign * self.beta * stale
        s.h[r.who] = r.delta
        return Memory(x, s.h)


@dataclasses.dataclass(frozen=True)
class StaleAnyway(WrongSign):
    """FedStale that forgets to multiply by β."""

    def step(self, s: Any, r: Any) -> Any:
        return dataclasses.replace(WrongSign(), beta=-1.0, weights=self.weights).step(s, r)


@dataclasses.dataclass(frozen=True)
class ForgetsTheNew(WrongSign):
    """FedVARP that remembers only the first update of every client."""

    sign: ClassVar[float] = 1.0

    def step(self, s: Any, r: Any) -> Any:
        known = s.h.seen(r.who)[:, None]
        keep = torch.where(known, s.h[r.who], r.delta)
        state = WrongSign.step(self, s, r)
        state.h[r.who] = keep
        return state


@dataclasses.dataclass(frozen=True)
class CountsByNumber(Simple):
    """Clients with higher numbers count more."""

    def step(self, s: Any, r: Any) -> Any:
        w = (r.who + 1).to(s.x.dtype)
        return Plain(s.x + total(w / w.sum(), r.delta))


@dataclasses.dataclass(frozen=True)
class Peeks(Simple):
    """Looks at the data of clients that are absent."""

    data: Tensor | None = None

    def step(self, s: Any, r: Any) -> Any:
        return Plain(s.x + r.delta.sum(0) + 0.01 * self.data.mean(0).to(s.x.dtype))  # type: ignore[union-attr]


class Asked(NamedTuple):
    x: Tensor
    times: Tensor


@dataclasses.dataclass(frozen=True)
class CountsTheAsked(Simple):
    """Takes being asked for having been there."""

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> Any:
        return Asked(x, torch.zeros(N))

    def pick(self, state: Any, available: Tensor, chosen: Tensor) -> Tensor:
        state.times[chosen] += 1
        return chosen


@dataclasses.dataclass(frozen=True)
class MeanOfNobody(Simple):
    """Divides by the number present, whatever it is."""

    def step(self, s: Any, r: Any) -> Any:
        return Plain(s.x + r.delta.mean(0))


@dataclasses.dataclass(frozen=True)
class StandsStill(OldMemory):
    """FedVARP that does nothing in an empty round without saying so."""

    claim: ClassVar[Any] = (1.0, weights.Equal())

    def step(self, s: Any, r: Any) -> Any:
        return FedVARP(skip_empty=True).step(Known(s.x, s.h, weights.Static(s.h.p)), r)


class Known(NamedTuple):
    x: Tensor
    h: Rows
    weights: Any


@dataclasses.dataclass(frozen=True)
class WritesAnswers(Simple):
    """Scales the clients' answers where they lie."""

    def step(self, s: Any, r: Any) -> Any:
        r.delta.mul_(1.0 / max(len(r.who), 1))
        return Plain(s.x + r.delta.sum(0))


@dataclasses.dataclass(frozen=True)
class WritesTheStart(Simple):
    """Moves the very model it was started with."""

    def step(self, s: Any, r: Any) -> Any:
        s.x.add_(r.delta.sum(0))
        return s


class Twice(NamedTuple):
    x: Tensor
    y: Tensor  # meant to be x of the last round


@dataclasses.dataclass(frozen=True)
class KeepsAView(Simple):
    """Writes into x while another field of its state is the same memory."""

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> Any:
        x = x.clone()
        return Twice(x, x)

    def step(self, s: Any, r: Any) -> Any:
        return Twice(s.x.add_(r.delta.sum(0) + 0.1 * s.y), s.y)


@dataclasses.dataclass(frozen=True)
class HidesMemory(Simple):
    """Keeps the last move in itself."""

    cache: dict[str, Tensor] = dataclasses.field(default_factory=dict, compare=False)

    def step(self, s: Any, r: Any) -> Any:
        move = r.delta.sum(0) + 0.5 * self.cache.get("move", 0.0)
        self.cache["move"] = move
        return Plain(s.x + move)


@dataclasses.dataclass(frozen=True)
class DrawsFromAStream(Simple):
    """Takes its noise from torch's global stream."""

    def step(self, s: Any, r: Any) -> Any:
        return Plain(s.x + torch.rand(P, dtype=s.x.dtype))


class Wide(NamedTuple):
    x: Tensor
    sum: Tensor


@dataclasses.dataclass(frozen=True)
class GrowsPrecise(Simple):
    """Accumulates in float64 whatever the model is."""

    def step(self, s: Any, r: Any) -> Any:
        return Plain(s.x.double() + r.delta.double().sum(0))


@dataclasses.dataclass(frozen=True)
class OwnX(Wrapper):
    """A wrapper whose inner strategy goes on from its own x instead of the truth."""

    inner: Strategy = FedAvg()

    def within(self, state: Any) -> Any:
        return state.inner


@dataclasses.dataclass(frozen=True)
class OneLength(Simple):
    """Takes all updates as equally long, and claims to be linear."""

    def step(self, s: Any, r: Any) -> Any:
        return Plain(s.x + (r.delta / r.delta.norm(dim=1, keepdim=True)).sum(0))


@dataclasses.dataclass(frozen=True)
class OneEach(Simple):
    """Makes a column of the model."""

    def step(self, s: Any, r: Any) -> Any:
        return Plain((s.x.reshape(1, -1) + r.delta.sum(0, keepdim=True))[0] if r.t else s.x.reshape(1, -1))


@dataclasses.dataclass(frozen=True)
class Forgives(Simple):
    """Takes NaN for 0 in the model, and remembers it all the same."""

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> Any:
        return Twice(x, torch.zeros_like(x))

    def step(self, s: Any, r: Any) -> Any:
        return Twice(s.x + r.delta.nan_to_num().sum(0), r.delta.sum(0))


class Nameless(NamedTuple):
    model: Tensor


@dataclasses.dataclass(frozen=True)
class WithoutX(Simple):
    """A state without x."""

    def init(self, x: Tensor, p: Tensor, key: int = 0) -> Any:
        return Nameless(x)


@dataclasses.dataclass(frozen=True)
class ForgetsTheEmpty(Simple):
    """Bills every round for all clients."""

    def traffic(self, state: Any, round: Any) -> Traffic:
        return Traffic(N * P * 64, N * P * 64)


SABOTAGE: tuple[tuple[Law, Strategy], ...] = (
    (is_well_formed, WithoutX()),
    (everyone_is_fedavg, OldMemory()),
    (everyone_is_fedavg, IntervalTooLong()),
    (everyone_is_fedavg, CountsByNumber()),
    (beta_0_is_fedavg, StaleAnyway()),
    (beta_1_is_mifa, WrongSign()),
    (beta_1_is_mifa, ForgetsTheNew()),
    (beta_1_is_mifa, OldMemory()),
    (is_the_general_rule, DividesByPresent()),
    (is_the_general_rule, KnowsThePresent()),
    (is_the_general_rule, IntervalTooLong()),
    (is_the_general_rule, OldMemory()),
    (is_the_general_rule, WrongSign()),
    (is_the_general_rule, ForgetsTheNew()),
    (is_the_general_rule, StaleAnyway()),
    (relabelling_clients_relabels_the_state, CountsByNumber()),
    (absent_clients_data_do_not_matter, Peeks()),
    (who_does_not_answer_was_absent, CountsTheAsked()),
    (an_empty_round_survives, MeanOfNobody()),
    (an_empty_round_moves_by_the_stale_term, StandsStill()),
    (keeps_its_shapes, OneEach()),
    (nan_is_not_hidden, Forgives()),
    (donation_is_safe, WritesAnswers()),
    (donation_is_safe, WritesTheStart()),
    (donation_is_safe, KeepsAView()),
    (all_memory_is_in_the_state, HidesMemory()),
    (all_memory_is_in_the_state, DrawsFromAStream()),
    (state_serialises_and_resumes, HidesMemory()),
    (state_serialises_and_resumes, DrawsFromAStream()),
    (keeps_its_precision, GrowsPrecise()),
    (a_wrapper_around_it_changes_nothing, OwnX()),
    (traffic_is_counted, ForgetsTheEmpty()),
    (traffic_counts_what_is_sent, ForgetsTheEmpty()),
    (the_ledger_is_exact, OneLength()),
)


@pytest.mark.parametrize(("law", "saboteur"), SABOTAGE, ids=[f"{a.__name__}-{type(b).__name__}" for a, b in SABOTAGE])
def test_law_catches_a_near_miss(law: Law, saboteur: Strategy) -> None:
    with pytest.raises(AssertionError):
        law(saboteur, SINGLE)


def test_every_law_can_fail() -> None:
    assert {law for law, _ in SABOTAGE} == set(LAWS)


WITHOUT_BETA = [law for law in LAWS if law not in (beta_0_is_fedavg, beta_1_is_mifa)]


@pytest.mark.parametrize("law", WITHOUT_BETA, ids=names(WITHOUT_BETA))
def test_a_correct_strategy_of_a_user_passes(law: Law) -> None:
    """So that the near misses fail for what they miss, not for being written here."""
    law(Simple(), DOUBLE)


def test_a_correct_memory_passes_where_its_near_misses_fail() -> None:
    """Likewise for those with a memory."""

    @dataclasses.dataclass(frozen=True)
    class RightSign(WrongSign):
        sign: ClassVar[float] = 1.0

    for law in (
        beta_0_is_fedavg,
        beta_1_is_mifa,
        is_the_general_rule,
        everyone_is_fedavg,
        an_empty_round_moves_by_the_stale_term,
    ):
        law(RightSign(), DOUBLE)


def test_equal_weights_are_uniform() -> None:
    assert torch.equal(uniform(4), torch.full((4,), 0.25, dtype=torch.float64))
