"""Who could talk to whom: recipes and graph files become networkx graphs with nodes 0..n-1.

    graph = topology.load("random-regular", n=100, seed=1, degree=6)
    graph = topology.load("maps/Abilene.graphml")
    graph = topology.load("mine.py:bridged", n=100)        # your own: a function of n, seed and parameters as it likes

A recipe is a TOML file in topologies/ and holds no code: either the name of a networkx generator and how its arguments
follow from n and from named parameters, or a graph's own edges. `topologies/` lies beside the package in a checkout and
inside it once installed. The graphs are plain and never wrapped; anything else that networkx makes can be used as well
once its nodes are numbered (`networkx.convert_node_labels_to_integers`).
"""

from __future__ import annotations

import functools
import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim import keyed, resolve

if TYPE_CHECKING:
    from networkx import Graph

_FILES = (".graphml", ".gml", ".edgelist", ".adjlist")
_TRIES = 100  # draws of a random graph before it is called hopeless


@dataclass(frozen=True)
class Parameter:
    """A number that shapes a recipe's graph; whole if its default is."""

    about: str
    default: int | float
    least: int | float
    most: int | float = math.inf
    below_n: bool = False  # has to be smaller than the number of nodes


@dataclass(frozen=True)
class Recipe:
    """One file of topologies/.

    The values of `arguments` are given to the generator as they are, except that a text stands for something known:
    n, a parameter's name, seed, nodes (0..n-1 as a list), log2 (of n, a power of two) or sides (a · b = n, as square as
    can be, both at least `least_side`).
    """

    name: str
    description: str
    good_for: str
    generator: str | None  # of networkx; None: the file holds the edges
    arguments: Mapping[str, Any]
    parameters: Mapping[str, Parameter]
    least: int = 1  # nodes
    least_side: int = 1
    size: int | None = None  # nodes, where there is no choice
    even: tuple[str, ...] = ()  # n or parameters whose product has to be even
    hint: str = ""  # what to do when draw after draw is not connected
    source: str = ""
    labels: tuple[str, ...] = ()
    edges: tuple[tuple[int, int], ...] = ()

    @property
    def random(self) -> bool:
        """Whether the graph depends on a seed."""
        return "seed" in self.arguments.values()


def recipes() -> dict[str, Recipe]:
    """Every recipe by name, in alphabetical order."""
    return dict(_recipes())


@functools.cache
def _recipes() -> dict[str, Recipe]:
    here = Path(__file__).parent
    folder = next((found for found in (here / "topologies", here.parent / "topologies") if found.is_dir()), None)
    if folder is None:
        raise FileNotFoundError(f"no folder topologies in {here} or {here.parent}; install fedsim again")
    return {path.stem: _read_recipe(path) for path in sorted(folder.glob("*.toml"))}


def _read_recipe(path: Path) -> Recipe:
    with open(path, "rb") as file:
        table = {key.replace("-", "_"): value for key, value in tomllib.load(file).items()}
    parameters = {
        name: Parameter(**{key.replace("-", "_"): value for key, value in settings.items()})
        for name, settings in table.pop("parameters", {}).items()
    }
    return Recipe(
        name=path.stem,
        generator=table.pop("generator", None),
        arguments=table.pop("arguments", {}),
        parameters=parameters,
        even=tuple(table.pop("even", ())),
        labels=tuple(table.pop("labels", ())),
        edges=tuple((a, b) for a, b in table.pop("edges", ())),
        **table,
    )


def check(
    name_or_path: str,
    n: int | None = None,
    parameters: Mapping[str, Any] | None = None,
    base: Path | None = None,
) -> None:
    """Raises ValueError, or FileNotFoundError, for what can be seen to be wrong without making or reading a graph."""
    parameters = parameters or {}
    if resolve.is_dotted(name_or_path):
        _own(name_or_path, base)
    elif _is_file(name_or_path):
        path = _path(name_or_path, base)
        if path.suffix not in _FILES:
            kinds = f"{', '.join(_FILES[:-1])} or {_FILES[-1]}"
            raise ValueError(f"topology {name_or_path}: files of type {path.suffix or '?'} are not read; use {kinds}")
        if not path.is_file():
            raise FileNotFoundError(f"topology {name_or_path}: no such file (sought at {path.absolute()})")
        resolve.check_settings(f"topology {name_or_path}", parameters, ("component",))
        if parameters.get("component", "largest") != "largest":
            raise ValueError(f'topology {name_or_path}: component must be "largest", got {parameters["component"]!r}')
    elif name_or_path not in _recipes():
        raise ValueError(f"unknown topology {name_or_path!r}{resolve.nearest(name_or_path, _recipes())}")
    else:
        recipe = _recipes()[name_or_path]
        _arguments(recipe, _nodes(recipe, n), 0, _values(recipe, n, parameters))


