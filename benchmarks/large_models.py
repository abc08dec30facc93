"""Claim: memory follows the clients that have appeared and the model's size, a round's time those present: never n.

`memory`: ResNet-18 with group normalisation (11,173,962 parameters, random pictures, one step each) trained by FedAvg,
FedVARP and MIFA among n = 100 and n = 10,000 clients of whom the same 20 appear, 4 a round, every one twice. Each
case in a process of its own; peak resident memory beyond what the process held before the first round.

`population`: FedVARP on logistic regression (7,850 parameters, random 28x28 pictures), 100 clients a round, 10 steps of
20 examples, among n = 10^3 to 10^6 clients of whom 1000 ever come. All n take turns in one process, round by round, in
an order that changes, so that whatever else the machine does meets all alike: CPU seconds a round, median, and the
ratio to n = 10^3 (median over the rounds, 95 % by bootstrap). Memory of the rounds as above, each n in a process of its
own. `newcomers`: the same with all n coming. The more there are, the more of a round's 100 are new, and what is
remembered of a newcomer needs new memory: a cost per client met, not per client there is.

    python benchmarks/large_models.py        # about four minutes; results/large_models.json

Peaks are read from Linux's /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import machine

if TYPE_CHECKING:  # the parent stays small: a child's peak begins at its parent's
    from fedsim.simulation import Step
    from fedsim.task import Task

RESULTS = Path(__file__).parent / "results" / "large_models.json"
STRATEGIES = ("FedAvg", "FedVARP", "MIFA")
APPEARING, PRESENT = 20, 4
POPULATIONS = (10**3, 10**4, 10**5, 10**6)
COMING = 1000  # of each population


def pictures(examples: int, shape: tuple[int, ...], n: int, each: int, model: str) -> Task:
    """n clients with `each` of the random pictures, which they share where there are fewer than that."""
    import torch

    from fedsim import make_task, models
    from fedsim.data import Dataset
    from fedsim.data.partition import Parts

    rng = np.random.default_rng(0)
    inputs = torch.from_numpy(rng.integers(256, size=(examples, *shape), dtype=np.uint8))
    targets = torch.from_numpy(rng.integers(10, size=examples))
    dataset = Dataset("random", inputs, targets, inputs[:10], targets[:10], classes=10, mean=0.5, std=0.25)
    rows = rng.integers(examples, size=n * each)
    size = np.full(n, each)
    return make_task(dataset, Parts(rows, np.arange(n) * each, size, drawn=True), models.build(model, shape, 10))


def status(name: str) -> float:
    """This process's VmRSS or VmHWM, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1.024e-3


def spent(rounds: Iterator[Any]) -> dict[str, Any]:
    """Peak memory while the rounds run, beyond what was there before them; MB."""
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    begin = time.process_time()
    steps = sum(1 for _ in rounds)
    return {
        "rounds": steps,
        "cpu_seconds": time.process_time() - begin,
        "before_mb": before,
        "rounds_mb": status("VmHWM") - before,
        "left_mb": status("VmRSS") - before,
    }


def large(strategy: str, n: int, model: str) -> dict[str, Any]:
    """P = 10^7 among n clients of whom few appear; this process."""
    import torch

    from fedsim import LocalSGD, Stacked, simulate, strategies
    from fedsim.participation import Schedule
    from fedsim.participation.schedule import Lists

    torch.set_num_threads(1)
    task = pictures(64, (3, 32, 32), n, 2, model)
    appearing = np.sort(np.random.default_rng(1).choice(n, APPEARING, replace=False)).astype(np.int32)
    rounds = 2 * APPEARING // PRESENT
    chosen = Lists(np.arange(rounds + 1) * PRESENT, np.tile(appearing, 2))
    schedule = Schedule(n, rounds, chosen)
    local = LocalSGD(lr=0.01, steps=1, batch=2)
    found = spent(simulate(task, getattr(strategies, strategy)(), schedule, local, engine=Stacked(1), seed=1))
    return {"strategy": strategy, "n": n, "parameters": task.layout.size, "appeared": APPEARING, **found}


def few(n: int, rounds: int, coming: int = COMING) -> Iterator[Step]:
    """Rounds of a small model among n clients, 100 of those who come a round."""
    from fedsim import LocalSGD, Stacked, simulate, strategies
    from fedsim.participation import Schedule
    from fedsim.participation.schedule import Lists

    task = pictures(60_000, (1, 28, 28), n, 20, "logistic")
    rng = np.random.default_rng(1)
    who = np.sort(rng.choice(n, min(coming, n), replace=False))
    chosen = np.concatenate([np.sort(rng.choice(who, 100, replace=False)) for _ in range(rounds)])
    schedule = Schedule(n, rounds, Lists(np.arange(rounds + 1) * 100, chosen.astype(np.int32)))
    return simulate(task, strategies.FedVARP(), schedule, LocalSGD(lr=0.05, steps=10, batch=20), engine=Stacked(10))


