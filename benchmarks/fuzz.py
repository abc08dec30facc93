"""Claim: whatever bytes a file holds, it is read, or refused in one line; never another exception, a hang or a flood.

Every parser of files gets a small corpus of sound files, made by the code below, and inputs mutated from it: bits
flipped, bytes replaced, ends cut off, pieces taken out, doubled and swapped between files, numbers and words of the
format put in. Input i of a target with a seed follows from (seed, target, i) alone. Each target runs in a process of
its own with 1 GiB of address space beyond what it has loaded, and 10 s for an input. A fault is an exception that is
neither ValueError nor OSError, a message that is not one line, an input over its time, or a number that is not finite
in what was read. Counted are inputs read and refused, the slowest, and by how much the process grew.

    python benchmarks/fuzz.py                          # 3000 inputs a target, some minutes; results/fuzz.json
    python benchmarks/fuzz.py --targets gml --runs 500 --seed 7 --out mine.json
    python benchmarks/fuzz.py --atheris gml --seconds 60     # guided by coverage instead; pip install atheris

    target       corpus  inputs   read  refused  faults  slowest, s  grown, MB
    idx               4    3000    236     2764       0       0.087        0.0
    cifar             5    3000    788     2212       0       0.082        2.5
    schedule          4    3000    213     2787       0       0.788        0.1
    presence          4    3000    152     2848       0       0.088        0.4
    presence-csv      1    3000    276     2724       0       0.084        0.4
    trace             2    3000    319     2681       0       0.130        0.5
    speeds-csv        2    3000    948     2052       0       0.051        0.8
    speeds-json       2    3000    213     2787       0       0.019        0.0
    graphml           3    3000    349     2651       0       0.160        4.6
    gml               3    3000    292     2708       0       0.462        3.0
    edgelist          3    3000   2496      504       0       0.392        4.1
    adjlist           3    3000   2119      881       0       0.158        4.1
    checkpoint        2    3000      7     2993       0       0.082        0.4
    experiment        2    3000     46     2954       0       0.082        0.1
    roles             1    3000    200     2800       0       0.046        0.0
    roles-xz          1    3000    463     2537       0       0.052        0.0
    speeches          1    3000   1462     1538       0       0.060        0.1

The files of run and sweep folders, each damaged in a folder that is otherwise sound (fuzz_folders.py), 1000 inputs
each; read means here that it still said what it had said, or that `fedsim verify` found what was changed, or, under
sweep, that a cell whose own files make no sense runs anew:

    target            corpus  inputs   read  refused  faults  slowest, s  grown, MB
    run/metrics            1    1000    327      673       0       0.429        1.3
    run/hashes             1    1000    168      832       0       1.472        3.7
    run/times              1    1000    167      833       0       0.510        0.8
    run/clients            1    1000    228      772       0       0.490        1.2
    run/absences           1    1000    255      745       0       0.466        1.2
    run/result             1    1000    111      889       0       0.160        0.7
    run/environment        1    1000    129      871       0       0.398        0.5
    run/tune               1    1000     63      937       0       2.710        3.9
    run/experiment         1    1000    138      862       0       0.448        0.8
    run/schedule           1    1000     52      948       0       0.579        0.4
    resume/metrics         1    1000    174      826       0       0.189        0.1
    resume/hashes          1    1000    151      849       0       0.275        0.3
    resume/clients         1    1000    227      773       0       0.212        0.3
    resume/result          1    1000    107      893       0       0.163        1.0
    resume/experiment      1    1000     12      988       0       0.098        1.2
    resume/json            1    1000      3      997       0       0.129        0.0
    resume/tensors         1    1000     16      984       0       0.092        0.0
    sweep/index            1    1000    132      868       0       0.117        0.4
    sweep/cell             1    1000   1000        0       0       0.170        0.4
    sweep/result           1    1000   1000        0       0       0.160        0.3
    sweep/toml             1    1000     23      977       0       0.074        0.1

On two cores shared with other work. What it found before is mended, and tested in tests/test_bad_input.py: a trace
of hardly any length that killed the process, and damaged headers of checkpoints. Under atheris 3.0.0, 20 s each:
graphml 5165 inputs, trace 3059; experiment 2274 in 8 s; no fault.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib
import io
import json
import lzma
import pickle
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))  # where this file is loaded by its path
import fuzz_folders

ROOM = 2**30  # bytes of address space beyond what is loaded
REFUSED = "refused: "
PATIENCE = 10  # seconds for an input
IMAGES = 8  # in a batch of CIFAR-10, here


class Target(NamedTuple):
    """A parser: files that are sound, how their names end, and what reads one."""

    corpus: Callable[[], list[bytes]]
    suffix: str
    read: Callable[[Path], Any]
    words: tuple[bytes, ...] = ()


# Sound files ---------------------------------------------------------------------------------------------------------


def npy(array: Any) -> bytes:
    import numpy as np

    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def npz(**arrays: Any) -> bytes:
    import numpy as np

    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


def idx_files() -> list[bytes]:
    images = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (2, 3, 3)) + bytes(range(18))
    labels = b"\0\0\x08\x01" + (5).to_bytes(4, "big") + bytes(range(5))
    return [images, labels, gzip.compress(images, mtime=0), gzip.compress(labels, mtime=0)]


def cifar_files() -> list[bytes]:
    import numpy as np

    pixels = np.random.default_rng(0).integers(256, size=(IMAGES, 3072), dtype=np.uint8)
    table = {"data": pixels, "labels": [i + 1 for i in range(IMAGES)], "filenames": ["a.png"]}
    return [
        b"".join(bytes([i]) + row.tobytes() for i, row in enumerate(pixels)),
        *(pickle.dumps(table, protocol) for protocol in (2, 3, 4, 5)),
    ]


def schedules() -> list[bytes]:
    import dataclasses

    from fedsim.participation import Bernoulli, Everyone, PartialWork, Uniform

    with tempfile.TemporaryDirectory() as folder:
        path, found = Path(folder) / "s.npz", []
        for process in (Bernoulli(0.5), Everyone(), Uniform(2), PartialWork(Bernoulli(0.5))):
            dataclasses.replace(process.draw(4, 6, 1)).save(path)
            found.append(path.read_bytes())
        return found


def tables() -> list[bytes]:
    import numpy as np

    table = (np.arange(24).reshape(6, 4) % 3 == 0).astype(np.uint8)
    return [npy(table), npy(np.asfortranarray(table.astype(float))), npz(state=table), npz(there=table.astype(bool))]


def graphs(suffix: str) -> Callable[[], list[bytes]]:
    def made() -> list[bytes]:
        import networkx as nx

        found = []
        for graph in (
            nx.karate_club_graph(),
            nx.path_graph(3, create_using=nx.DiGraph),
            nx.MultiGraph([(0, 1), (0, 1)]),
        ):
            graph.graph["name"], graph.nodes[0]["label"], graph.nodes[0]["x"] = "small", "first", 0.5
            out = io.BytesIO()
            writer = {"graphml": nx.write_graphml, "gml": nx.write_gml, "edgelist": nx.write_edgelist}
            writer.get(suffix, nx.write_adjlist)(graph, out)
            found.append(out.getvalue()[:2000] if suffix in ("edgelist", "adjlist") else out.getvalue())
        return found

    return made


def checkpoints() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path, found = Path(folder) / "c.safetensors", []
        for t, name in enumerate(STATES):
            from fedsim.checkpoint import save_checkpoint

            save_checkpoint(path, state_of(name), t, {"label": name})
            found.append(path.read_bytes())
        return found


STATES = ("MIFA", "FedAvg")


def state_of(name: str) -> Any:
    import torch

    from fedsim import strategies

    state = getattr(strategies, name)().init(torch.arange(3.0), torch.full((4,), 0.25), 1)
    if name == "MIFA":
        state.G[torch.tensor([1, 3])] = torch.ones(2, 3)
    return state


EXPERIMENT = b"""
name = "small"
[task]
data = "digits"
clients = 6
partition = { name = "dirichlet", alpha = 0.3 }
[participation]
name = "selected"
of = { name = "bernoulli", probabilities = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6] }
k = 2
[local]
lr = 0.1
lr-schedule = { name = "cosine", rounds = 10 }
steps = 5
batch = "all"
[[strategy]]
name = "FedStale"
beta = 0.5
weights = "known"
[[strategy]]
name = "VarianceCorrection"
inner = { name = "DPSGD", mixing = "metropolis", topology = { name = "ring" } }
local = { lr = 0.2 }
[run]
rounds = 3
seeds = [1, 2]
memory = "1GiB"
"""
TUNED = b"""
task = { clients = 5 }
local = { lr = 0.1, epochs = 1, batch = 8 }
strategy = [{ name = "FedAvg", tune = { lr = [0.5, 1.0] } }, { name = "flwr:FedAdam", eta = 0.1 }]
[tune]
trials = 2
seeds = [7]
[tune.grid]
"local.lr" = [0.1, 0.3]
"""

# What reads them -----------------------------------------------------------------------------------------------------


def read_cifar(path: Path) -> Any:
    from fedsim.data import cifar

    cifar.EXAMPLES = IMAGES
    binary = path.with_suffix(".bin")
    pixels, labels = cifar.read(path.rename(binary) if path.stat().st_size == IMAGES * 3073 else path)
    assert pixels.shape == (IMAGES, 3, 32, 32)
    assert 0 <= min(labels) <= max(labels) < 10


def read_idx(path: Path) -> Any:
    from fedsim.data import idx

    return idx.read(path)


def read_schedule(path: Path) -> Any:
    from fedsim.participation import Schedule

    schedule = Schedule.load(path)
    rows = [schedule[t] for t in range(min(len(schedule), 3)) if schedule.n < 10**6]
    for row in rows:
        assert set(row.chosen.tolist()) <= set(row.available.tolist()) <= set(range(schedule.n))
    return schedule.digest()


def read_presence(path: Path) -> Any:
    from fedsim.participation import Matrix, Trace

    try:
        return Matrix(path, wrap=True).draw(4, 8, 1).rates()
    except ValueError:
        return Trace(path, step=0.5).draw(4, 8, 1).rates()


def read_speeds(path: Path) -> Any:
    from fedsim.participation.records import read_speeds as read

    return read(path)


def read_graph(path: Path) -> Any:
    from fedsim import topology

    graph = topology.read(str(path))
    assert list(graph) == list(range(len(graph)))
    assert all(a != b for a, b in graph.edges)
    topology.read(str(path), parameters={"directed": True, "component": "largest"})


def read_checkpoint(path: Path) -> Any:
    from fedsim.checkpoint import load_checkpoint

    errors = []
    for name in STATES:
        try:
            state, t, _ = load_checkpoint(path, state_of(name))
        except ValueError as error:
            errors.append(error)
        else:  # there is a digest in it: what is read is what was written
            assert t == STATES.index(name), "another round than was written"
            assert state.x.tolist() == [0.0, 1.0, 2.0], "other numbers than were written"
    if len(errors) == len(STATES):
        raise errors[0]


def read_experiment(path: Path) -> Any:
    from fedsim.experiment import reading

    document = reading.read(path)
    task = document.get("task", {})
    if isinstance(task, dict) and isinstance(task.get("clients"), int) and task["clients"] > 1000:
        raise ValueError("asks for as much as it says")
    made = reading.load(path)
    return made.toml()


def read_roles(path: Path) -> Any:
    from fedsim.data import shakespeare

    return [shakespeare.coded(text) for text in shakespeare.by_role(path)]


def read_speeches(path: Path) -> Any:
    from fedsim.data import shakespeare

    return [shakespeare.coded(text) for text in shakespeare.by_speaker(path)]


NUMBERS = (b"0", b"-1", b"1e308", b"1e-308", b"nan", b"inf", b"9999999999999999999999", b"0.1", b"255", b"2147483648")
XML = (b"<!ENTITY a 'b'>", b"&a;", b"<node/>", b"<![CDATA[", b"&#0;", b"key=", b"<graph>", b"double", b"long")
GML = (
    b"[",
    b"]",
    b"node [",
    b"id",
    b"source",
    b"backend",
    b"incoming_graph_data",
    b'"',
    b"&#60;",
    b"graph [",
    *NUMBERS,
)
TOML = (b"[", b"]", b"{", b"}", b'"', b"=", b"[[", b"name", b"../x", b"/x", b"true", b"inner = ", b"\xff", *NUMBERS)
HEADER = (b"descr", b"shape", b"(99999999999,)", b"'|O'", b"'<f8'", b"'<U5'", b"\x93NUMPY\x03\0", b"PK\x03\x04")
PICKLE = (b"cos\nsystem\n", b"R", b"\x93", b"b", b"(", b"t.", b"\x81", b"q\0", b"h\0", b"}")
INTERVALS = b"client,from,to\na,0,3\nb,1,2.5\na,4,6\n"
TARGETS: dict[str, Target] = {
    "idx": Target(idx_files, "-ubyte", read_idx, (b"\x1f\x8b", b"\xff\xff\xff\xff")),
    "cifar": Target(cifar_files, "", read_cifar, PICKLE),
    "schedule": Target(schedules, ".npz", read_schedule, HEADER),
    "presence": Target(tables, ".npz", read_presence, HEADER),
    "presence-csv": Target(lambda: [b"0,1,1,0\n1,1,1,255\n0,0,0,1\n"], ".csv", read_presence, (b",", b"\0", *NUMBERS)),
    "trace": Target(lambda: [INTERVALS, INTERVALS.replace(b"\n", b"\r\n")], ".csv", read_presence, (b'"', *NUMBERS)),
    "speeds-csv": Target(
        lambda: [b"1\n2.5\n", b"device,speed\na,1\nb,3\n"], ".csv", read_speeds, (b'"', b"\0", *NUMBERS)
    ),
    "speeds-json": Target(
        lambda: [b"[1, 2.5]", b'{"a": {"speed": 1}}'], ".json", read_speeds, (b"[" * 9, b"{", *NUMBERS)
    ),
    "graphml": Target(graphs("graphml"), ".graphml", read_graph, (*XML, *NUMBERS)),
    "gml": Target(graphs("gml"), ".gml", read_graph, GML),
    "edgelist": Target(graphs("edgelist"), ".edgelist", read_graph, (b"#", b" ", b"\n", *NUMBERS)),
    "adjlist": Target(graphs("adjlist"), ".adjlist", read_graph, (b"#", b" ", b"\n", *NUMBERS)),
    "checkpoint": Target(checkpoints, ".safetensors", read_checkpoint, (b'"F64"', b"null", b"{}", b"\\", *NUMBERS)),
    "experiment": Target(lambda: [EXPERIMENT, TUNED], ".toml", read_experiment, TOML),
    "roles": Target(lambda: [b'{"text": "To be"}\n{"text": ""}\n'], ".jsonl", read_roles, (b"[" * 9, b'"', *NUMBERS)),
    "roles-xz": Target(lambda: [lzma.compress(b'{"text": "To be"}\n')], ".jsonl.xz", read_roles),
    "speeches": Target(lambda: [b"HAMLET:\nTo be\n\nA:\nWell\n"], ".txt", read_speeches, (b"\n\n", b":", b"\xff")),
}

TARGETS |= {
    name: Target(fuzz_folders.corpus(file, of), Path(file).suffix, read, words)
    for name, (file, of, read, words) in fuzz_folders.FOLDERS.items()
}

# Mutation ------------------------------------------------------------------------------------------------------------


def mutated(corpus: list[bytes], words: tuple[bytes, ...], draw: random.Random) -> bytes:
    """A file of the corpus with one to four things done to it."""
    data = bytearray(draw.choice(corpus))
    for _ in range(draw.choice((1, 1, 1, 2, 3, 4))):
        at = draw.randrange(len(data) + 1)
        length = draw.choice((1, 2, 4, 16, len(data) // 4 + 1))
        what = draw.randrange(8)
        if what == 0 and data:
            data[at % len(data)] ^= 1 << draw.randrange(8)
        elif what == 1 and data:
            data[at % len(data)] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
        elif what == 2:
            del data[at:]
        elif what == 3:
            del data[at : at + length]
        elif what == 4:
            data[at:at] = data[at : at + length] * draw.choice((1, 2, 50))
        elif what == 5:
            other = draw.choice(corpus)
            begin = draw.randrange(len(other) + 1)
            data[at : at + length] = other[begin : begin + length]
        elif what == 6 and words:
            data[at:at] = draw.choice(words)
        elif words:
            word = draw.choice(words)
            data[at : at + len(word)] = word
    return bytes(data[: 2**20])


class Late(BaseException):
    """An input takes too long."""


def _late(*what: object) -> None:
    raise Late


def tried(target: Target, data: bytes, folder: Path, patience: int = PATIENCE) -> str | None:
    """Reads the input; None where that went well, "refused: ..." or a fault in words otherwise."""
    path = folder / f"input{target.suffix}"
    path.write_bytes(data)
    signal.alarm(patience)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(path)
    except (ValueError, OSError) as error:
        said = str(error)
        plain = said.strip() and "\n" not in said
        return f"{REFUSED}{said}" if plain else f"its refusal is not one line: {said[:200]!r}"
    except Late:
        return f"takes more than {patience} s"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.alarm(0)
    return None


def memory() -> int:
    """The most bytes that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def shrunk(target: Target, data: bytes, fault: str, folder: Path) -> bytes:
    """A smaller input with the same fault, found by taking pieces out."""
    size, until = len(data) // 2, time.monotonic() + 20
    while size and time.monotonic() < until:
        at = 0
        while at < len(data) and time.monotonic() < until:
            smaller = data[:at] + data[at + size :]
            found = tried(target, smaller, folder)
            if found and found.split(":")[0] == fault.split(":")[0]:
                data = smaller
            else:
                at += size
        size //= 2
    return data


