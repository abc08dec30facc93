"""Who averages with whom, and how much: x_i ← Σ_j W_ij x_j over the nodes that are present.

A mixing is a frozen dataclass called with (t, who, key) that gives the round's matrix W as `Edges`. An absent node
keeps its model, and what it does not take or give stays with the others, so that rows (or columns) still sum to 1.
Each mixing says in `averaging` what its matrix is: "doubly stochastic" (rows and columns sum to 1: the network's mean
is kept), "row-stochastic", or "column-stochastic" (for push-sum).

fixed.py     weights on a networkx graph with nodes 0..n-1. They are those of the graph that is left when absent nodes
             are taken out: degrees count present neighbours only.
varying.py   graphs that change from round to round. Those that need no topology are built over the k nodes present as
             if these were all there are (they close ranks: the r-th of those present plays node r of k).
families.py  EquiTopo, and averaging in the groups of a grid: the same.
optimised.py the fastest weights, and matchings drawn by the best probabilities (MATCHA).
changes.py   link failures on top of any mixing; a user's function of t; `lazy`.
links.py     a graph's edges, put on the device once per graph; a graph must not be changed after its first use.

A draw depends on (key, t) only, so a resumed run draws the same graphs. Nodes that come and go are the schedule's
business (`fedsim.participation`): every mixing takes those present. Everything stays on the device of `who`, and no
shape depends on who is absent (on how many at most), so nothing waits for a GPU.
"""

from fedsim.mixing.changes import Changing, Lazy, LinkFailures
from fedsim.mixing.edges import Average, Edges, Mixing
from fedsim.mixing.families import EquiDynamic, EquiStatic, GridGroups
from fedsim.mixing.fixed import Alone, BestConstant, Complete, DecAvg, MaxDegree, Metropolis, Neighbour, Push
from fedsim.mixing.links import senders
from fedsim.mixing.optimised import Fastest, Matcha
from fedsim.mixing.varying import (
    Base,
    EdgeMatching,
    OnePeerExponential,
    Pairwise,
    RandomMatching,
    RandomRegular,
    StaticExponential,
)

NAMES: dict[str, type[Mixing]] = {
    "alone": Alone,
    "base": Base,
    "best-constant": BestConstant,
    "complete": Complete,
    "decavg": DecAvg,
    "edge-matching": EdgeMatching,
    "equi-dynamic": EquiDynamic,
    "equi-static": EquiStatic,
    "fastest": Fastest,
    "grid-groups": GridGroups,
    "lazy": Lazy,
    "link-failures": LinkFailures,
    "matcha": Matcha,
    "max-degree": MaxDegree,
    "metropolis": Metropolis,
    "neighbour": Neighbour,
    "one-peer-exponential": OnePeerExponential,
    "pairwise": Pairwise,
    "push": Push,
    "random-matching": RandomMatching,
    "random-regular": RandomRegular,
    "static-exponential": StaticExponential,
}

__all__ = [
    "NAMES",
    "Alone",
    "Average",
    "Base",
    "BestConstant",
    "Changing",
    "Complete",
    "DecAvg",
    "EdgeMatching",
    "Edges",
    "EquiDynamic",
    "EquiStatic",
    "Fastest",
    "GridGroups",
    "Lazy",
    "LinkFailures",
    "Matcha",
    "MaxDegree",
    "Metropolis",
    "Mixing",
    "Neighbour",
    "OnePeerExponential",
    "Pairwise",
    "Push",
    "RandomMatching",
    "RandomRegular",
    "StaticExponential",
    "senders",
]