def alone(n: int, rounds: int) -> dict[str, Any]:
    """The memory of rounds among n clients; this process."""
    import torch

    torch.set_num_threads(1)
    steps = few(n, rounds + 2)
    next(steps)  # what is made once: the state, the sizes on the host
    next(steps)
    return {"n": n, **spent(steps)}


def interleaved(rounds: int, coming: int) -> list[dict[str, Any]]:
    """CPU seconds of a round for every n, taking turns in this process."""
    import torch

    torch.set_num_threads(1)
    warm = 20  # rounds, until most of a thousand have come
    runs = {n: few(n, rounds + warm, coming) for n in POPULATIONS}
    for steps in runs.values():
        for _ in range(warm):
            next(steps)
    seconds: dict[int, list[float]] = {n: [] for n in POPULATIONS}
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        for n in rng.permutation(POPULATIONS).tolist():
            begin = time.process_time()
            next(runs[n])
            seconds[n].append(time.process_time() - begin)
    least = np.array(seconds[POPULATIONS[0]])
    found = []
    for n in POPULATIONS:
        ratios = np.array(seconds[n]) / least
        draws = np.median(ratios[rng.integers(rounds, size=(2000, rounds))], axis=1)
        low, high = np.quantile(draws, [0.025, 0.975])
        found.append({
            "n": n, "cpu_seconds": statistics.median(seconds[n]), "ratio": float(np.median(ratios)),
            "low": float(low), "high": float(high),
        })  # fmt: skip
    return found


def child(*arguments: str) -> Any:
    """What this script prints with these arguments."""
    told = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=False)
    if told.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{told.stderr}")
    return json.loads(told.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=60, help="of the small model")
    parser.add_argument("--model", default="resnet18", help="the large one")
    parser.add_argument("--case", help="only this one, in this process, as JSON: memory:MIFA:10000, population:1000")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.case:
        kind, *what = given.case.split(":")
        if kind == "memory":
            print(json.dumps(large(what[0], int(what[1]), given.model)))
        elif kind == "newcomers":
            print(json.dumps(interleaved(given.rounds, max(POPULATIONS))))
        else:
            print(json.dumps(alone(int(what[0]), given.rounds) if what else interleaved(given.rounds, COMING)))
        return
    if not Path("/proc/self/clear_refs").exists():
        raise SystemExit("peaks are read from Linux's /proc, and there is none here")
    if not given.out.absolute().parent.is_dir():  # told now, not after four minutes
        raise SystemExit(f"--out: there is no folder {given.out.absolute().parent}; make it first")
    rest = ("--rounds", str(given.rounds), "--model", given.model)
    result: dict[str, Any] = {
        "command": " ".join(["python benchmarks/large_models.py", *sys.argv[1:]]),
        "machine": machine("torch", "numpy"),
        "memory": [],
        "population": [],
    }
    for n in (100, 10_000):
        for strategy in STRATEGIES:
            found = child("--case", f"memory:{strategy}:{n}", *rest)
            result["memory"].append(found)
            print(
                f"{strategy:8} n = {n:<6} {found['rounds_mb']:6.0f} MB in its rounds, {found['left_mb']:6.0f} MB kept",
                file=sys.stderr,
            )
    apart = {n: child("--case", f"population:{n}", *rest) for n in POPULATIONS}
    for found in child("--case", "population", *rest):
        found["rounds_mb"] = apart[found["n"]]["rounds_mb"]
        found["before_mb"] = apart[found["n"]]["before_mb"]
        result["population"].append(found)
        print(
            f"n = {found['n']:<8} {1000 * found['cpu_seconds']:6.1f} ms a round, {found['ratio']:.3f}"
            f" [{found['low']:.3f}, {found['high']:.3f}] of n = {POPULATIONS[0]}; {found['rounds_mb']:.0f} MB",
            file=sys.stderr,
        )
    result["newcomers"] = child("--case", "newcomers", *rest)
    for found in result["newcomers"]:
        print(f"n = {found['n']:<8} {1000 * found['cpu_seconds']:6.1f} ms a round where all come, {found['ratio']:.3f}",
              file=sys.stderr)  # fmt: skip
    with tempfile.NamedTemporaryFile("w", dir=given.out.parent, delete=False, suffix=".json") as file:
        file.write(json.dumps(result, indent=1) + "\n")
    os.replace(file.name, given.out)


if __name__ == "__main__":
    main()