def child(name: str, runs: int, seed: int) -> dict[str, Any]:
    """One target in this process, which is bounded from here on."""
    target = TARGETS[name]
    corpus = target.corpus()
    signal.signal(signal.SIGALRM, _late)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for data in corpus:  # loads everything there is to load, and has to be sound
            fault = tried(target, data, folder, 20 * PATIENCE)
            if fault is not None:
                raise SystemExit(f"{name}: a sound file is not read: {fault}")
        now = int(
            next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmSize" in line).split()[1]
        )
        resource.setrlimit(resource.RLIMIT_AS, (now * 1024 + ROOM, now * 1024 + ROOM))
        before, begin = memory(), time.perf_counter()
        read = refused = 0
        slowest = 0.0
        faults: dict[str, dict[str, Any]] = {}
        for i in range(runs):
            data = mutated(corpus, target.words, random.Random(f"{seed} {name} {i}"))
            start = time.perf_counter()
            fault = tried(target, data, folder)
            slowest = max(slowest, time.perf_counter() - start)
            read, refused = read + (fault is None), refused + bool(fault and fault.startswith(REFUSED))
            if fault and not fault.startswith(REFUSED):
                known = faults.setdefault(fault.split(":")[0], {"fault": fault, "times": 0, "input": None})
                known["times"] += 1
                known["input"] = known["input"] or shrunk(target, data, fault, folder).hex()
    digest = hashlib.sha256(b"".join(len(data).to_bytes(8, "big") + data for data in corpus)).hexdigest()[:16]
    return {
        "target": name,
        "corpus": {"files": len(corpus), "bytes": sum(map(len, corpus)), "sha256": digest},
        "inputs": runs,
        "read": read,
        "refused": refused,
        "faults": list(faults.values()),
        "seconds": round(time.perf_counter() - begin, 2),
        "slowest": round(slowest, 3),
        "grown_mb": round((memory() - before) / 1e6, 1),
    }


