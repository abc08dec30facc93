"""Whatever a file says, it is a valid object or one clear line; archives that are bombs, and paths that lead out."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import math
import random
import struct
import tomllib
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import networkx as nx
import numpy as np
import pytest
import torch
from helpers import load_benchmark
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from test_benchmarks import FOLDER

from fedsim import guarded, topology
from fedsim.checkpoint import load_checkpoint, save_checkpoint
from fedsim.data import idx, shakespeare
from fedsim.experiment import load, parse
from fedsim.participation import Bernoulli, Lists, Schedule, Trace
from fedsim.participation.records import read_intervals, read_speeds, read_table

few = settings(max_examples=30, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def refused(read: Callable[[], Any]) -> Any:
    """What is read; None where it is refused in one line. Every other exception is one."""
    said = ""
    try:
        return read()
    except (ValueError, OSError) as error:
        said = str(error)
    assert said.strip()
    assert "\n" not in said
    return None


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bad")


# Experiments ---------------------------------------------------------------------------------------------------------

DOCUMENT: dict[str, Any] = {
    "name": "small",
    "task": {"data": "digits", "clients": 6, "partition": {"name": "dirichlet", "alpha": 0.3}},
    "participation": {"name": "selected", "of": {"name": "bernoulli", "probabilities": 0.5}, "k": 2},
    "local": {"lr": 0.1, "lr-schedule": {"name": "cosine", "rounds": 10}, "steps": 5, "batch": "all"},
    "strategy": [
        {"name": "FedStale", "beta": 0.5, "weights": "known"},
        {"name": "DPSGD", "mixing": "metropolis", "topology": {"name": "ring"}, "local": {"lr": 0.2}},
    ],
    "run": {"rounds": 3, "seeds": [1, 2], "memory": "1GiB"},
}


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where there is anything in a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, item in items for path in paths(item, (*at, key)))] if at else [
        path for key, item in items for path in paths(item, (key,))
    ]  # fmt: skip


anything = st.recursive(
    st.integers(-5, 2000) | st.integers() | st.floats() | st.booleans() | st.text(max_size=8)
    | st.sampled_from(["ring", "FedAvg", "../x", "/x", "mine.py:A", "flwr:FedAvg", "1GiB", "auto", "all", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "k", "x"]), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip


@settings(few, max_examples=150)
@given(path=st.sampled_from(paths(DOCUMENT)), value=anything, drop=st.booleans())
@example(path=("run", "rounds"), value=10**400, drop=False)
@example(path=("participation", "k"), value=float("nan"), drop=False)
def test_an_experiment_is_read_or_refused_and_what_is_read_is_written_and_read_again(
    path: tuple[Any, ...], value: Any, drop: bool
) -> None:
    document = json.loads(json.dumps(DOCUMENT))
    inside = document
    for key in path[:-1]:
        inside = inside[key]
    if drop:
        del inside[path[-1]]
    else:
        inside[path[-1]] = value
    made = refused(lambda: parse(document))
    if made is not None:
        again = parse(tomllib.loads(made.toml()))
        assert again.document() == made.document()


@settings(few, max_examples=60)
@given(text=st.text(max_size=80) | st.binary(max_size=80))
@example(text="a = " + "[" * 100_000)
@example(text="a = " + "{b=" * 50_000)
@example(text="[local]\nlr = 1" + "0" * 5000)
def test_any_text_as_an_experiment(text: str | bytes, place: Path) -> None:
    path = place / "any.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    assert refused(lambda: load(path)) is None  # nothing at random has a [local] and a [[strategy]]


@pytest.mark.parametrize("name", ["../out", "a/b", "..", ".hidden", "a\\b", "C:x", "a\0b", "", "a\nb"])
def test_an_experiments_name_leads_nowhere(name: str) -> None:
    with pytest.raises(ValueError, match="name must do as part of a folder's name"):
        parse(DOCUMENT | {"name": name})


def test_a_run_writes_into_its_folder_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its strategies are called, its tables, figures and report are in the run folder."""
    from fedsim.cli import main

    inner = tmp_path / "here" / "deeper"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    labels = ["../../evil", str(tmp_path / "evil")]
    document = DOCUMENT | {
        "strategy": [{"name": "FedAvg", "label": label} for label in labels],
        "participation": "everyone",
        "run": {"rounds": 1, "device": "cpu", "threads": 1},
    }
    made = parse(document)
    (inner / "e.toml").write_text(made.toml())
    with pytest.raises(SystemExit) as left:
        main(["run", "e.toml", "--out", "out", "-q"])
    assert not left.value.code
    written = {path.relative_to(inner).parts[0] for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {"e.toml", "out"}
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


# Schedules and traces ------------------------------------------------------------------------------------------------

numbers = st.integers(-3, 12) | st.sampled_from([2**31, -(2**40), 2**63 - 1])
lists = st.lists(numbers, max_size=8).map(lambda values: np.array(values, dtype=np.int64)) | hnp.arrays(
    st.sampled_from([np.int32, np.float64, np.bool_]), hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=4)
)


