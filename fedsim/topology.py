"""Who could talk to whom: recipes, networkx's generators and graph files become networkx graphs with nodes 0..n-1.

    graph = topology.load("random-regular", n=100, seed=1, degree=6)
    graph = topology.load("networkx:barbell_graph", m1=5, m2=3)
    graph = topology.load("maps/Abilene.graphml")
    graph = topology.load("mine.py:bridged", n=100)        # your own: a function of n, seed and parameters as it likes

A recipe is a TOML file in topologies/ and holds no code: either the name of a generator and how its arguments follow
from n and from named parameters, or a graph's own edges. `topologies/` lies beside the package in a checkout and inside
it once installed. The graphs are plain and never wrapped; any other graph whose nodes are 0..n-1 can be used as well.
`read` gives graphs that need not be connected; `fedsim.report.topology` describes and draws them.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim import keyed, resolve
from fedsim.recipes import Parameter, Recipe, called_with, count, read_recipes, recipes, settings, wrong_size
from fedsim.spectrum import slem, spectral_gap

if TYPE_CHECKING:
    from networkx import Graph

_FILES = (".graphml", ".gml", ".edgelist", ".adjlist")
_NETWORKX = "networkx:"
_TRIES = 100  # draws of a random graph before it is called hopeless

__all__ = [
    "Parameter",
    "Recipe",
    "check",
    "load",
    "read",
    "recipes",
    "short",
    "sized",
    "slem",
    "spectral_gap",
    "split",
]


def check(
    name_or_path: str,
    n: int | None = None,
    parameters: Mapping[str, Any] | None = None,
    base: Path | None = None,
) -> None:
    """Raises ValueError, or FileNotFoundError, for what can be seen to be wrong without making or reading a graph."""
    parameters = parameters or {}
    label = f"topology {name_or_path}"
    if name_or_path.startswith(_NETWORKX):
        if not all(part.isidentifier() for part in name_or_path.removeprefix(_NETWORKX).split(".")):
            raise ValueError(f"{label} names no generator; write networkx:cycle_graph, or another of networkx's")
        _check_options(label, parameters)
    elif resolve.is_dotted(name_or_path):
        _own(name_or_path, base)
        _check_options(label, parameters)
    elif _is_file(name_or_path):
        path = _path(name_or_path, base)
        _format(label, path, parameters)
        if not path.is_file():
            raise FileNotFoundError(f"{label}: no such file (sought at {path.absolute()})")
        resolve.check_settings(label, parameters, ("component", "directed", "format"))
        _check_options(label, parameters)
    elif name_or_path not in read_recipes():
        raise ValueError(f"unknown topology {name_or_path!r}{resolve.nearest(name_or_path, read_recipes())}")
    else:
        recipe = read_recipes()[name_or_path]
        called_with(recipe, count(recipe, n), 0, settings(recipe, n, parameters))


def load(name_or_path: str, n: int | None = None, seed: int = 0, base: Path | None = None, **parameters: Any) -> Graph:
    """A connected, simple graph of n nodes 0..n-1, from a recipe, networkx, a file or one's own function.

    A recipe that is random takes `seed` as it is, so the graph is the one networkx draws for it; a draw that is not
    connected is followed by others, from seeds that follow from the first.

    "networkx:NAME" calls networkx.NAME with the parameters, and with `seed` if it takes one. The number of nodes is its
    own business; parameters that are called n or seed there go into `arguments`, as in arguments={"n": 3}. A function
    ("package.module:name", "file.py:name") is called with the parameters, and with n and seed if it takes them.

    A file (.graphml, .gml, .edgelist or .adjlist; with format="edgelist" or another of these, any) says itself how many
    nodes it has.

    What comes from networkx, a file or a function is made simple by one rule: directions are dropped, parallel edges
    become one (the first one's attributes stay), self-loops go; node ids are sorted naturally (2 before 10) and become
    0..n-1 in that order. Attributes stay; a node without `label` gets its id as one, if that is no number of networkx's
    own. With component="largest" only the largest connected component is kept, ties going to the one with the smallest
    node. With directed=True directions stay, an edge leading from sender to receiver, and the graph has to be strongly
    connected. Relative paths are sought in `base`, else in the working directory.

    Raises ValueError: unknown name or parameter, a size that does not fit, a graph that is not connected, a file that
    cannot be read; FileNotFoundError.
    """
    graph = read(name_or_path, n, seed, base, parameters)
    _connected(name_or_path, graph)
    if n is not None and len(graph) != n:
        raise ValueError(wrong_size(name_or_path, len(graph), n))
    return graph


def read(
    name_or_path: str,
    n: int | None = None,
    seed: int = 0,
    base: Path | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> Graph:
    """As `load`, but a graph that is not connected, or not of n nodes, is given as well."""
    parameters = dict(parameters or {})
    check(name_or_path, n, parameters, base)
    if not (_is_file(name_or_path) or resolve.is_dotted(name_or_path)):
        return _cooked(read_recipes()[name_or_path], n, seed, parameters)
    largest, directed = parameters.pop("component", None) is not None, bool(parameters.get("directed", False))
    label = f"topology {name_or_path}"
    if name_or_path.startswith(_NETWORKX):
        made, labelled = _generated(label, name_or_path.removeprefix(_NETWORKX), seed, parameters), False
    elif resolve.is_dotted(name_or_path):
        own, offered = _own(name_or_path, base), {"n": n, "seed": seed}
        if "directed" not in inspect.signature(own).parameters:
            parameters.pop("directed", None)
        made, labelled = resolve.call(label, own, offered, parameters), False
    else:
        path = _path(name_or_path, base)
        made, labelled = _read_graph(name_or_path, path, _format(label, path, parameters), directed), True
    graph = _numbered(_graph(label, made), labelled, directed)
    return _numbered(graph.subgraph(_parts(graph)[0]), directed=directed) if largest else graph


def sized(name_or_path: str, base: Path | None = None, parameters: Mapping[str, Any] | None = None) -> int | None:
    """How many nodes a topology has where that is settled without being told: a file's, a fixed recipe's; else None.

    Raises what `read` raises for a file.
    """
    if name_or_path in read_recipes():
        return read_recipes()[name_or_path].size
    if resolve.is_dotted(name_or_path) or not _is_file(name_or_path):
        return None
    return len(read(name_or_path, base=base, parameters=parameters))


def split(name_or_path: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """One table of settings as `read` takes them: n, seed and parameters. What "networkx:NAME" calls n is its own n.

    Raises ValueError for an n or a seed that is no whole number.
    """
    given = {key.replace("-", "_"): value for key, value in settings.items()}
    taken: dict[str, Any] = {}
    for key in ("n", "seed"):
        if key in given and not (key == "n" and name_or_path.startswith(_NETWORKX)):
            taken[key] = given.pop(key)
            if isinstance(taken[key], bool) or not isinstance(taken[key], int) or taken[key] < (key == "n"):
                raise ValueError(f"topology {name_or_path}: {key} must be a whole number, got {taken[key]!r}")
    if "n" in given:
        given["arguments"] = {"n": given.pop("n"), **given.get("arguments", {})}
    return {**taken, "parameters": given}


def short(name_or_path: str) -> str:
    """A name that does for a file."""
    name = name_or_path.removeprefix(_NETWORKX).rpartition(":")[2]
    return Path(name).stem if _is_file(name) else name


def _cooked(recipe: Recipe, n: int | None, seed: int, parameters: Mapping[str, Any]) -> Graph:
    """A recipe's graph."""
    import networkx as nx

    from fedsim import generators

    size = count(recipe, n)
    values = settings(recipe, n, parameters)
    if recipe.generator is None:
        graph = nx.Graph(name=recipe.name)
        graph.add_nodes_from((i, {"label": label}) for i, label in enumerate(recipe.labels))
        graph.add_edges_from(recipe.edges)
        return graph
    own = recipe.generator.startswith("own:")
    generator = getattr(generators if own else nx, recipe.generator.removeprefix("own:"))
    for attempt in range(_TRIES if recipe.random else 1):
        draw = seed if attempt == 0 else keyed.seed(seed, "topology", attempt) % 2**32
        try:
            graph = _numbered(generator(**called_with(recipe, size, draw, values)), directed=recipe.directed)
        except nx.NetworkXException as error:
            raise ValueError(f"topology {recipe.name} with n = {size}: {' '.join(str(error).split())}") from error
        if len(_parts(graph)) == 1:
            return graph
    given = ", ".join(f"{name} = {value}" for name, value in {"n": size, **values}.items())
    hint = f"; {recipe.hint}" if recipe.hint else ""
    raise ValueError(f"topology {recipe.name}: none of {_TRIES} draws with {given} is connected{hint}")


def _generated(label: str, name: str, seed: int, parameters: dict[str, Any]) -> object:
    """What a generator of networkx gives. Raises ValueError for an unknown one and for what it refuses."""
    import networkx as nx

    generator: Any = nx
    for part in name.split("."):
        if not hasattr(generator, part):
            known = [key for key in dir(nx) if key.endswith("_graph") and not key.startswith("_")]
            raise ValueError(f"{label}: networkx has no {name}{resolve.nearest(part, known)}"[:300])
        generator = getattr(generator, part)
    if not callable(generator):
        raise ValueError(f"{label} is a {type(generator).__name__}, not a generator of graphs")
    signature = inspect.signature(getattr(generator, "orig_func", generator)).parameters
    given = {**parameters.pop("arguments", {}), **parameters}
    if "directed" not in signature:
        given.pop("directed", None)
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.values()):
        resolve.check_settings(label, given, signature)
    missing = [key for key, p in signature.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if wanted := next((key for key in missing if key not in given), None):
        raise ValueError(f"{label} needs {wanted!r}; give {wanted} = ...")
    if "seed" in signature:
        given.setdefault("seed", seed)
    try:
        return generator(**given)
    except Exception as error:  # whatever it makes of values that do not suit it
        raise ValueError(f"{label} refuses its parameters: {resolve.line(error)}") from error


def _graph(label: str, made: object) -> Graph:
    import networkx as nx

    if not isinstance(made, nx.Graph) or not len(made):
        what = type(made).__name__ if not isinstance(made, nx.Graph) else "a graph without nodes"
        raise ValueError(f"{label} gave {what} instead of a networkx graph with nodes")
    return made


def _check_options(label: str, parameters: Mapping[str, Any]) -> None:
    """Raises ValueError for an option of files, networkx's generators or functions that is not what it has to be."""
    if parameters.get("component", "largest") != "largest":
        raise ValueError(f'{label}: component must be "largest", got {parameters["component"]!r}')
    if not isinstance(parameters.get("directed", False), bool):
        raise ValueError(f"{label}: directed must be true or false, got {parameters['directed']!r}")
    if not isinstance(parameters.get("arguments", {}), Mapping):
        raise ValueError(f"{label}: arguments must be a table, got {parameters['arguments']!r}")


def _format(label: str, path: Path, parameters: Mapping[str, Any]) -> str:
    """The suffix that says how a file is read. Raises ValueError for an unknown one."""
    given = parameters.get("format")
    suffix = path.suffix if given is None else f".{given}"
    if suffix not in _FILES:
        kinds = f"{', '.join(_FILES[:-1])} or {_FILES[-1]}"
        if given is not None:
            raise ValueError(f"{label}: format must be {kinds.replace('.', '')}, got {given!r}")
        raise ValueError(
            f"{label}: files of type {path.suffix or '?'} are not read; use {kinds}, or say"
            ' which it is: format = "edgelist"'
        )
    return suffix


def _is_file(name: str) -> bool:
    return "." in name or "/" in name or "\\" in name  # no recipe's name has any


def _path(name: str, base: Path | None) -> Path:
    return Path(name) if base is None else base / name


def _own(name: str, base: Path | None) -> Callable[..., object]:
    found = resolve.dotted(name, base)
    if not callable(found):
        raise ValueError(f"topology {name} is a {type(found).__name__}, not a function that returns a networkx graph")
    return found


def _parts(graph: Graph) -> list[set[int]]:
    """Connected components, strongly connected if directed; the largest first, ties to the smallest node."""
    import networkx as nx

    found = nx.strongly_connected_components(graph) if graph.is_directed() else nx.connected_components(graph)
    return sorted(found, key=lambda part: (-len(part), min(part)))


def _connected(name: str, graph: Graph) -> None:
    """Raises ValueError for a graph in several parts."""
    parts = _parts(graph)
    if len(parts) > 1:
        kind = "strongly connected" if graph.is_directed() else "connected"
        largest = f"{len(parts)} components, the largest with {len(parts[0])} of {len(graph)} nodes"
        remedy = "" if name in read_recipes() else '; take that one with component = "largest"'
        raise ValueError(f"topology {name} is not {kind}: {largest}{remedy}")


def _natural(label: object) -> tuple[list[tuple[bool, int, str]], str]:
    """A sort key in which the numbers inside a text count as numbers."""
    text = str(label)
    parts = [part for part in re.split(r"([0-9]+)", text) if part]
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts], text