def load(name_or_path: str, n: int | None = None, seed: int = 0, base: Path | None = None, **parameters: Any) -> Graph:
    """A connected, simple, undirected graph of n nodes 0..n-1, from a recipe, a file or one's own function.

    A recipe that is random takes `seed` as it is, so the graph is the one networkx draws for it; a draw that is not
    connected is followed by others, from seeds that follow from the first.

    A file (.graphml, .gml, .edgelist or .adjlist; n follows from it) is read thus: directions are dropped, parallel
    edges become one (the first one's attributes stay), self-loops go; node ids are sorted naturally (2 before 10) and
    become 0..n-1 in that order. Attributes stay, and a node without `label` gets its id as one. component = "largest"
    keeps the largest connected component, ties going to the one with the smallest node. The same happens to the graph
    that a function ("package.module:name", "file.py:name") returns. Relative paths are sought in `base`, else in the
    working directory.

    Raises ValueError: unknown name or parameter, a size that does not fit, a graph that is not connected, a file that
    cannot be read; FileNotFoundError.
    """
    import networkx as nx

    check(name_or_path, n, parameters, base)
    if resolve.is_dotted(name_or_path):
        label, offered = f"topology {name_or_path}", {"n": n, "seed": seed}
        made = resolve.call(label, _own(name_or_path, base), offered, parameters)
        if not isinstance(made, nx.Graph) or not len(made):
            raise ValueError(f"{label} gave {type(made).__name__} instead of a networkx graph with nodes; return one")
        return _fit(name_or_path, _numbered(made), n)
    if _is_file(name_or_path):
        graph = _numbered(_read_graph(name_or_path, _path(name_or_path, base)), labelled=True)
        if parameters and not nx.is_connected(graph):
            graph = _numbered(graph.subgraph(max(nx.connected_components(graph), key=lambda c: (len(c), -min(c)))))
        return _fit(name_or_path, graph, n, '; take that one with component = "largest"')
    recipe = _recipes()[name_or_path]
    size = _nodes(recipe, n)
    values = _values(recipe, n, parameters)
    if recipe.generator is None:
        graph = nx.Graph(name=recipe.name)
        graph.add_nodes_from((i, {"label": label}) for i, label in enumerate(recipe.labels))
        graph.add_edges_from(recipe.edges)
        return graph
    generator = getattr(nx, recipe.generator)
    for attempt in range(_TRIES if recipe.random else 1):
        draw = seed if attempt == 0 else keyed.seed(seed, "topology", attempt) % 2**32
        try:
            graph = _numbered(generator(**_arguments(recipe, size, draw, values)))
        except nx.NetworkXException as error:
            raise ValueError(f"topology {recipe.name} with n = {size}: {' '.join(str(error).split())}") from error
        if nx.is_connected(graph):
            return graph
    given = ", ".join(f"{name} = {value}" for name, value in {"n": size, **values}.items())
    hint = f"; {recipe.hint}" if recipe.hint else ""
    raise ValueError(f"topology {recipe.name}: none of {_TRIES} draws with {given} is connected{hint}")