@st.composite
def nearly_sound(draw: Any) -> dict[str, Any]:
    """A schedule's parts: sound, or with one of them put out of order."""
    n, rounds = draw(st.integers(1, 4)), draw(st.integers(0, 4))
    rows = [sorted(draw(st.sets(st.integers(0, n - 1)))) for _ in range(rounds)]
    entries = sum(map(len, rows))
    parts = {
        "n": n,
        "rounds": rounds,
        "first": np.cumsum([0, *map(len, rows)]),
        "clients": np.array([i for row in rows for i in row], dtype=draw(st.sampled_from([np.int32, np.int64]))),
        "effort": draw(st.none() | hnp.arrays(np.float32, entries, elements=st.floats(0, 1, width=32))),
        "probabilities": draw(st.none() | hnp.arrays(np.float64, n, elements=st.floats(0, 1))),
    }
    name = draw(st.sampled_from([None, None, *parts]))
    if name in ("n", "rounds"):
        parts[name] = draw(numbers)
    elif name is not None and parts[name] is not None and len(parts[name]):
        array = parts[name].copy()
        array[draw(st.integers(0, len(array) - 1))] = draw(st.integers(-1, 5))
        parts[name] = array if draw(st.booleans()) else array[:-1]
    return parts


@settings(few, max_examples=100)
@given(parts=nearly_sound())
def test_a_schedule_is_what_it_was_made_of_or_refused(parts: dict[str, Any], place: Path) -> None:
    n, rounds, first, clients, effort, probabilities = parts.values()
    made = refused(lambda: Schedule(n, rounds, Lists(first, clients), "everyone", effort, probabilities))
    if made is not None:
        assert [made[t].chosen.tolist() for t in range(rounds)] == [
            clients[first[t] : first[t + 1]].tolist() for t in range(rounds)
        ]
        made.save(place / "s.npz")
        assert Schedule.load(place / "s.npz").digest() == made.digest()


@settings(few, max_examples=100)
@given(n=numbers, rounds=numbers, first=lists, clients=lists, effort=st.none() | lists, probabilities=st.none() | lists)
@example(
    n=3, rounds=1, first=np.array([0.0, 1.0]), clients=np.array([1.5]), effort=None, probabilities=None
)  # client one and a half
@example(n=3, rounds=1, first=np.array([0, 2]), clients=np.eye(2, dtype=np.int64), effort=None, probabilities=None)
def test_anything_at_all_as_a_schedule(
    n: int, rounds: int, first: Any, clients: Any, effort: Any, probabilities: Any
) -> None:
    made = refused(lambda: Schedule(n, rounds, Lists(first, clients), "everyone", effort, probabilities))
    for t in range(0 if made is None else min(rounds, 10)):
        chosen = made[t].chosen.tolist()
        assert chosen == sorted(set(chosen) & set(range(n)))


def in_order(interval: tuple[str, float, float]) -> tuple[str, float, float]:
    return interval[0], min(interval[1:]), max(interval[1:])


times = st.floats(0, 20) | st.floats(min_value=0, allow_nan=False, allow_infinity=False)