def guided(name: str, seconds: int) -> None:
    """A target under atheris, which looks for inputs that reach new code; a fault ends it with the input's place."""
    import atheris

    with atheris.instrument_imports(include=["fedsim", "networkx"]):
        for module in (
            "checkpoint",
            "data",
            "data.cifar",
            "data.shakespeare",
            "experiment",
            "participation",
            "topology",
        ):
            importlib.import_module(f"fedsim.{module}")
        importlib.import_module("networkx")
    target = TARGETS[name]
    signal.signal(signal.SIGALRM, _late)
    with tempfile.TemporaryDirectory() as place:
        folder, corpus = Path(place), Path(place) / "corpus"
        corpus.mkdir()
        for i, data in enumerate(target.corpus()):
            (corpus / str(i)).write_bytes(data)

        def one(data: bytes) -> None:
            fault = tried(target, data, folder)
            if fault and not fault.startswith(REFUSED):
                raise AssertionError(fault)

        atheris.Setup([sys.argv[0], str(corpus), f"-max_total_time={seconds}", "-rss_limit_mb=4096"], one)
        atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--runs", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "fuzz.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--atheris", metavar="TARGET")
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child, options.runs, options.seed)))
        return
    if options.atheris:
        guided(options.atheris, options.seconds)
        return
    found = []
    for name in options.targets.split(","):
        command = [sys.executable, __file__, "--child", name, "--runs", str(options.runs), "--seed", str(options.seed)]
        out = subprocess.run(command, capture_output=True, text=True)
        if out.returncode:
            raise SystemExit(f"{name}: ended with {out.returncode}: {out.stderr[-2000:]}")
        entry = json.loads(out.stdout)
        found.append(entry)
        line = f"{name:<18}{entry['inputs']:>7}{entry['read']:>7}{entry['refused']:>9}{len(entry['faults']):>8}"
        print(f"{line}{entry['slowest']:>9.3f}{entry['grown_mb']:>8.1f}", flush=True)
        for fault in entry["faults"]:
            print(f"    {fault['times']} x {fault['fault']}  {fault['input'][:200]}")
    options.out.write_text(json.dumps({"seed": options.seed, "targets": found}, indent=1) + "\n")
    if any(entry["faults"] for entry in found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
