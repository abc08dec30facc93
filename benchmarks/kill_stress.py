"""A run killed again and again ends with the result of one that was left alone, bit for bit.

    python benchmarks/kill_stress.py --minutes 10        # writes benchmarks/results/kill_stress.json

Every strategy of `fedsim.strategies` and a few wrapped ones, two seeds each, on a small task with checkpoint-every = 3,
seven strategies to a comparison, by the command's own code in processes of their own (all but the drawing, which takes
longer than the rest). A process gets SIGKILL after a time drawn evenly from nothing to half of what it would take
(5 % more after each kill, or a busy machine would never let one through); `fedsim resume` follows, is killed in its
turn, and so on until one gets through. Then metrics.csv, hashes.csv,
clients.csv and the resolved experiment must be those of the comparison that nothing happened to, byte for byte, and
result.json too but for times; and nothing else may lie around. Then anew with the next seven and other moments, until
the time is up. A process that ends otherwise than by the kill, or well, ends the script with an error.

15 minutes on two cores shared with much other work, torch 2.13.0+cpu (a comparison took 25 s undisturbed, most of it
before its first checkpoint, and so 69 of the kills came before it):

    kills    before the first checkpoint    under way    comparisons brought to an end    differing
       96                             69           26                                6            0
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import tomli_w
import torch

from fedsim import cli, compare, experiment, report, standing, strategies
from fedsim.files import write_json
from fedsim.record import read_result
from fedsim.report import page

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
        "rounds": 15, "seeds": [1, 2], "eval-every": 2, "device": "cpu", "chunk": 4, "threads": 1, "together": 8,
        "checkpoint-every": 3,
    },
}  # fmt: skip
SEVEN = 7  # strategies compared with each other
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


def killed(arguments: list[str], after: float | None) -> int | None:
    """Run a command in a process of its own and kill it after so many seconds; its exit code, None if it was killed."""
    sys.stdout.flush()
    child = os.fork()
    if not child:
        code = 1
        try:
            cli.main(arguments)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        finally:
            os._exit(code)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


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


def to_the_end(file: Path, run: Path, longest: float, dice: random.Random) -> Counter[str]:
    """A run killed until it gets through, and how each kill left it. Raises ValueError where a process ends badly."""
    found: Counter[str] = Counter()
    while True:
        new = not (run / "experiment.toml").exists()
        command = ["run", str(file), "--out", str(run), "--quiet"] if new else ["resume", str(run), "--quiet"]
        code = killed(command, dice.uniform(0, longest))
        if code is not None and code != 0:
            raise ValueError(f"{' '.join(command)} ended with {code}")
        if code == 0:
            return found
        found["kills"] += 1
        longest *= 1.05
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


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
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
        took = []
        for g, group in enumerate(groups):
            file = folder / f"{g}.toml"
            file.write_text(tomli_w.dumps(TABLES | {"strategy": group}))
            clock = time.monotonic()
            if killed(["run", str(file), "--out", str(folder / f"{g}-alone"), "--quiet"], None) != 0:
                raise ValueError(f"group {g} does not run")
            took.append(time.monotonic() - clock)
        while time.monotonic() - begun < 60 * given.minutes or comparisons < len(groups):
            g = comparisons % len(groups)
            run = folder / f"{g}-{comparisons}"
            found += to_the_end(folder / f"{g}.toml", run, took[g] / 2, dice)
            if wrong := differs(run, folder / f"{g}-alone"):
                raise ValueError(f"after {found['kills']} kills: {wrong}")
            comparisons += 1
            print(f"{comparisons} comparisons the same after {found['kills']} kills", flush=True)
    write_json(given.out, {
        "strategies": len(entries), "comparisons_brought_to_an_end": comparisons, "differing": 0, **found,
        "seconds_of_a_comparison_undisturbed": sum(took) / len(took), "minutes": (time.monotonic() - begun) / 60,
        "seed": given.seed, "torch": str(torch.__version__), "threads": 1,
    })  # fmt: skip
    print(json.dumps(json.loads(given.out.read_text()), indent=2))


if __name__ == "__main__":
    main()