@settings(few, max_examples=100)
@given(
    intervals=st.lists(st.tuples(st.sampled_from("ab"), times, times).map(in_order), max_size=5),
    step=st.floats(0.1, 3) | times, start=st.floats(0, 9) | times,
)  # fmt: skip
@example(intervals=[("a", 0.0, 5e-324)], step=1.0, start=0.0)  # a record that lasts nothing
@example(intervals=[("a", 0.0, 1.0), ("b", 0.0, 1.7e308)], step=5e-324, start=0.0)
@example(intervals=[("a", 0.0, 1.0)], step=1.0, start=1.7e308)
def test_a_trace_is_replayed_or_refused(intervals: Any, step: float, start: float, place: Path) -> None:
    path = place / "t.csv"
    path.write_text("client,from,to\n" + "".join(f"{d},{a!r},{b!r}\n" for d, a, b in intervals))
    made = refused(lambda: Trace(path, step=step, start=start).draw(3, 4, 1))
    if made is not None:
        spells = read_intervals(path)
        assert spells is not None
        for t in range(4):  # one client after another, one spell after another
            now = (start + t * step) % spells.span
            inside = [(spells.begin <= now) & (now < spells.end) & (spells.device == d) for d in range(spells.devices)]
            if start + 4 * step < 1e6 * spells.span < 1e12 and spells.span > 1e-6:  # within what rounding leaves
                near = min(np.abs(np.concatenate([spells.begin, spells.end]) - now).min(), spells.span - now, now)
                if near > 1e-6 * max(step, spells.span):
                    assert len(made[t].chosen) in _shares(sum(map(np.any, inside)), spells.devices)


def _shares(there: int, devices: int) -> set[int]:
    """How many of 3 clients may be there when so many of the devices are, every device taken as often as can be."""
    each = [3 // devices, -(-3 // devices)]
    return {low for low in range(4) if there * each[0] <= low <= there * each[1]}


# Graphs --------------------------------------------------------------------------------------------------------------

names = st.text(st.characters(codec="ascii", min_codepoint=33), min_size=1, max_size=6) | st.integers(-3, 20).map(str)
keys = st.sampled_from(["label", "name", "backend", "incoming_graph_data", "node_for_adding", "x", "multigraph", "id"])
values = st.integers(-5, 5) | st.floats(-1, 1) | st.text(st.characters(codec="ascii", min_codepoint=32), max_size=5)


@settings(few, max_examples=80)
@given(
    edges=st.lists(st.tuples(names, names), min_size=1, max_size=6), directed=st.booleans(),
    attributes=st.dictionaries(keys, values, max_size=3),
    kind=st.sampled_from(["graphml", "gml", "edgelist", "adjlist"]),
)  # fmt: skip
@example(edges=[("a", "b")], directed=False, attributes={"incoming_graph_data": 1}, kind="gml")
@example(edges=[("a", "b")], directed=False, attributes={"backend": "x"}, kind="graphml")
@example(edges=[("a", "b")], directed=True, attributes={"node_for_adding": 1, "name": 2}, kind="gml")
@example(edges=[("1" * 5000, "2")], directed=False, attributes={}, kind="edgelist")
def test_a_graph_is_read_as_it_was_written_or_refused(
    edges: Any, directed: bool, attributes: Any, kind: str, place: Path
) -> None:
    graph = (nx.DiGraph if directed else nx.Graph)(edges)
    graph.graph.update(attributes)
    for node in graph:
        graph.nodes[node].update(attributes)
    path = place / f"g.{kind}"
    try:
        getattr(nx, f"write_{kind}")(graph, path)
    except Exception:  # networkx cannot write everything either
        return
    found = refused(lambda: topology.read(str(path)))
    if found is not None:
        assert list(found) == list(range(len(found)))
        assert not nx.number_of_selfloops(found)
        plain = " ".join(f"{a}{b}" for a, b in edges).isalnum()
        if kind in ("graphml", "gml") or plain:  # the lists have no quotes: names with # or spaces say something else
            assert len(found) == len(graph)
            assert found.number_of_edges() == len({frozenset(edge) for edge in graph.edges if edge[0] != edge[1]})


def test_a_graph_file_may_call_its_attributes_what_it_likes(tmp_path: Path) -> None:
    path = tmp_path / "g.gml"
    path.write_text("graph [ backend 1 incoming_graph_data 2 node [ id 0 ] node [ id 1 node_for_adding 3 ] ]")
    assert refused(lambda: topology.read(str(path))) is None  # networkx itself will not have it
    path.write_text("graph [ backend 1 incoming_graph_data 2 node [ id 0 ] ]")
    graph = topology.read(str(path))
    assert (graph.graph["backend"], graph.graph["incoming_graph_data"]) == (1, 2)


LAUGHS = '<!DOCTYPE l [<!ENTITY a "lol">' + "".join(
    f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9)
)


