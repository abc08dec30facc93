"""What a strategy does with a round's moves, and gossip with its models, beside the memory it must touch.

`strategies`: a step of FedVARP and of FedStale among n = 300 clients who have all been heard, k = 100 a round, P = 1.6
million, float32. The step must read the k moves, read the k rows that are remembered and write them: three times
k P numbers. `mixing`: Metropolis weights on 10,000 nodes with a logistic regression each (P = 7,850), on a ring, where
neighbours lie side by side, and on a random 4-regular graph. It must read all models and write as many; on a random
graph no cache holds a node's neighbours, so a model is read once for each of them (`traffic`).

All beside copying one tensor of the same size onto another, in the same process and by turns with it: `ratio` is CPU
seconds over what the copy's bytes a second would make of the memory that must be touched, medians of the times, one
thread. `large pages` is the same in a process whose torch asks for pages of 2 MB (THP_MEM_ALLOC_ENABLE=1).

    python benchmarks/aggregation.py        # two minutes; results/aggregation.json

On two cores of an AMD EPYC shared with other work (load 10), where memory is copied at 34 to 38 GB/s:

    |                        | as it comes: ms | of a pass | large pages: ms | of a pass | of its traffic |
    | FedVARP                |             136 |       2.4 |              93 |       1.8 |                |
    | FedStale               |             171 |       3.1 |             108 |       2.1 |                |
    | mixing, ring           |             164 |       9.1 |              33 |       1.9 |            1.0 |
    | mixing, random 4-reg.  |             220 |      12.3 |              68 |       4.0 |            1.3 |

Mixing is what memory allows once pages are large; as it comes, most of its time goes into new memory for its result.
The strategies read moves and rows once for their sums and the moves once more to write them, four times k P numbers
where three must be; the running mean is summed anew every fifty rounds or so, which takes 190 ms and is not in the
table. FedStale's weights are no multiples of the mean's, so it takes two sums of each and stays just above the 2 that
were aimed at.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fedsim
from fedsim.bench import race

RESULTS = Path(__file__).parent / "results" / "aggregation.json"


def by_turns(calls: dict[str, Callable[[], object]], times: int, warm: int = 3) -> dict[str, float]:
    """CPU seconds of each, median; they take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for t in range(warm + times):
        for name, call in calls.items():
            begin = time.process_time()
            call()
            if t >= warm:
                seconds[name].append(time.process_time() - begin)
    return {name: statistics.median(each) for name, each in seconds.items()}


def strategies(k: int, n: int, size: int, times: int) -> list[dict[str, Any]]:
    """Steps of the strategies that remember every client's latest move."""
    import torch

    from fedsim.strategies import FedStale, FedVARP
    from fedsim.strategy import Round

    g = torch.Generator().manual_seed(1)
    delta = torch.randn(k, size, generator=g)
    out = torch.empty_like(delta)
    nothing = torch.zeros(k)
    states: dict[str, Any] = {}

    def stepping(name: str, strategy: Any) -> Callable[[], object]:
        states[name] = strategy.init(torch.zeros(size), torch.full((n,), 1 / n, dtype=torch.float64))

        def step(who: Any = None) -> None:
            who = torch.randperm(n, generator=g)[:k].sort().values if who is None else who
            round = Round(0, who, delta[:1].expand(k, -1), delta, nothing, nothing)
            states[name] = strategy.step(states[name], round)

        for part in torch.arange(n).split(k):  # all are heard
            if len(part) == k:
                step(part)
        return step

    found = []
    for name, strategy in (("FedVARP", FedVARP()), ("FedStale", FedStale(beta=0.5))):
        seconds = by_turns({"copy": lambda: out.copy_(delta), "step": stepping(name, strategy)}, times)
        states.clear()
        touched = 3 * delta.nbytes
        speed = 2 * delta.nbytes / seconds["copy"]
        found.append({
            "what": name, "k": k, "n": n, "parameters": size, "touched": touched, "copy_bytes_per_second": speed,
            "seconds": seconds["step"], "ratio": seconds["step"] * speed / touched,
        })  # fmt: skip
    return found


def mixing(n: int, size: int, times: int) -> list[dict[str, Any]]:
    """A round's averaging between neighbours."""
    import networkx as nx
    import torch

    from fedsim.mixing import Metropolis

    x = torch.randn(n, size, generator=torch.Generator().manual_seed(1))
    out = torch.empty_like(x)
    found = []
    for name, graph in (("ring", nx.cycle_graph(n)), ("random 4-regular", nx.random_regular_graph(4, n, seed=1))):
        edges = Metropolis(graph)(0, torch.arange(n))
        seconds = by_turns({"copy": lambda: out.copy_(x), "apply": functools.partial(edges.apply, x)}, times)
        speed = 2 * x.nbytes / seconds["copy"]
        every = (len(edges.i) + 2 * n) * x.nbytes // n
        found.append({"what": f"mixing, {name}", "n": n, "parameters": size, "touched": 2 * x.nbytes, "traffic": every,
                      "copy_bytes_per_second": speed, "seconds": seconds["apply"],
                      "ratio": seconds["apply"] * speed / (2 * x.nbytes),
                      "ratio_to_traffic": seconds["apply"] * speed / every})  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--size", type=int, default=1_600_000, help="parameters of the strategies' model")
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--times", type=int, default=9)
    parser.add_argument("--here", action="store_true", help="only as this process has its memory, as JSON")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.here:
        import torch

        torch.set_num_threads(1)
        print(json.dumps([*strategies(100, 300, given.size, given.times), *mixing(given.nodes, 7850, given.times)]))
        return
    result: dict[str, Any] = {
        "command": " ".join(["python benchmarks/aggregation.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": race.machine() | {
            "load": os.getloadavg()[0], "fedsim": fedsim.__version__,
            **{name: importlib.metadata.version(name) for name in ("torch", "numpy")},
        },
    }  # fmt: skip
    for way, variables in (("as it comes", {}), ("large pages", {"THP_MEM_ALLOC_ENABLE": "1"})):
        rest = ("--size", str(given.size), "--nodes", str(given.nodes), "--times", str(given.times))
        command = [sys.executable, __file__, "--here", *rest]
        told = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False)
        if told.returncode:
            raise SystemExit(f"{way} failed:\n{told.stderr}")
        result[way] = json.loads(told.stdout)
        for row in result[way]:
            traffic = f", {row['ratio_to_traffic']:.2f} of its traffic" if "traffic" in row else ""
            print(f"{way}: {row['what']:24} {1e3 * row['seconds']:6.1f} ms, {row['ratio']:.2f} of a pass{traffic}"
                  f" at {row['copy_bytes_per_second'] / 1e9:.1f} GB/s", file=sys.stderr)  # fmt: skip
    given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
