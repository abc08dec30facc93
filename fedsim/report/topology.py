"""A network in numbers and as a picture: what `fedsim topology show` prints and draws."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim import spectrum
from fedsim.report.style import COLOURS, RC, figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from networkx import Graph

AGREED = 1e-3  # disagreement left, as a share of that at the start, when we speak of consensus
DIAMETER = 20_000  # nodes above which the diameter is not sought
NAMED = 60  # nodes up to which every one is named in the picture


def describe(graph: Graph) -> dict[str, Any]:
    """What there is to know about a simple graph with nodes 0..n-1.

    nodes, edges, directed, degree {min, mean, max} (of a directed graph: outgoing), connected (directed: strongly),
    components (their sizes, largest first), diameter, slem, spectral_gap and rounds_to_consensus: how many rounds of
    averaging, at the rate of the SLEM, leave a thousandth of the disagreement. The averaging is with Metropolis
    weights, on a directed graph with push weights: `weights` says so. A graph in several parts never agrees (slem 1)
    and has no diameter and no number of rounds, None; its `largest` holds all of this for its largest component.
    """
    import networkx as nx

    links = spectrum.adjacency(graph)
    out = np.asarray(links.sum(axis=0)).ravel()
    find = nx.strongly_connected_components if graph.is_directed() else nx.connected_components
    parts = sorted(find(graph), key=lambda part: (-len(part), min(part)))
    n, connected = len(graph), len(parts) == 1
    found: dict[str, Any] = {
        "nodes": n,
        "edges": graph.number_of_edges(),
        "directed": graph.is_directed(),
        "degree": {"min": int(out.min()), "mean": float(out.mean()), "max": int(out.max())},
        "connected": connected,
        "components": [len(part) for part in parts],
        "diameter": spectrum.diameter(links) if connected and n <= DIAMETER else None,
        "weights": "push" if graph.is_directed() else "metropolis",
    }
    rate = 1.0
    if connected:  # push sums to 1 along columns, and a matrix has its transpose's eigenvalues
        rate = spectrum.slem(spectrum.push(links).T if graph.is_directed() else spectrum.metropolis(links))
    found |= {"slem": rate, "spectral_gap": 1.0 - rate, "rounds_to_consensus": rounds(rate) if n > 1 else 0}
    if not connected:
        found["largest"] = describe(nx.convert_node_labels_to_integers(graph.subgraph(parts[0]), ordering="sorted"))
    return found


def rounds(rate: float) -> int | None:
    """Rounds until disagreement that shrinks by the rate a round is down to a thousandth; None: never."""
    if rate >= 1.0 - 1e-13:
        return None
    return 1 if rate <= AGREED else math.ceil(math.log(AGREED) / math.log(rate) - 1e-9)


def lines(name: str, found: dict[str, Any]) -> list[str]:
    """The description as text, numbers as decimals with five digits."""
    parts, degree = found["components"], found["degree"]
    rows = {
        "nodes": f"{found['nodes']}",
        "edges": f"{found['edges']}{', directed' if found['directed'] else ''}",
        "degree": f"{degree['min']} to {degree['max']}, mean {degree['mean']:.5f}",
        "connected": "yes" if found["connected"] else f"no: {len(parts)} components of {_sizes(parts)} nodes",
    }
    if found["connected"]:
        diameter, never = found["diameter"], found["rounds_to_consensus"] is None
        rows["diameter"] = f"not sought above {DIAMETER} nodes" if diameter is None else f"{diameter}"
        rows["SLEM"] = f"{found['slem']:.5f} of {found['weights'].title()} weights"
        rows["spectral gap"] = _gap(found["spectral_gap"])
        rows["consensus"] = (
            "never"
            if never
            else (f"{found['rounds_to_consensus']} rounds until a thousandth of the disagreement is left")
        )
    text = [name, *(f"  {key:<12}  {value}" for key, value in rows.items())]
    return text if found["connected"] else [*text, *lines("largest component", found["largest"])]


def _gap(gap: float) -> str:
    return f"{gap:.5f}" + (f" ({gap:.3g})" if 0 < gap < 1e-3 else "")


def _sizes(parts: list[int], most: int = 8) -> str:
    shown = ", ".join(map(str, parts[:most]))
    return f"{shown}, ..." if len(parts) > most else shown


def draw(graph: Graph, name: str, folder: Path, file: str) -> None:
    """The network, and how many nodes have how many neighbours, as <file>.png and <file>.svg in the folder."""
    import matplotlib

    with matplotlib.rc_context(RC):
        drawn = figure(9.0, 4.9)
        left, right = drawn.subplots(1, 2, width_ratios=[2.1, 1])
        _network(left, graph)
        left.set_title(f"{name}: {len(graph)} nodes, {graph.number_of_edges()} edges")
        _degrees(right, graph)
        save(drawn, folder, file)


def _network(axes: Axes, graph: Graph) -> None:
    from matplotlib.collections import LineCollection

    places = layout(graph)
    n, pairs = len(graph), np.array(graph.edges(), dtype=int).reshape(-1, 2)
    degree = np.array([d for _, d in sorted(graph.degree())])
    size = float(np.clip(3000 / n, 1.5, 90))
    if graph.is_directed() and n <= NAMED:
        for a, b in pairs:
            arrow = {"arrowstyle": "-|>", "color": "#999999", "linewidth": 0.7, "shrinkA": 5, "shrinkB": 5,
                     "connectionstyle": "arc3,rad=0.12"}  # fmt: skip
            axes.annotate("", xy=places[b], xytext=places[a], arrowprops=arrow)
    else:
        width = float(np.clip(60 / math.sqrt(len(pairs) + 1), 0.12, 1.0))
        axes.add_collection(LineCollection(places[pairs], colors="#999999", linewidths=width, zorder=1))
    shades = np.sqrt(degree) * size / max(math.sqrt(degree.mean()), 1e-9)
    axes.scatter(
        places[:, 0],
        places[:, 1],
        s=shades,
        color=COLOURS[0],
        linewidths=0.5 if n <= 500 else 0.0,
        edgecolors="white",
        zorder=2,
    )
    if n <= NAMED:
        for i, (x, y) in enumerate(places):
            text = str(graph.nodes[i].get("label", i))
            axes.annotate(text, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=6.5, color="#222222")
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.margins(0.08)


def _degrees(axes: Axes, graph: Graph) -> None:
    from matplotlib.ticker import MaxNLocator

    degree = np.array([d for _, d in (graph.out_degree() if graph.is_directed() else graph.degree())])
    values, counts = np.unique(degree, return_counts=True)
    axes.set_title("Nodes by out-degree" if graph.is_directed() else "Nodes by degree")
    axes.set_xlabel("Neighbours")
    if values[-1] > 50 * max(values[0], 1):
        axes.plot(np.maximum(values, 0.5), counts, "o", color=COLOURS[0], markersize=4)
        axes.set(xscale="log", yscale="log")
        axes.set_title(f"{axes.get_title(loc='left')}, log scales")
        return
    axes.bar(values, counts, width=0.8, color=COLOURS[0])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    middle, wide = (values[0] + values[-1]) / 2, max(values[-1] - values[0], 4)  # a single bar is a bar, no wall
    axes.set_xlim(max(middle - wide / 2 - 1, -0.9), middle + wide / 2 + 1)
    axes.grid(axis="x", visible=False)


def layout(graph: Graph) -> np.ndarray:
    """Where to draw the nodes, [n, 2]: where they lie, if all of them say so (Longitude and Latitude, or pos), else by
    Kamada and Kawai's rule, above 150 nodes by springs that start from the two slowest modes of the averaging and,
    above 1,000, along these modes themselves."""
    import networkx as nx

    n = len(graph)
    for first, second in (("Longitude", "Latitude"), ("pos", None)):
        found = [graph.nodes[i].get(first) if second is None else
                 [graph.nodes[i].get(first), graph.nodes[i].get(second)] for i in range(n)]  # fmt: skip
        known = np.array([p if p is not None and len(p) == 2 and None not in p else [np.nan] * 2 for p in found], float)
        if np.isfinite(known).all() and len(np.unique(known, axis=0)) > 1:
            return known
    plain = graph.to_undirected()
    if n > 1000 and nx.is_connected(plain):
        modes = spectrum.directions(spectrum.adjacency(plain))
        spread: np.ndarray = np.arcsinh(modes / np.median(np.abs(modes), axis=0))
        return spread  # some live on a few nodes; the others want room
    connected = nx.is_connected(plain)
    if n <= 150 and connected:
        places = nx.kamada_kawai_layout(plain)
    else:  # springs find the shape of the whole only where they start from it
        start = None
        if connected:
            modes = spectrum.directions(spectrum.adjacency(plain))
            start = dict(enumerate(modes / np.abs(modes).max()))
        places = nx.spring_layout(plain, pos=start, seed=0, iterations=100 if n <= 300 else 40)
    return np.array([places[i] for i in range(n)], float)