@pytest.mark.parametrize("head", [
    LAUGHS + "]>", '<!DOCTYPE g [<!ENTITY f SYSTEM "file:///etc/passwd">]>',
    '<!DOCTYPE g [<!ENTITY % p SYSTEM "http://localhost:1/x"> %p;]>',
], ids=["billion laughs", "file", "network"])  # fmt: skip
def test_xml_that_defines_entities_is_refused(head: str, tmp_path: Path) -> None:
    graph = (
        '<graphml xmlns="http://graphml.graphdrawing.org/xmlns"><graph edgedefault="undirected">{}</graph></graphml>'
    )
    body = graph.format('<node id="&j;"/><node id="b"/><edge source="&j;" target="b"/>')
    path = tmp_path / "g.graphml"
    path.write_text(f'<?xml version="1.0"?>{head}{body}')
    with pytest.raises(ValueError, match=r"cannot be read as \.graphml: ValueError: it defines XML entities"):
        topology.read(str(path))
    path.write_text(f'<?xml version="1.0"?><!DOCTYPE graphml>{body.replace("&j;", "a")}')
    assert len(topology.read(str(path))) == 2
    path.write_text("<graphml>" + "<a>" * 200_000)
    with pytest.raises(ValueError, match=r"cannot be read as \.graphml"):
        topology.read(str(path))


# Data files and checkpoints ------------------------------------------------------------------------------------------


@settings(few, max_examples=80)
@given(
    head=st.sampled_from([b"\0\0\x08\x02", b"\0\0\x08\x01"]) | st.binary(max_size=4),
    shape=st.lists(st.integers(0, 3), max_size=3) | st.lists(st.integers(0, 2**32 - 1), max_size=4),
    body=st.none() | st.none() | st.binary(max_size=40), zipped=st.booleans(),
)  # fmt: skip
@example(head=b"\0\0\x08\x02", shape=[3, 4], body=bytes(range(12)), zipped=True)
@example(head=b"\0\0\x08\x04", shape=[2**32 - 1] * 4, body=b"", zipped=False)
def test_an_idx_file_is_its_array_or_refused(
    head: bytes, shape: list[int], body: bytes | None, zipped: bool, place: Path
) -> None:
    head = b"\0\0\x08" + bytes([len(shape)]) if head[:3] == b"\0\0\x08" else head
    body = bytes(range(min(math.prod(shape), 99))) if body is None else body
    content = head + b"".join(n.to_bytes(4, "big") for n in shape) + body
    (place / "x").write_bytes(gzip.compress(content) if zipped else content)
    found = refused(lambda: idx.read(place / "x"))
    if found is not None:
        assert found.tobytes() == content[4 + 4 * content[3] :]


plain_arrays = hnp.arrays(
    hnp.boolean_dtypes() | hnp.integer_dtypes() | hnp.floating_dtypes() | hnp.scalar_dtypes(),
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=3) | hnp.array_shapes(min_dims=0, max_dims=3, min_side=0),
)


@settings(few, max_examples=80)
@given(table=plain_arrays, named=st.sampled_from(["state", "there", "npy"]), fortran=st.booleans())
def test_a_table_of_presence_is_its_numbers_or_refused(table: Any, named: str, fortran: bool, place: Path) -> None:
    path = place / ("t.npy" if named == "npy" else "t.npz")
    table = np.asfortranarray(table) if fortran else table
    if named == "npy":
        np.save(path, table)
    else:
        np.savez_compressed(path, **{named: table})
    found = refused(lambda: read_table(path))
    if found is not None:
        assert found.dtype == table.dtype
        assert np.array_equal(found, table, equal_nan=table.dtype.kind == "f")
    else:
        assert table.ndim != 2 or not table.size or table.dtype.kind not in "buif"


@settings(few, max_examples=60)
@given(text=st.text(max_size=40))
@example(text="[" * 100_000)
@example(text='{"a": {"speed": ' + "1" * 400 + "}}")
@example(text='"' + "a" * 200_000)
@example(text='{"text": ' + "[" * 100_000)
def test_any_text_as_speeds_intervals_and_roles(text: str, place: Path) -> None:
    readers: tuple[tuple[str, Callable[[Path], Any]], ...] = (
        ("a.json", read_speeds),
        ("a.csv", read_speeds),
        ("a.csv", read_intervals),
        ("a.csv", read_table),
        ("a.jsonl", shakespeare.by_role),
        ("a.txt", shakespeare.by_speaker),
    )
    for name, read in readers:
        (place / name).write_text(text, encoding="utf-8", errors="surrogatepass")
        refused(lambda read=read, name=name: read(place / name))


