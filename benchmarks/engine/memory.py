"""What it costs that memory goes back to the system between steps, and what keeping it or large pages save.

A tensor of some megabytes is a mapping of its own in glibc's malloc: let go of, it goes back to the system, and the
next one is mapped page by page, each cleared by the kernel. Ways around that, all without a line of code of whoever is
measured:

    as it comes     glibc's defaults
    pages kept      MALLOC_MMAP_THRESHOLD_ 32 MB (the largest), MALLOC_TRIM_THRESHOLD_, MALLOC_TOP_PAD_: up to 32 MB
                    nothing is mapped apart, and nothing goes back
    all kept        MALLOC_MMAP_MAX_=0 beside these: nothing of any size does
    mallopt         "pages kept" by calls from inside the process, through ctypes, before torch is imported
    hugetlb         GLIBC_TUNABLES=glibc.malloc.hugetlb=1: malloc asks for large pages (2 MB) wherever it can
    large pages     THP_MEM_ALLOC_ENABLE=1: torch asks for large pages for tensors of 2 MB and more

Plain PyTorch and fedsim, one thread each, on W1 to W4 of `fedsim bench`, every contender in every way a process of its
own; all take turns, round by round, in an order that shifts. CPU seconds a round, median, and each way's ratio to "as
it comes", median over the rounds and their middle half; and peak memory. `kernels`: copying a table to new memory, and
mixing the models of 10,000 nodes, in the same ways.

    python benchmarks/engine/memory.py        # some four minutes; results/memory.json, told of in NOTES.md
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import fedsim
from fedsim.bench import race, rivals, turns, workloads, world

RESULTS = Path(__file__).parent / "results" / "memory.json"
MALLOPT = {"M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_TOP_PAD": (-2, 64 * 2**20), "M_MMAP_THRESHOLD": (-3, 32 * 2**20)}
WAYS: dict[str, dict[str, str]] = {
    "as it comes": {},
    "pages kept": rivals.KEPT,
    "all kept": rivals.KEPT | {"MALLOC_MMAP_MAX_": "0"},
    "mallopt": {},
    "hugetlb": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
    "large pages": {"THP_MEM_ALLOC_ENABLE": "1"},
}
CONTENDERS = {"plain": rivals.RIVALS["plain"], "fedsim": rivals.OURS}


def prelude(way: str) -> list[str]:
    """What stands between Python and a script, so that it runs in that way."""
    if way != "mallopt":
        return []
    calls = "; ".join(f"assert libc.mallopt({name}, {value})" for name, value in MALLOPT.values())
    begin = f"import ctypes, runpy, sys; libc = ctypes.CDLL(None); {calls}; sys.argv = sys.argv[1:]; "
    return ["-c", f"{begin}runpy.run_path(sys.argv[0], run_name='__main__')"]


def environment(way: str) -> dict[str, str]:
    """One thread, and memory in that way."""
    package = str(Path(rivals.__file__).parents[2])
    return os.environ | dict.fromkeys(rivals.THREADS, "1") | {"PYTHONPATH": package} | WAYS[way]


def beside(workload: workloads.Workload, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Both contenders in all ways on a workload."""
    players: dict[tuple[str, str], turns.Player] = {}
    seconds: dict[tuple[str, str], list[float]] = {}
    found = []
    try:
        for name, rival in CONTENDERS.items():
            for way in WAYS:
                given = (str(turns.CHILD), rival.driver, str(folder), json.dumps({"threads": 1}))
                player = turns.Player([sys.executable, *prelude(way), *given], environment(way))
                player.answer()
                players[name, way], seconds[name, way] = player, []
        order = list(players)
        for t in range(workload.warm + rounds):
            for key in order[t % len(order) :] + order[: t % len(order)]:
                told = players[key].tell("rounds 1")
                if t >= workload.warm:
                    seconds[key].append(told["cpu_seconds"])
        for (name, way), each in seconds.items():
            ratios = np.array(each) / np.array(seconds[name, "as it comes"])
            found.append({
                "workload": workload.name, "contender": name, "way": way, "cpu_seconds": statistics.median(each),
                "ratio": float(np.median(ratios)), "low": float(np.quantile(ratios, 0.25)),
                "high": float(np.quantile(ratios, 0.75)), "rounds": rounds,
                "peak_mb": players[name, way].tell("tell")["peak_mb"],
            })  # fmt: skip
    finally:
        for player in players.values():
            player.close()
    return found


def kernels(n: int, size: int, times: int) -> dict[str, float]:
    """CPU seconds of what makes large new tensors, in this process."""
    import time

    import networkx as nx
    import torch

    from fedsim.mixing import Metropolis

    def seconds(call: Any) -> float:
        each = []
        for _ in range(times + 1):
            begin = time.process_time()
            call()
            each.append(time.process_time() - begin)
        return statistics.median(each[1:])

    torch.set_num_threads(1)
    x = torch.randn(n, size)
    out = torch.empty_like(x).copy_(x)
    edges = Metropolis(nx.random_regular_graph(4, n, seed=1))(0, torch.arange(n))
    return {
        "copy to old memory": seconds(lambda: out.copy_(x)),
        "copy to new memory": seconds(x.clone),
        "mixing": seconds(lambda: edges.apply(x)),
    }


def kernels_in(way: str, n: int, size: int, times: int) -> dict[str, Any]:
    """The same in a process of its own."""
    command = [sys.executable, *prelude(way), __file__, "--kernels", str(n), str(size), str(times)]
    told = subprocess.run(command, env=environment(way), capture_output=True, text=True, check=False)
    if told.returncode:
        raise SystemExit(f"{way} failed:\n{told.stderr}")
    return {"way": way, **json.loads(told.stdout)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--workloads", default="W1,W2,W3,W4")
    parser.add_argument("--rounds", type=int, default=8, help="of each, after two that warm up")
    parser.add_argument("--nodes", type=int, default=10_000, help="that mix models of 7850 numbers")
    parser.add_argument("--kernels", type=int, nargs=3, help=argparse.SUPPRESS)  # a process of `kernels_in`
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.kernels:
        print(json.dumps(kernels(*given.kernels)))
        return
    large = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    result: dict[str, Any] = {
        "command": " ".join(["python benchmarks/engine/memory.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": race.machine() | {
            "load": os.getloadavg()[0], "large pages": large.read_text().strip() if large.exists() else "",
            "fedsim": fedsim.__version__,
            **{name: importlib.metadata.version(name) for name in ("torch", "numpy")},
        },
        "workloads": [],
        "kernels": [],
    }  # fmt: skip
    for way in WAYS:
        found = kernels_in(way, given.nodes, 7850, 5)
        result["kernels"].append(found)
        print(", ".join(f"{name} {value if name == 'way' else f'{value:.4f}'}" for name, value in found.items()))
    dataset = world.load()
    with tempfile.TemporaryDirectory() as place:
        images = Path(place) / "images.npz"
        world.save_images(dataset, images)
        for workload in workloads.chosen(given.workloads.split(",")):
            world.save(workload, dataset, images, Path(place) / workload.name)
            for row in beside(workload, Path(place) / workload.name, given.rounds):
                result["workloads"].append(row)
                name = f"{row['workload']} {row['contender']:7} {row['way']:12}"
                ratio = f"{row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
                print(f"{name} {1e3 * row['cpu_seconds']:8.1f} ms  {ratio}  {row['peak_mb']:6.0f} MB", flush=True)
    given.out.parent.mkdir(exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