def slem(mixing: Any) -> float:
    """The second largest eigenvalue modulus of a mixing matrix: by how much a round of averaging shrinks disagreement
    in the long run; 0 for one node.

    mixing: [n, n], rows sum to 1 (numpy, a CPU tensor), or `mixing.Edges`. For a matrix that is not symmetric this is
    the asymptotic rate; a single round may do worse. Raises ValueError for a matrix of another shape or row sum.
    """
    matrix = np.asarray(mixing.dense() if hasattr(mixing, "diagonal") and hasattr(mixing, "apply") else mixing, float)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(f"a mixing matrix is square, got shape {matrix.shape}")
    if not np.allclose(matrix.sum(1), 1, rtol=0, atol=1e-6):
        worst = int(np.argmax(np.abs(matrix.sum(1) - 1)))
        raise ValueError(f"the rows of a mixing matrix sum to 1, but row {worst} sums to {matrix[worst].sum():.6g}")
    symmetric = np.allclose(matrix, matrix.T, rtol=0, atol=1e-12)
    values = np.linalg.eigvalsh(matrix) if symmetric else np.linalg.eigvals(matrix)
    others = np.delete(values, np.argmin(np.abs(values - 1)))
    return float(np.abs(others).max(initial=0.0))


def spectral_gap(mixing: Any) -> float:
    """1 - `slem`: the larger, the faster the network agrees; 0 if it never does."""
    return 1.0 - slem(mixing)


def _is_file(name: str) -> bool:
    return "." in name or "/" in name or "\\" in name  # no recipe's name has any


def _path(name: str, base: Path | None) -> Path:
    return Path(name) if base is None else base / name


def _own(name: str, base: Path | None) -> Callable[..., object]:
    found = resolve.dotted(name, base)
    if not callable(found):
        raise ValueError(f"topology {name} is a {type(found).__name__}, not a function that returns a networkx graph")
    return found


def _fit(name: str, graph: Graph, n: int | None, remedy: str = "") -> Graph:
    """The graph itself. Raises ValueError unless it is connected and has n nodes."""
    import networkx as nx

    if not nx.is_connected(graph):
        sizes = sorted(map(len, nx.connected_components(graph)), reverse=True)
        largest = f"{len(sizes)} components, the largest with {sizes[0]} of {len(graph)} nodes"
        raise ValueError(f"topology {name} is not connected: {largest}{remedy}")
    if n is not None and len(graph) != n:
        raise ValueError(_wrong_size(name, len(graph), n))
    return graph


def _wrong_size(name: str, has: int, n: int) -> str:
    return f"topology {name} has {has} nodes but the task has {n} clients; set clients = {has} or take another topology"


def _nodes(recipe: Recipe, n: int | None) -> int:
    """How many nodes the recipe's graph has. Raises ValueError if it cannot have n."""
    if n is None and recipe.size is None:
        raise ValueError(f"topology {recipe.name} comes in every size; say how many nodes: n = 16")
    if n is None or n == recipe.size:
        return recipe.size if n is None and recipe.size is not None else int(n)  # type: ignore[arg-type]
    if isinstance(n, bool) or not isinstance(n, int | np.integer):
        raise ValueError(f"topology {recipe.name}: n must be a whole number, got {n!r}")
    if recipe.size is not None:
        raise ValueError(_wrong_size(recipe.name, recipe.size, int(n)))
    if n < recipe.least:
        raise ValueError(f"topology {recipe.name} needs at least {recipe.least} nodes, got {n}")
    return int(n)


def _values(recipe: Recipe, n: int | None, given: Mapping[str, Any]) -> dict[str, int | float]:
    """Every parameter's value. Raises ValueError for one that is unknown, not a number, or out of bounds."""
    size = _nodes(recipe, n)
    resolve.check_settings(f"topology {recipe.name}", given, recipe.parameters)
    values = {name: given.get(name, parameter.default) for name, parameter in recipe.parameters.items()}
    for name, value in values.items():
        parameter = recipe.parameters[name]
        whole = isinstance(parameter.default, int)
        kind = int | np.integer if whole else int | float | np.integer | np.floating
        bounds = (
            f"a whole number of at least {parameter.least}" if whole else f"a number of at least {parameter.least:g}"
        )
        if parameter.most < math.inf:
            bounds += f" and at most {parameter.most:g}"
        if isinstance(value, bool) or not isinstance(value, kind) or not parameter.least <= value <= parameter.most:
            raise ValueError(f"topology {recipe.name}: {name} must be {bounds}, got {value!r}")
        if parameter.below_n and value >= size:
            raise ValueError(f"topology {recipe.name}: {name} must be below n = {size}, got {value}; lower {name}")
    product = [({"n": size} | values)[name] for name in recipe.even]
    if product and math.prod(product) % 2:
        needed = f"{' · '.join(recipe.even)} must be even, got {' · '.join(map(str, product))}"
        raise ValueError(f"topology {recipe.name}: {needed}; change {recipe.even[-1]} by one")
    return values