class Inner(NamedTuple):
    count: int
    word: str | None
    y: torch.Tensor


class State(NamedTuple):
    x: torch.Tensor
    inner: Inner
    many: tuple[Any, ...]


tensors = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.int64, np.bool_]), hnp.array_shapes(min_dims=0, max_dims=2, min_side=0)
).map(torch.from_numpy)
states = st.builds(
    State, tensors, st.builds(Inner, st.integers(-(2**60), 2**60), st.none() | st.text(), tensors), st.tuples(tensors)
)


@settings(few, max_examples=50)
@given(state=states, t=st.integers(0, 2**31), at=st.integers(0, 10**6), bit=st.integers(0, 7), cut=st.booleans())
def test_a_checkpoint_is_its_state_and_with_a_bit_flipped_or_its_end_cut_off_refused(
    state: State, t: int, at: int, bit: int, cut: bool, place: Path
) -> None:
    path = place / "c.safetensors"
    save_checkpoint(path, state, t, {"label": "x"})
    found, round, meta = load_checkpoint(path, state)
    assert (round, meta, type(found)) == (t, {"label": "x"}, State)

    def flat(state: State) -> list[Any]:
        return [state.x, state.inner.y, *state.many]

    for one, other in zip(flat(found), flat(state), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one.view(-1), other.view(-1)) or one.numpy().tobytes() == other.numpy().tobytes()
    assert found.inner[:2] == state.inner[:2]
    data = bytearray(path.read_bytes())
    at %= len(data)
    if cut:
        del data[at:]
    else:
        data[at] ^= 1 << bit
    path.write_bytes(data)
    spoilt = refused(lambda: load_checkpoint(path, state))
    if spoilt is not None:  # the bit was one that says nothing, as in the name of the digest
        assert spoilt[1] == t
        assert all(
            a.numpy().tobytes() == b.numpy().tobytes() for a, b in zip(flat(spoilt[0]), flat(state), strict=True)
        )


# Bombs ---------------------------------------------------------------------------------------------------------------


def lying(member: bytes, says: int) -> bytes:
    """A zip archive whose only member says that it unpacks to so many bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("state.npy", member)
    data = bytearray(out.getvalue())
    for mark, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = data.find(mark) + offset
        data[at : at + 4] = struct.pack("<I", says)
    return bytes(data)


def npy_of(shape: str, body: bytes = b"") -> bytes:
    head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(head)) + head + body


def test_archives_that_are_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpacked they would be 64 MB; refused, they never take more than a few."""
    monkeypatch.setattr(guarded, "ROOM", 2**20)
    monkeypatch.setattr(guarded, "TIMES", 1)
    zeros = bytes(2**26)
    table = npy_of(f"({2**13}, {2**13})", zeros)
    bombs: dict[str, tuple[bytes, Callable[[Path], Any], str]] = {
        "x-ubyte": (
            gzip.compress(b"\0\0\x08\x01" + (2**26).to_bytes(4, "big") + zeros),
            idx.read,
            "unpack to more than",
        ),
        "roles.jsonl.xz": (lzma.compress(zeros), shakespeare.by_role, "unpack to more than"),
        "zip.npz": (lying(table, len(table)), read_table, "unpack to 67108992, as no recorded presence does"),
        "schedule.npz": (lying(table, len(table)), Schedule.load, "unpack to 67108992, as no recorded presence does"),
        "lying.npz": (lying(table, 200), read_table, "it is damaged .BadZipFile"),
        "header.npy": (npy_of("(99999999999, 99999999999)"), read_table, "promises 9999999999800000000001 bytes"),
        "negative.npy": (npy_of("(-1, -4)", bytes(4)), read_table, "promises 4 bytes"),
    }
    del zeros, table
    for name, (content, read, text) in bombs.items():
        path = tmp_path / name
        path.write_bytes(content)
        tracemalloc.start()
        try:
            with pytest.raises(ValueError, match=text):
                read(path)
            assert tracemalloc.get_traced_memory()[1] < 2**24, name
        finally:
            tracemalloc.stop()


