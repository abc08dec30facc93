"""A network in numbers: eigenvalues dense and sparse, diameters, `fedsim topology show`, and its picture."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from helpers import command
from scipy import sparse

from fedsim import mixing, spectrum, topology
from fedsim.report import topology as report

LARGE = {
    "expander": nx.random_regular_graph(4, 600, seed=0),
    "ring": nx.cycle_graph(600),
    "odd ring": nx.cycle_graph(555),
    "path": nx.path_graph(600),
    "star": nx.star_graph(599),
    "torus": nx.convert_node_labels_to_integers(nx.grid_graph([20, 30], periodic=True)),
    "hubs": nx.barabasi_albert_graph(600, 2, seed=0),
    "small world": nx.watts_strogatz_graph(600, 4, 0.1, seed=0),
    "tree": nx.full_rary_tree(2, 600),
    "caves": nx.connected_caveman_graph(60, 10),
    "two halves": nx.complete_bipartite_graph(260, 260),
    "hypercube": nx.convert_node_labels_to_integers(nx.hypercube_graph(10)),
}
large = pytest.mark.parametrize("graph", LARGE.values(), ids=LARGE)
ZOO = Path(os.environ.get("FEDSIM_DATA", "?")) / "topologies" / "zoo" / "graphml"
zoo = pytest.mark.skipif(not ZOO.is_dir(), reason="FEDSIM_DATA names no folder with topologies/")


# --- eigenvalues and diameters ----------------------------------------------------------------------------------------


@large
def test_sparse_eigenvalues_are_those_of_the_whole_matrix(graph: nx.Graph) -> None:
    links = spectrum.adjacency(graph)
    assert links.shape[0] > spectrum.DENSE
    weights = spectrum.metropolis(links)
    whole = np.linalg.eigvalsh(weights.toarray())
    assert spectrum.slem(weights) == pytest.approx(max(whole[-2], -whole[0]), abs=1e-10)
    assert spectrum.top(weights) == pytest.approx(whole[-2], abs=1e-10)
    assert spectrum.bottom(weights) == pytest.approx(whole[0], abs=1e-9)
    laplacian = np.linalg.eigvalsh(nx.laplacian_matrix(graph, nodelist=range(len(graph))).toarray())
    assert spectrum.best_constant(graph) == pytest.approx(2 / (laplacian[-1] + laplacian[1]), rel=1e-9)


def test_large_mixings_are_never_written_out() -> None:
    n = 12_000  # more than 1 GB as a table
    ring = topology.load("ring", n)
    edges = mixing.Metropolis(ring)(0, torch.arange(n))
    assert spectrum.slem(edges) == pytest.approx((1 + 2 * math.cos(2 * math.pi / n)) / 3, abs=1e-12)
    assert spectrum.spectral_gap(edges) == pytest.approx(2 / 3 * (1 - math.cos(2 * math.pi / n)), rel=1e-3)


@pytest.mark.parametrize("n", [300, 700])
def test_matrices_that_are_not_symmetric(n: int) -> None:
    """The directed exponential graph, (τ − 1)/(τ + 1) for even n; and a matrix that only its rows make stochastic."""
    links = spectrum.adjacency(topology.load("directed-exponential", n))
    tau = (n - 1).bit_length()
    assert spectrum.slem(spectrum.push(links).T) == pytest.approx((tau - 1) / (tau + 1), abs=1e-9)
    graph = topology.load("barabasi-albert", n)
    edges = mixing.Neighbour(graph)(0, torch.arange(n))
    values = np.sort(np.abs(np.linalg.eigvals(edges.dense().numpy())))
    assert spectrum.slem(edges) == pytest.approx(values[-2], abs=1e-9)


def test_a_sparse_matrix_whose_rows_do_not_sum_to_1_is_refused() -> None:
    with pytest.raises(ValueError, match="row 3 sums to 2"):
        spectrum.slem(sparse.diags_array([1.0, 1, 1, 2, 1]))


def test_matrices_are_those_of_the_mixings() -> None:
    karate, ring = topology.load("karate"), topology.load("directed-exponential", 11)
    everybody = torch.arange(34)
    ours = mixing.Metropolis(karate)(0, everybody).dense().numpy()
    assert np.abs(spectrum.metropolis(spectrum.adjacency(karate)).toarray() - ours).max() < 1e-15
    pushed = mixing.Push(ring)(0, torch.arange(11)).dense().numpy()
    assert np.abs(spectrum.push(spectrum.adjacency(ring)).toarray() - pushed).max() < 1e-15


@pytest.mark.parametrize(
    "graph",
    [
        *LARGE.values(),
        nx.path_graph(1),
        nx.path_graph(2),
        nx.karate_club_graph(),
        nx.cycle_graph(9, create_using=nx.DiGraph),
        topology.load("directed-exponential", 33),
        nx.star_graph(9),
    ],
)
def test_diameters(graph: nx.Graph) -> None:
    known = nx.diameter(graph) if len(graph) < 100 else nx.diameter(graph, usebounds=True)
    assert spectrum.diameter(spectrum.adjacency(graph)) == known


def test_slow_modes_keep_far_nodes_apart() -> None:
    for n in (60, 2000):
        modes = spectrum.directions(spectrum.adjacency(topology.load("ring", n)))
        radius = np.linalg.norm(modes, axis=1)
        assert modes.shape == (n, 2)
        assert radius.std() / radius.mean() < 1e-6  # a ring is drawn as one
        steps = np.linalg.norm(modes - np.roll(modes, 1, axis=0), axis=1)
        assert steps.max() / steps.min() == pytest.approx(1, abs=1e-3)


# --- the description --------------------------------------------------------------------------------------------------


def test_a_network_in_numbers() -> None:
    found = report.describe(topology.load("karate"))
    assert found["slem"] == pytest.approx(0.968764, abs=5e-7)
    assert found["spectral_gap"] == 1 - found["slem"]
    assert found == {
        "nodes": 34,
        "edges": 78,
        "directed": False,
        "degree": {"min": 1, "mean": 156 / 34, "max": 17},
        "connected": True,
        "components": [34],
        "diameter": 5,
        "weights": "metropolis",
        "slem": found["slem"],
        "spectral_gap": found["spectral_gap"],
        "rounds_to_consensus": 218,
    }


def test_rounds_to_consensus_are_enough_and_not_too_many() -> None:
    for rate in (0.04, 0.5, 0.9, 0.95, 0.999):
        rounds = report.rounds(rate)
        assert rounds is not None
        assert rate**rounds <= 1e-3 < rate ** (rounds - 1)
    assert report.rounds(0.0) == 1
    assert report.rounds(0.1) == 3  # exactly a thousandth
    assert report.rounds(1.0) is None
    graph = topology.load("ring", 8)
    edges = mixing.Metropolis(graph)(0, torch.arange(8))
    x = torch.cos(2 * math.pi * torch.arange(8, dtype=torch.float64) / 8)[:, None]
    start = float(x.norm())
    for _ in range(report.describe(graph)["rounds_to_consensus"]):
        before, x = x, edges.apply(x)
    assert float(x.norm()) <= 1e-3 * start < float(before.norm())


def test_a_network_in_parts_never_agrees_and_is_told_part_by_part() -> None:
    graph = nx.disjoint_union(nx.path_graph(2), nx.cycle_graph(5))
    found = report.describe(graph)
    assert (found["connected"], found["components"]) == (False, [5, 2])
    assert (found["diameter"], found["rounds_to_consensus"], found["slem"]) == (None, None, 1.0)
    assert found["largest"] == report.describe(nx.cycle_graph(5))
    text = report.lines("mine", found)
    assert "  connected     no: 2 components of 5, 2 nodes" in text
    assert "largest component" in text
    assert "  SLEM          0.53934 of Metropolis weights" in text


def test_directed_networks_are_told_with_push_weights() -> None:
    found = report.describe(topology.load("directed-ring", 6))
    assert (found["weights"], found["diameter"], found["edges"]) == ("push", 5, 6)
    assert found["slem"] == pytest.approx(math.cos(math.pi / 6))
    uneven = nx.DiGraph([(0, 1), (1, 2), (2, 0), (0, 2)])
    values = np.abs(np.linalg.eigvals(mixing.Push(uneven)(0, torch.arange(3)).dense().numpy()))
    assert report.describe(uneven)["slem"] == pytest.approx(np.sort(values)[-2])
    one_way = report.describe(nx.DiGraph([(0, 1), (1, 2), (2, 1)]))
    assert one_way["components"] == [2, 1]


def test_numbers_are_decimals_with_five_digits() -> None:
    text = report.lines("ring", report.describe(topology.load("ring", 100)))
    assert "  SLEM          0.99868 of Metropolis weights" in text
    assert "  spectral gap  0.00132" in text
    assert "  degree        2 to 2, mean 2.00000" in text
    thin = report.lines("ring", report.describe(topology.load("ring", 1000)))
    assert "  SLEM          0.99999 of Metropolis weights" in thin
    assert "  spectral gap  0.00001 (1.32e-05)" in thin
    assert report.describe(nx.path_graph(1))["rounds_to_consensus"] == 0


def test_ten_thousand_nodes_take_seconds() -> None:
    """A ring, the thinnest there is. (A 4-regular one takes 8 s, nearly all of them for the diameter.)"""
    found = report.describe(topology.load("ring", 10_000))
    assert found["diameter"] == 5000
    assert found["slem"] == pytest.approx((1 + 2 * math.cos(2 * math.pi / 10_000)) / 3, abs=1e-12)


# --- the picture ------------------------------------------------------------------------------------------------------


def test_nodes_are_drawn_where_they_lie() -> None:
    graph = nx.Graph([(0, 1), (1, 2)])
    for i, place in enumerate([(1.0, 2.0), (3.0, 5.0), (0.0, 0.0)]):
        graph.add_node(i, Longitude=place[0], Latitude=place[1])
    assert report.layout(graph).tolist() == [[1, 2], [3, 5], [0, 0]]
    del graph.nodes[1]["Latitude"]  # one that nobody knows the place of: none is drawn by it
    assert report.layout(graph).shape == (3, 2)
    assert np.isfinite(report.layout(graph)).all()
    assert report.layout(graph).tolist() != [[1, 2], [3, 5], [0, 0]]


@pytest.mark.parametrize(
    "graph",
    [
        nx.path_graph(1),
        nx.empty_graph(2),
        nx.star_graph(160),
        topology.load("directed-ring", 5),
        topology.load("directed-exponential", 70),
        nx.cycle_graph(1100),
        nx.disjoint_union(nx.cycle_graph(5), nx.path_graph(2)),
        nx.complete_graph(5),
    ],
    ids=str,
)
def test_any_network_can_be_drawn(graph: nx.Graph, tmp_path: Path) -> None:
    places = report.layout(graph)
    assert places.shape == (len(graph), 2)
    assert np.isfinite(places).all()
    report.draw(graph, "a network", tmp_path, "picture")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["picture.png", "picture.svg"]


def test_the_same_network_is_the_same_picture(tmp_path: Path) -> None:
    for name in ("one", "two"):
        report.draw(topology.load("karate"), "karate", tmp_path, name)
    for kind in ("png", "svg"):
        assert (tmp_path / f"one.{kind}").read_bytes() == (tmp_path / f"two.{kind}").read_bytes()


# --- the command ------------------------------------------------------------------------------------------------------


def test_show_prints_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = ["random-regular", "--set", "n=12", "--set", "degree=3", "--set", "seed=2"]
    assert command("topology", "show", *graph, "--out", tmp_path) == 0
    out = capsys.readouterr().out
    assert "  nodes         12\n  edges         18\n  degree        3 to 3, mean 3.00000\n" in out
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"random-regular.{kind}" for kind in ("json", "png", "svg")]
    found = json.loads((tmp_path / "random-regular.json").read_text())
    assert found["slem"] == report.describe(topology.load("random-regular", 12, seed=2, degree=3))["slem"]


def test_show_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "g.edgelist").write_text("0 1\n2 3\n3 4\n")
    assert command("topology", "show", str(tmp_path / "g.edgelist"), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["components"], found["largest"]["diameter"]) == ([3, 2], 2)
    assert command("topology", "show", str(tmp_path / "g.edgelist"), "--json", "--set", "component=largest") == 0
    assert json.loads(capsys.readouterr().out) == found["largest"]
    assert command("topology", "show", "networkx:dorogovtsev_goltsev_mendes_graph", "--set", "n=3", "--json") == 0
    assert json.loads(capsys.readouterr().out)["nodes"] == 15


@zoo
def test_show_a_published_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("topology", "show", str(ZOO / "Uninett.graphml")) == 0
    out = capsys.readouterr().out
    assert "no: 4 components of 71, 1, 1, 1 nodes" in out
    assert "SLEM          0.98865 of Metropolis weights" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("rign",), "unknown topology 'rign'; did you mean 'ring'?"),
        (("ring",), "topology ring comes in every size; say how many nodes: n = 16"),
        (("ring", "--set", "n=2.5"), "topology ring: n must be a whole number, got 2.5"),
        (("ring", "--set", "m=2", "--set", "n=5"), "topology ring has no setting 'm'"),
        (("ring", "--set", "n"), "--set n: write key=value"),
        (("maps/none.gml",), "topology maps/none.gml: no such file"),
        (("networkx:path_graph",), "topology networkx:path_graph needs 'n'; give n = ..."),
    ],
)
def test_mistakes_are_one_line(words: Any, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("topology", "show", *words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
