"""A run killed again and again ends with the result of one that was left alone, bit for bit.

    python benchmarks/kill_stress.py --kills 300        # writes benchmarks/results/kill_stress.json

Every strategy of `fedsim.strategies`, for servers and for networks, and a few wrapped ones, two seeds each, on a small
task with checkpoint-every = 3, seven strategies to a comparison. Each comparison runs undisturbed first, and that
warms this process up: it forks one for every command, with all imported that a command needs. A process gets SIGKILL:
four in five once it has written a checkpoint and then a time has passed that is drawn evenly, up to an eighth of what
the comparison takes undisturbed; the fifth after such a time from its start. `fedsim resume` follows, is killed in its
turn, and so on until one gets through. Then metrics.csv, hashes.csv, clients.csv and the resolved experiment must be
those of the comparison that nothing happened to, byte for byte, and result.json too but for times; and nothing else may
lie around. Then anew with the next seven and other moments, until there were enough kills and every comparison had its
turn. A process that ends otherwise than by the kill, or well, ends the script with an error.

4.5 minutes on two cores shared with other work, folders in memory (/dev/shm), torch 2.13.0+cpu. 15 kills came between
two waves of runs and 3 before there was a folder, 15 in the middle of replacing a file; every strategy, whether for
servers, for networks or wrapped, was under way at 5 kills or more:

    kills    before the first checkpoint    under way    comparisons brought to an end    differing
      321                              9          294                               56            0
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tomli_w
import torch

from fedsim import cli, compare, experiment, report, standing, strategies
from fedsim.files import write_json
from fedsim.record import read_result
from fedsim.report import page
from fedsim.strategy import GossipStrategy, core

RESULTS = Path(__file__).parent / "results"
SAME = ("metrics.csv", "hashes.csv", "clients.csv", "experiment.toml")
TIMES = ("seconds", "spent", "speed", "client_trainings_per_second")
TABLES: dict[str, Any] = {
    "name": "killed",
    "task": {
        "data": {"name": "clusters", "classes": 3, "dimension": 6, "examples": 90, "test-examples": 30},
        "clients": 8,
        "model": "logistic",
        "partition": {"name": "dirichlet", "alpha": 0.5},
    },
    "participation": {"name": "bernoulli", "probabilities": 0.4},
    "local": {"lr": 0.1, "steps": 2, "batch": 4},
    "run": {
        "rounds": 30, "seeds": [1, 2], "eval-every": 2, "device": "cpu", "chunk": 4, "threads": 1, "together": 8,
        "checkpoint-every": 3,
    },
}  # fmt: skip
SEVEN = 7  # strategies compared with each other
EARLY = 0.2  # of the kills come at any moment; the others once there is a checkpoint
GRAPHS: tuple[dict[str, Any], ...] = (
    {}, {"topology": "ring"}, {"topology": "complete"}, {"topology": {"name": "networkx:path_graph", "n": 8}},
)  # fmt: skip
WRAPPED: list[dict[str, Any]] = [
    {"name": "FedAdam", "label": "wrapped twice", "inner": {"name": "FedProx", "mu": 0.1, "inner": {"name": "MIFA"}}},
    {"name": "VarianceCorrection", "label": "buffers put right", "inner": {"name": "BufferedGossip"},
     "topology": "ring", "local": {"momentum": 0.5}},
    {"name": "DPSGD", "label": "alone", "mixing": "alone"},
]  # fmt: skip


def entry(name: str) -> dict[str, Any]:
    """A strategy's entry, with the first of the graphs that suits it."""
    for graph in GRAPHS:
        try:
            next(compare.compare(experiment.parse(TABLES | {"strategy": [{"name": name, **graph}]})))
        except ValueError:
            continue
        return {"name": name, **graph}
    raise ValueError(f"no graph suits {name}")


def begun(arguments: list[str]) -> int:
    """A command in a process of its own: which it is."""
    sys.stdout.flush()
    child = os.fork()
    if not child:
        code = 1
        try:
            code = here(arguments)
        finally:
            os._exit(code)
    return child


