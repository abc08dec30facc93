"""Long and large runs take no more memory as they go on, and their files grow with what is recorded alone.

    python benchmarks/soak.py --minutes 30        # writes benchmarks/results/soak.json

Four experiments, one after the other, each by `fedsim run` in a process of its own for a quarter of the time, then
SIGTERM: 100,000 rounds of a tiny model with five strategies; a million clients of whom a hundred come; gossip between
10,000 nodes; 20 strategies on 10 seeds at once. Every second the process's memory (VmRSS) and the bytes of its run
folder, checkpoints apart, are written down. Growth is the median memory of the last quarter of the time over that of
the second quarter; the folder's bytes a recorded evaluation are those of the second half over those of the whole. The
script ends with an error where memory has grown by more than a tenth, or a process has ended by itself in any way but
well.

12 minutes on two cores, torch 2.13.0+cpu, one thread, nothing else running:

    case       rounds    runs    MB, second and last quarter    growth    largest, MB    folder, MB
    rounds     42,600       5             359.6     359.6         1.00          359.6          1.25
    clients    22,200       1             821.8     954.3         1.16          956.4         31.67
    nodes         940       1             400.1     400.1         1.00          400.1          0.05
    runs        2,100     200             392.9     393.5         1.00          393.6          7.02

So it ends with an error: with a million clients memory has grown by more than FedVARP's table of those who came, which
gained about 20 MB between the quarters. Where the rest went is not known.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tomli_w

from fedsim.files import write_json
from fedsim.record import read_metrics

RESULTS = Path(__file__).parent / "results"
MOST = 1.1  # growth of memory that is allowed
SMALL: dict[str, Any] = {"name": "clusters", "classes": 3, "dimension": 6, "examples": 200, "test-examples": 50}
LOCAL: dict[str, Any] = {"lr": 0.05, "steps": 2, "batch": 4}
SERVERS = ("FedAvg", "FedAU", "FedVARP", "MIFA", "SCAFFOLD")


def experiment(data: dict[str, Any], clients: int, who: Any, strategies: list[dict[str, Any]], **run: Any) -> Any:
    """Tables of an experiment on logistic regression."""
    return {
        "name": "soak",
        "task": {"data": data, "clients": clients, "model": "logistic", "partition": "iid"},
        "participation": who,
        "local": LOCAL,
        "strategy": strategies,
        "run": {"device": "cpu", "threads": 1, "seeds": [1], **run},
    }


def cases(scale: float = 1.0) -> dict[str, Any]:
    """The experiments; `scale` makes all counts smaller."""

    def count(n: int) -> int:
        return max(4, round(n * scale))

    servers = [{"name": name} for name in SERVERS]
    many = [
        {"name": SERVERS[i % 5], "label": f"{SERVERS[i % 5]} {i}", "local": {"lr": 0.01 * (i + 1)}} for i in range(20)
    ]
    sometimes = {"name": "bernoulli", "probabilities": 0.4}
    return {
        "rounds": experiment(SMALL, 8, sometimes, servers, rounds=100_000, **{"eval-every": 200}),
        "clients": experiment(
            {**SMALL, "examples": count(1_000_000)}, count(1_000_000), {"name": "uniform", "k": min(100, count(400))},
            [{"name": "FedVARP"}], rounds=100_000, ledger=False, **{"eval-every": 100},
        ),
        "nodes": experiment(
            {**SMALL, "examples": count(60_000)}, count(10_000), "everyone",
            [{"name": "DPSGD", "topology": "ring", "mixing": "metropolis"}], rounds=100_000, ledger=False,
            **{"eval-every": 20, "eval-nodes": 4},
        ),
        "runs": experiment(
            SMALL, 8, sometimes, many, rounds=100_000, **{"seeds": list(range(1, 11)), "eval-every": 100}
        ),
    }  # fmt: skip


def memory(process: int) -> int | None:
    """Bytes that a process has in memory; None: it is gone."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return None
    found = [line.split()[1] for line in text.splitlines() if line.startswith("VmRSS")]
    return int(found[0]) * 1024 if found else None


def size(folder: Path) -> int:
    """Bytes of a run folder's own files."""
    return sum(path.stat().st_size for path in folder.glob("*") if path.is_file())


def soak(tables: Any, seconds: float, folder: Path) -> dict[str, Any]:
    """An experiment for so long. Raises RuntimeError where it ends by itself in any way but well."""
    file, run = folder / "experiment.toml", folder / "run"
    file.write_text(tomli_w.dumps(tables))
    command = [sys.executable, "-m", "fedsim.cli", "run", str(file), "--out", str(run), "--quiet"]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (run / "metrics.csv").exists() or not any(row.round for row in read_metrics(run)):
        if child.poll() is not None:
            break
        time.sleep(0.2)  # making its world is no part of it
    begin, seen = time.monotonic(), list[tuple[int, int]]()
    while child.poll() is None and time.monotonic() - begin < seconds:
        held = memory(child.pid)
        if held:
            seen.append((held, size(run)))
        time.sleep(1.0 if seconds > 20 else 0.1)
    ended = child.poll()
    if ended is None:
        child.send_signal(signal.SIGTERM)
    said = child.communicate()[1]
    if (ended or 0) != 0 or child.returncode not in (0, 143):
        raise RuntimeError(f"it ended with {child.returncode}: {said.strip()}")
    rows = read_metrics(run)
    quarter = max(1, len(seen) // 4)
    early, late = seen[quarter : 2 * quarter] or seen, seen[-quarter:]
    rounds = sorted({row.round for row in rows})
    return {
        "seconds": round(time.monotonic() - begin, 1),
        "rounds": rounds[-1],
        "runs": len({(row.strategy, row.seed) for row in rows}),
        "evaluations": len({(row.strategy, row.seed, row.round) for row in rows}),
        "memory_mb": [round(statistics.median(held for held, _ in part) / 1e6, 1) for part in (early, late)],
        "growth": statistics.median(held for held, _ in late) / statistics.median(held for held, _ in early),
        "largest_mb": round(max(held for held, _ in seen) / 1e6, 1),
        "folder_mb": round(size(run) / 1e6, 2),
        "bytes_an_evaluation": round(size(run) / len({(row.strategy, row.seed, row.round) for row in rows})),
        "ended_by_itself": ended is not None,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--scale", type=float, default=1.0, help="of the counts of clients and nodes, for a trial")
    parser.add_argument("--out", type=Path, default=RESULTS / "soak.json")
    given = parser.parse_args()
    todo = cases(given.scale)
    found: dict[str, Any] = {
        "minutes": given.minutes, "scale": given.scale, "python": platform.python_version(), "cores": os.cpu_count(),
        "torch": version("torch"), "load": os.getloadavg()[0], "cases": {},
    }  # fmt: skip
    for name, tables in todo.items():
        with tempfile.TemporaryDirectory() as folder:
            found["cases"][name] = soak(tables, given.minutes * 60 / len(todo), Path(folder))
        print(name, json.dumps(found["cases"][name]), flush=True)
        write_json(given.out, found)
    grown = [name for name, case in found["cases"].items() if case["growth"] > MOST]
    if grown:
        raise SystemExit(f"memory has grown: {', '.join(grown)}")


if __name__ == "__main__":
    main()