def _arguments(recipe: Recipe, n: int, seed: int, values: Mapping[str, int | float]) -> dict[str, Any]:
    """What the generator is called with. Raises ValueError if n is not a power of two, or a · b, where it has to be."""
    known: dict[str, Any] = {"n": n, "seed": seed, **values}
    if "nodes" in recipe.arguments.values():
        known["nodes"] = list(range(n))
    if "log2" in recipe.arguments.values():
        known["log2"] = _log2(recipe, n)
    if "sides" in recipe.arguments.values():
        known["sides"] = _sides(recipe, n)
    return {key: known[value] if isinstance(value, str) else value for key, value in recipe.arguments.items()}


def _log2(recipe: Recipe, n: int) -> int:
    if n & (n - 1):
        raise ValueError(
            f"topology {recipe.name} needs a power of two of nodes, not {n};"
            f" the nearest are {1 << n.bit_length() - 1} and {1 << n.bit_length()}"
        )
    return n.bit_length() - 1


def _sides(recipe: Recipe, n: int) -> list[int]:
    """[a, b] with a · b = n and a ≤ b as close as can be."""

    def smaller(n: int) -> int:
        return next(a for a in range(math.isqrt(n), 0, -1) if n % a == 0)

    least = recipe.least_side
    if smaller(n) < least:
        below = next((m for m in range(n - 1, 0, -1) if smaller(m) >= least), None)
        above = next(m for m in range(n + 1, 4 * n + 16) if smaller(m) >= least)
        nearest = f"are {below} and {above}" if below else f"is {above}"
        raise ValueError(
            f"topology {recipe.name} needs n = a · b with both at least {least}, not {n}; the nearest {nearest}"
        )
    return [smaller(n), n // smaller(n)]


def _natural(label: object) -> tuple[list[tuple[bool, int, str]], str]:
    """A sort key in which the numbers inside a text count as numbers."""
    text = str(label)
    parts = [part for part in re.split(r"([0-9]+)", text) if part]
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts], text


def _numbered(found: Graph, labelled: bool = False) -> Graph:
    """A simple undirected graph with nodes 0..n-1 in the natural order of their ids, nodes and edges in order."""
    import networkx as nx

    order = sorted(found, key=_natural)
    place = {node: i for i, node in enumerate(order)}
    graph = nx.Graph(**found.graph)
    for node, i in place.items():
        graph.add_node(i, **({"label": str(node)} if labelled else {}) | found.nodes[node])
    edges: dict[tuple[int, int], dict[str, Any]] = {}
    for a, b, attributes in found.edges(data=True):
        if a != b:
            low, high = sorted((place[a], place[b]))
            edges.setdefault((low, high), attributes)
    graph.add_edges_from((a, b, edges[a, b]) for a, b in sorted(edges))
    return graph


def _read_graph(name: str, path: Path) -> Graph:
    """The file as networkx reads it. Raises ValueError for one that it cannot read or that holds no nodes."""
    import networkx as nx

    try:
        if path.suffix == ".graphml":
            graph = nx.read_graphml(path)
        elif path.suffix == ".gml":
            # networkx refuses parallel edges in a file that does not announce them, as some published maps do not
            text = path.read_text(encoding="utf-8")
            if not re.search(r"^\s*multigraph\s+1", text, re.MULTILINE):
                text = re.sub(r"\bgraph\s*\[", "graph [\n  multigraph 1", text, count=1)
            graph = nx.parse_gml(text.splitlines(), label="id")
        elif path.suffix == ".edgelist":
            graph = nx.read_edgelist(path, create_using=nx.MultiGraph, data=False)
        else:
            graph = nx.read_adjlist(path, create_using=nx.MultiGraph)
    except Exception as error:  # networkx's readers let through whatever their parsers raise
        raise ValueError(f"topology {name} cannot be read as {path.suffix}: {resolve.line(error)}") from error
    if not len(graph):
        raise ValueError(f"topology {name} holds no nodes; give a graph of at least one")
    return graph