def _numbered(found: Graph, labelled: bool = False, directed: bool = False) -> Graph:
    """A simple graph with nodes 0..n-1 in the natural order of their ids, nodes and edges in order.

    labelled: every node without a label gets its id as one; else only those whose id is no whole number.
    """
    import networkx as nx

    order = sorted(found, key=_natural)
    place = {node: i for i, node in enumerate(order)}
    graph: Graph = nx.DiGraph() if directed else nx.Graph()
    graph.graph.update(found.graph)  # not as arguments: a file may call its attributes what it likes
    for node, i in place.items():
        name = {"label": str(node)} if labelled or not isinstance(node, int) else {}
        graph.add_node(i, **name | found.nodes[node])
    edges: dict[tuple[int, int], dict[str, Any]] = {}
    for a, b, attributes in found.edges(data=True):
        one, other = place[a], place[b]
        if a != b:
            edges.setdefault((one, other) if directed else (min(one, other), max(one, other)), attributes)
        if directed and not found.is_directed() and a != b:
            edges.setdefault((other, one), attributes)
    graph.add_edges_from((a, b, edges[a, b]) for a, b in sorted(edges))
    return graph


def _without_entities(path: Path) -> None:
    """Raises ValueError for XML that defines entities: no graph needs them, and a few lines of them can stand for
    gigabytes of text or for other files."""
    from xml.parsers import expat

    def refuse(*what: object) -> None:
        raise ValueError("it defines XML entities, which no graph needs")

    parser = expat.ParserCreate()
    parser.EntityDeclHandler = refuse
    with open(path, "rb") as file:
        parser.ParseFile(file)


def _read_graph(name: str, path: Path, suffix: str, directed: bool) -> Graph:
    """The file as networkx reads it. Raises ValueError for one that it cannot read or that holds no nodes."""
    import networkx as nx

    kind = nx.MultiDiGraph if directed else nx.MultiGraph
    try:
        if suffix == ".graphml":
            _without_entities(path)
            graph = nx.read_graphml(path)
        elif suffix == ".gml":
            # networkx refuses parallel edges in a file that does not announce them, as some published maps do not
            text = path.read_text(encoding="utf-8")
            if not re.search(r"^\s*multigraph\s+1", text, re.MULTILINE):
                text = re.sub(r"\bgraph\s*\[", "graph [\n  multigraph 1", text, count=1)
            graph = nx.parse_gml(text.splitlines(), label="id")
        elif suffix == ".edgelist":
            graph = nx.read_edgelist(path, create_using=kind, data=False)
        else:
            graph = nx.read_adjlist(path, create_using=kind)
    except Exception as error:  # networkx's readers let through whatever their parsers raise
        raise ValueError(f"topology {name} cannot be read as {suffix}: {resolve.line(error)}") from error
    if not len(graph):
        raise ValueError(f"topology {name} holds no nodes; give a graph of at least one")
    return graph