def here(arguments: list[str]) -> int:
    """A command in this process, and its exit code."""
    try:
        cli.main(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    raise AssertionError("a command exits")


def ended(child: int, within: float, until: Callable[[], bool] = lambda: False) -> int | None:
    """The exit code of a process that ends within so many seconds; None: it does not, or `until` has come true."""
    clock = time.monotonic()
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() - clock >= within or until():
            return None
        time.sleep(0.001)


def killed(arguments: list[str], run: Path, after: float, early: bool) -> int | None:
    """A command killed so many seconds after it has written a checkpoint, or after its start; its exit code where it
    ends before that, None if it was killed."""
    there = numbers(run)
    child = begun(arguments)
    code = None if early else ended(child, math.inf, lambda: bool(numbers(run) - there))
    code = ended(child, after) if code is None else code
    if code is not None:
        return code
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def numbers(run: Path) -> set[str]:
    """The checkpoints of a run folder."""
    try:
        return {name for name in os.listdir(run / standing.FOLDER) if name.endswith(".json") and name[0] != "."}
    except FileNotFoundError:
        return set()


def family(strategy: Any) -> str:
    """What a strategy is: for a server, for a network, or wrapped around one."""
    if core(strategy) is not strategy:
        return "wrapped"
    return "gossip" if isinstance(strategy, GossipStrategy) else "server"


def differs(one: Path, other: Path) -> str:
    """What two run folders do not have in common but should, in words; nothing where all is the same."""
    for name in SAME:
        if (one / name).read_bytes() != (other / name).read_bytes():
            return f"{name} differs"
    results = [[{k: v for k, v in run.items() if k not in TIMES} for run in read_result(run)] for run in (one, other)]
    if results[0] != results[1]:
        return "result.json differs"
    besides = {path.name for path in one.iterdir()} ^ {path.name for path in other.iterdir()}
    return f"{', '.join(sorted(besides))} lies around" if besides else ""


def to_the_end(file: Path, run: Path, longest: float, dice: random.Random, of: Mapping[str, str]) -> Counter[str]:
    """A run killed until it gets through, how each kill left it, and how many runs of each family (by label in `of`)
    were under way then. Raises ValueError where a process ends badly."""
    found: Counter[str] = Counter()
    while True:
        new = not (run / "experiment.toml").exists()
        command = ["run", str(file), "--out", str(run), "--quiet"] if new else ["resume", str(run), "--quiet"]
        code = killed(command, run, dice.uniform(0, longest), dice.random() < EARLY)
        if code is not None and code != 0:
            raise ValueError(f"{' '.join(command)} ended with {code}")
        if code == 0:
            return found
        found["kills"] += 1
        left = list(run.glob("**/.*.[tp]*[pl]"))
        found["in the middle of replacing a file"] += bool(left)
        if not (run / "experiment.toml").exists():
            found["before there was a folder"] += 1
        elif (saved := standing.latest(run)[0]) is None:
            found["before the first checkpoint"] += 1
        elif not saved.rounds:
            found["between two waves of runs"] += 1
        else:
            found["under way"] += 1
            for label in {label for label, _ in saved.under_way}:
                found[f"{of[label]}: {label}"] += 1


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "kill_stress.json")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    report.write_figures, page.write_page = (lambda folder: []), (lambda folder: folder)
    begun, dice = time.monotonic(), random.Random(given.seed)
    entries = [*map(entry, strategies.__all__), *WRAPPED]
    groups = [entries[i : i + SEVEN] for i in range(0, len(entries), SEVEN)]
    found: Counter[str] = Counter()
    comparisons = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        took, of = [], dict[str, str]()
        for g, group in enumerate(groups):
            file = folder / f"{g}.toml"
            file.write_text(tomli_w.dumps(TABLES | {"strategy": group}))
            of |= {entry.label: family(entry.strategy) for entry in experiment.load(file).entries}
            for turn in ("warm", "alone"):
                clock = time.monotonic()
                if here(["run", str(file), "--out", str(folder / f"{g}-{turn}"), "--quiet"]) != 0:
                    raise ValueError(f"group {g} does not run")
            took.append(time.monotonic() - clock)
        while found["kills"] < given.kills or comparisons < len(groups):
            g = comparisons % len(groups)
            run = folder / f"{g}-{comparisons}"
            found += to_the_end(folder / f"{g}.toml", run, took[g] / 8, dice, of)
            if wrong := differs(run, folder / f"{g}-alone"):
                raise ValueError(f"after {found['kills']} kills: {wrong}")
            comparisons += 1
            print(f"{comparisons} comparisons the same after {found['kills']} kills", flush=True)
    each = {label: found.pop(f"{what}: {label}", 0) for label, what in of.items()}
    write_json(given.out, {
        "strategies": len(entries), "comparisons_brought_to_an_end": comparisons, "differing": 0, **found,
        "kills_under_way_of_each": {
            what: {label: each[label] for label in of if of[label] == what} for what in ("server", "gossip", "wrapped")
        },
        "seconds_of_a_comparison_undisturbed": sum(took) / len(took), "minutes": (time.monotonic() - begun) / 60,
        "seed": given.seed, "torch": str(torch.__version__), "threads": 1,
    })  # fmt: skip
    print(json.dumps(json.loads(given.out.read_text()), indent=2))


if __name__ == "__main__":
    main()
