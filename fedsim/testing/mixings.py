"""What holds for every mixing, tried on the smallest numbers of nodes first."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fedsim.mixing import Edges, Mixing
from fedsim.testing.report import Outcome, Report, attempt, check_names, settle
from fedsim.testing.stage import Stage
from fedsim.testing.states import Broken, Inapplicable, close, same

NODES = (1, 2, 3, 6)
EXACT = 1e-9
KINDS = ("doubly stochastic", "row-stochastic", "column-stochastic")


def is_a_frozen_dataclass(mixing: Any, stage: Stage) -> None:
    """Its settings are all there is to it, and it says what its matrices are."""
    params = getattr(type(mixing), "__dataclass_params__", None)
    if params is None or not params.frozen:
        raise Broken(f"{type(mixing).__name__} is not a frozen dataclass: write @dataclass(frozen=True) above it")
    said = getattr(mixing, "averaging", None)
    if said not in KINDS:
        raise Broken(f"averaging is {said!r} where one of {', '.join(KINDS)} is wanted")


def its_sums_are_1(mixing: Mixing, stage: Stage) -> None:
    """Rows, columns or both sum to 1, as `averaging` says, whoever is absent."""
    for t, who, w in matrices(mixing, stage):
        if not bool(w.isfinite().all()):
            i, j = (int(k) for k in (~w.isfinite()).nonzero()[0])
            raise Broken(f"W[{i}, {j}] is {float(w[i, j])}", t, who)
        for side, sums in (("row", w.sum(1)), ("column", w.sum(0))):
            wrong = (sums - 1).abs() > EXACT
            if mixing.averaging in ("doubly stochastic", f"{side}-stochastic") and bool(wrong.any()):
                i = int(wrong.nonzero()[0])
                raise Broken(f"{side} {i} sums to {float(sums[i]):.6g} where it is {mixing.averaging}", t, who)


def an_absent_node_keeps_its_model(mixing: Mixing, stage: Stage) -> None:
    """It takes nothing and gives nothing."""
    for t, who, w in matrices(mixing, stage):
        for i in (i for i in range(stage.n) if i not in who):
            for j in range(stage.n):
                if float(w[i, j]) != (i == j):
                    raise Broken(f"W[{i}, {j}] is {float(w[i, j]):.6g} though node {i} is absent", t, who)
                if float(w[j, i]) != (i == j):
                    raise Broken(f"W[{j}, {i}] is {float(w[j, i]):.6g} though node {i} is absent", t, who)


def a_draw_follows_round_and_key(mixing: Mixing, stage: Stage) -> None:
    """The same round, nodes and key give the same matrix: in a copy, in another order, whatever torch's generator says;
    and torch's generator is left alone."""
    first = {(t, key): w for key in (7, 8) for t, _, w in matrices(mixing, stage, key)}
    other = copy.deepcopy(mixing)
    before = torch.random.get_rng_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        for key in (8, 7):
            for t, who, w in reversed(list(matrices(other, stage, key))):
                same({"W": w}, {"W": first[t, key]}, "drawn again, where it was", t, who)
    torch.random.set_rng_state(before)
    list(matrices(mixing, stage))
    if not torch.equal(before, torch.random.get_rng_state()):
        raise Broken("it draws from torch's own generator, which everybody shares; use fedsim.keyed")


def applying_it_is_its_matrix(mixing: Mixing, stage: Stage) -> None:
    """`apply` is W x, and leaves x alone; what is sent is a whole number of models."""
    x = torch.randn(stage.n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for t, who in enumerate(stage.presence):
        edges, kept = call(mixing, t, who, 7), x.clone()
        close({"W x": edges.apply(x)}, {"W x": edges.dense() @ x}, EXACT, "where the matrix makes it", t, who)
        same({"x": x}, {"x": kept}, "after it was applied, where it was", t, who)
        sent = edges.sent()
        if type(sent) is not int or not 0 <= sent <= len(who) * (len(who) - 1):
            raise Broken(
                f"sent() is {sent!r}; {len(who)} nodes have that many pairs: {len(who) * (len(who) - 1)}", t, who
            )


def it_keeps_to_its_graph(mixing: Any, stage: Stage) -> None:
    """Models travel along edges only."""
    graph = getattr(mixing, "graph", None)
    if graph is None:
        raise Inapplicable("it has no graph")
    for t, who, w in matrices(mixing, stage):
        for i, j in ((i, j) for i in range(stage.n) for j in range(stage.n) if i != j):
            if float(w[i, j]) and not graph.has_edge(j, i):
                raise Broken(f"W[{i}, {j}] is {float(w[i, j]):.6g} though the graph has no edge {j}-{i}", t, who)


LAWS = (
    is_a_frozen_dataclass,
    its_sums_are_1,
    an_absent_node_keeps_its_model,
    a_draw_follows_round_and_key,
    applying_it_is_its_matrix,
    it_keeps_to_its_graph,
)
NAMES = tuple(law.__name__ for law in LAWS)


def call(mixing: Mixing, t: int, who: tuple[int, ...], key: int) -> Edges:
    """A round's matrix as edges. Raises Broken if it is something else."""
    edges = mixing(t, torch.tensor(who, dtype=torch.int64), key)
    if not isinstance(edges, Edges):
        raise Broken(f"it gives a {type(edges).__name__} where fedsim.mixing.Edges are wanted", t, who)
    return edges


def matrices(mixing: Mixing, stage: Stage, key: int = 7) -> Iterator[tuple[int, tuple[int, ...], Tensor]]:
    """Every round, who is there, and its matrix [n, n]."""
    for t, who in enumerate(stage.presence):
        w = call(mixing, t, who, key).dense()
        if w.shape != (stage.n, stage.n):
            raise Broken(f"its matrix is {list(w.shape)} for {stage.n} nodes", t, who)
        yield t, who, w


def examine(mixing: Any, waived: Mapping[str, str] | None = None) -> Report:
    """What holds of a mixing; see `fedsim.testing.check_mixing`. Raises ValueError for what is none."""
    name = mixing.__name__ if isinstance(mixing, type) else type(mixing).__name__
    if not isinstance(mixing, Mixing):
        raise ValueError(f"{name} is no mixing: give an object of a class derived from fedsim.mixing.Mixing")
    waived = dict(waived or {})
    check_names(waived, NAMES, "mixing")
    stages = [stage for n in NODES if _takes(mixing, stage := Stage(n=n, presence=_script(n)))] or [Stage()]
    outcomes: list[Outcome] = []
    for law in LAWS:
        for stage in stages:
            error = attempt(lambda law=law, stage=stage: law(stage.ready(mixing), stage))
            if error is not None:
                break
        outcomes.append(settle(law.__name__, error, f"{stage.n} nodes" if stage.n > 1 else "1 node", waived))
    return Report(name, tuple(outcomes))


def _script(n: int) -> tuple[tuple[int, ...], ...]:
    """The usual script on the first n nodes, beginning with all of them."""
    return (tuple(range(n)), *(tuple(i for i in who if i < n) for who in Stage().presence))


def _takes(mixing: Any, stage: Stage) -> bool:
    """Whether so few nodes are possible at all: a ValueError in the first round says that they are not."""
    error = attempt(lambda: stage.ready(mixing)(0, torch.arange(stage.n), 7))
    return not isinstance(error, ValueError)