def test_no_object_is_unpickled(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "evil",))

    for name, save in (("o.npy", np.save), ("o.npz", lambda path, o: np.savez(path, state=o))):
        save(tmp_path / name, np.array([[Evil()]], dtype=object))
        with pytest.raises(ValueError, match="holds object, which are no plain numbers"):
            read_table(tmp_path / name)
    assert not (tmp_path / "evil").exists()


# What fuzzing found --------------------------------------------------------------------------------------------------


def test_a_trace_of_no_length_to_speak_of(tmp_path: Path) -> None:
    """It used to be gone through 10^300 times, until the process died."""
    path = tmp_path / "t.csv"
    path.write_text("client,from,to\na,0,1e-300\n")
    with pytest.raises(ValueError, match="almost all of its spells fall between rounds; lower step or start"):
        Trace(path).draw(3, 8, 1)
    path.write_text("client,from,to\na,0,0.001\nb,0.5,1\n")  # a spell that no round meets is no mistake
    assert Trace(path, step=0.25).draw(2, 8, 1).rates().tolist() in ([0.25, 0.5], [0.5, 0.25])


def test_a_checkpoint_whose_header_is_damaged(tmp_path: Path) -> None:
    state = State(torch.zeros(2), Inner(1, None, torch.ones(1)), (torch.ones(1),))
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, state, 3)
    whole = path.read_bytes()
    changes = [("state.x", "statenx"), ("structure", "strukture"), ("format", "fxrmat"), ("tuple", "tuqle"),
               ('format\\": 1', 'format\\": 2'), ('\\"t\\": 3', '\\"t\\": 4')]  # fmt: skip
    for old, new in ((a.encode(), b.encode()) for a, b in changes):
        assert old in whole
        path.write_bytes(whole.replace(old, new, 1))
        with pytest.raises(ValueError, match=r"is damaged|is not a checkpoint|format 2"):
            load_checkpoint(path, state)


def test_the_fuzzer_tells_faults_from_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz = load_benchmark("fuzz")

    def reads(error: BaseException | None) -> Any:
        def read(path: Path) -> None:
            if error is not None:
                raise error

        return fuzz.Target(list, ".x", read)

    assert fuzz.tried(reads(None), b"", tmp_path) is None
    assert fuzz.tried(reads(ValueError("no")), b"", tmp_path) == "refused: no"
    assert fuzz.tried(reads(ValueError("no\nno")), b"", tmp_path).startswith("its refusal is not one line")
    assert fuzz.tried(reads(ValueError()), b"", tmp_path).startswith("its refusal is not one line")
    assert fuzz.tried(reads(KeyError("a")), b"", tmp_path) == "KeyError: 'a'"
    assert fuzz.tried(reads(fuzz.Late()), b"", tmp_path) == "takes more than 10 s"
    target = fuzz.Target(list, ".x", lambda path: {}[path.read_bytes()[3]] if b"bad" in path.read_bytes() else None)
    assert fuzz.shrunk(target, b"some bad thing", "KeyError: 98", tmp_path) in (b"bads", b"badg", b"bad ", b" bad")


def test_the_committed_fuzzing_is_of_today_s_parsers_and_a_slice_of_it_finds_the_same(tmp_path: Path) -> None:
    fuzz = load_benchmark("fuzz")
    committed = json.loads((FOLDER / "results" / "fuzz.json").read_text())["targets"]
    assert [entry["target"] for entry in committed] == list(fuzz.TARGETS)
    assert all(not entry["faults"] and entry["inputs"] == entry["read"] + entry["refused"] for entry in committed)
    for name in ("idx", "trace", "gml", "experiment"):
        target, corpus = fuzz.TARGETS[name], fuzz.TARGETS[name].corpus()
        for i in range(40):
            data = fuzz.mutated(corpus, target.words, random.Random(f"1 {name} {i}"))
            fault = fuzz.tried(target, data, tmp_path)
            assert fault is None or fault.startswith(fuzz.REFUSED), (name, i, fault)


def test_a_schedule_that_was_drawn_is_read_again(tmp_path: Path) -> None:
    """So that what is refused above is refused for what it is."""
    drawn = Bernoulli(0.5).draw(5, 6, 1)
    drawn.save(tmp_path / "s.npz")
    assert Schedule.load(tmp_path / "s.npz").digest() == drawn.digest()
