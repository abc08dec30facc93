"""Claim: in lockstep runs are faster than one after another where cohorts are small, and give the same numbers.

8 strategies x 5 seeds on Fashion-MNIST, IID over 250 clients, 10 local steps of 20 examples; 5, 10 or 30 clients a
round. Timed is a round of all 40 runs, no evaluation:

    alone     one run after another, each with the chunk that suits its own cohort
    lockstep  `fedsim.lockstep.advance`: the cohorts of all runs in one engine call, with the chunk that suits them all

The two take turns, round by round, so that other work on the machine meets them alike; given are median seconds (wall,
and CPU time of the process) and the median of the ratios of neighbours in time, after one round to warm up. Before
that, both play two rounds with the same chunk and are held to give the same bits.

    python benchmarks/lockstep.py                       # about 15 minutes; results/lockstep.json
    python benchmarks/lockstep.py --device cuda         # results/lockstep_cuda.json
    python benchmarks/lockstep.py --models logistic --clients 5 --rounds 3

Two cores shared with other work, one thread, torch 2.13.0+cpu (ratio: alone over lockstep):

    model    clients    CPU ratio   wall   alone: chunk, CPU s   lockstep: chunk, CPU s
    logistic        5         1.55   1.55       5        0.148         16        0.096
    logistic       10         1.24   1.22      10        0.211         16        0.171
    logistic       30         1.10   1.10      16        0.524         16        0.474
    mlp             5         1.20   1.20       4        0.986          4        0.820
    mlp            10         1.02   1.02       4        1.538          4        1.476
    mlp            30         0.99   0.96       4        4.136          4        4.130
    lenet5          5         1.00   1.01       1        3.546          1        3.704
    lenet5         10         0.95   0.83       1        7.406          1        7.770
    lenet5         30         1.00   1.04       1       20.510          1       20.056

It helps where a cohort leaves lanes of its chunk empty: logistic regression with 5 clients a round. Networks fill a
CPU's caches with four models or fewer (convolutions: one), so that there is little left to share, and at 30 clients a
round nothing is gained; there it costs up to 5 % of CPU time. Wall time is what others on the machine left. No GPU was
at hand, where a chunk is much wider.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import fedsim
from fedsim import data, models
from fedsim.data.partition import IID
from fedsim.engine import Stacked, choose
from fedsim.local import LocalSGD
from fedsim.lockstep import Together, advance
from fedsim.participation import Schedule, Uniform
from fedsim.simulation import Step, rounds
from fedsim.strategies import MIFA, SCAFFOLD, FedAdam, FedAU, FedAvg, FedProx, FedStale, FedVARP
from fedsim.strategy import Strategy
from fedsim.task import Task, make_task, regroup

CLIENTS, LOCAL = 250, LocalSGD(lr=0.01, steps=10, batch=20)
STRATEGIES: tuple[Strategy, ...] = (
    FedAvg(), FedAU(), FedStale(), FedVARP(), MIFA(), FedProx(mu=0.1), SCAFFOLD(), FedAdam(lr=0.01),
)  # fmt: skip
MODELS = {"logistic": 7_850, "mlp": 159_010, "lenet5": 61_706}
World = tuple[Task, Schedule, int]


def worlds(model: str, k: int, seeds: int, length: int, device: str) -> list[World]:
    """Tasks that share examples and model, and who is there when, one of each per seed."""
    dataset = data.load("fashion-mnist")
    settings = {"hidden": (200,)} if model == "mlp" else {}

    def module() -> torch.nn.Module:
        return models.build(model, tuple(dataset.inputs.shape[1:]), dataset.classes, **settings)

    found: list[World] = []
    for seed in range(1, seeds + 1):
        parts = data.split(dataset, IID(), CLIENTS, seed)
        if found:
            task = regroup(found[0][0], parts, seed=seed)
        else:
            task = make_task(dataset, parts, module(), seed_module=lambda s: models.fresh(module, s), device=device)
        found.append((task, Uniform(k).draw(CLIENTS, length, seed), seed))
    assert found[0][0].layout.size == MODELS[model]
    return found


def beside(world: list[World], chunk: int, keep: bool = False) -> Iterator[list[Step]]:
    """Rounds of all runs in lockstep; `keep`: and what they were."""
    runs = {
        (i, seed): rounds(task, strategy, schedule, LOCAL, seed=seed)
        for task, schedule, seed in world
        for i, strategy in enumerate(STRATEGIES)
    }
    together = Together([task for task, _, _ in world])
    while True:
        found = []
        for _, turn in advance(runs, Stacked(chunk), together):
            assert isinstance(turn.step, Step)
            if keep:
                found.append(turn.step)
            del turn
        yield found


def alone(world: list[World], chunk: int, keep: bool = False) -> Iterator[list[Step]]:
    """Rounds of all runs, one after the other; `keep`: and what they were."""
    runs = [
        rounds(task, strategy, schedule, LOCAL, seed=seed) for task, schedule, seed in world for strategy in STRATEGIES
    ]
    while True:
        found = []
        for run in runs:
            for _, turn in advance({0: run}, Stacked(chunk)):
                assert isinstance(turn.step, Step)
                if keep:
                    found.append(turn.step)
                del turn
        yield found


def same(world: list[World], chunk: int) -> None:
    """Raises AssertionError unless two rounds of both give the same bits."""
    for _, one, other in zip(range(2), beside(world, chunk, keep=True), alone(world, chunk, keep=True), strict=False):
        for a, b in zip(one, other, strict=True):
            assert a.model.equal(b.model)
            assert a.round.delta.equal(b.round.delta)
            assert a.round.loss.equal(b.round.loss)


def timed(play: Callable[[], Any], device: str) -> tuple[float, float]:
    """Wall and CPU seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    play()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def case(model: str, k: int, length: int, device: str, seeds: int = 5) -> dict[str, Any]:
    """One line of the table."""
    world = worlds(model, k, seeds, max(length + 1, 2), device)
    each = choose(world[0][0], LOCAL, k).chunk
    whole = choose(world[0][0], LOCAL, k * len(STRATEGIES) * seeds).chunk
    same(world, min(each, 4))
    runs = {"alone": alone(world, each), "lockstep": beside(world, whole)}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for t in range(length + 1):
        for name in list(runs) if t % 2 else list(runs)[::-1]:
            spent = timed(functools.partial(next, runs[name]), device)
            if t:
                seconds[name].append(spent)
    out: dict[str, Any] = {"model": model, "clients_a_round": k, "runs": len(STRATEGIES) * seeds, "rounds": length}
    for name, chunk in (("alone", each), ("lockstep", whole)):
        wall, cpu = (statistics.median(one[j] for one in seconds[name]) for j in (0, 1))
        out[name] = {"chunk": chunk, "seconds": round(wall, 5), "cpu_seconds": round(cpu, 5)}
    for key, j in (("ratio", 0), ("cpu_ratio", 1)):
        pairs = zip(seconds["alone"], seconds["lockstep"], strict=True)
        out[key] = round(statistics.median(a[j] / b[j] for a, b in pairs), 3)
    return out


def origin(device: str) -> dict[str, Any]:
    """Where the numbers come from."""
    folder = Path(__file__).parent
    asked = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "commit": asked.stdout.strip() or None,
        "versions": {"python": platform.python_version(), "torch": importlib.metadata.version("torch"),
                     "fedsim": fedsim.__version__, "processor": platform.machine()},
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--clients", nargs="+", type=int, default=[5, 10, 30], metavar="K", help="clients a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="default: results/lockstep.json, or lockstep_cuda.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    suffix = "_cuda" if given.device.startswith("cuda") else ""
    out = given.out or Path(__file__).parent / "results" / f"lockstep{suffix}.json"
    lines = []
    for model in given.models:
        for k in given.clients:
            lines.append(case(model, k, given.rounds, given.device))
            print(json.dumps(lines[-1]), flush=True)
            out.write_text(json.dumps({"origin": origin(given.device), "cases": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main()
