"""Long and large runs take no more memory as they go on, and their files grow with what is recorded alone.

    python benchmarks/soak.py --minutes 30        # writes benchmarks/results/soak.json

Four experiments, one after the other, each by `fedsim run` in a process of its own for a quarter of the time, then
SIGTERM: 100,000 rounds of a tiny model with five strategies; a million clients of whom a hundred come; gossip between
10,000 nodes; 20 strategies on 10 seeds at once. Every second the process's memory (VmRSS) and the bytes of its run
folder, checkpoints apart, are written down. A strategy's table of clients has to grow until all of them were heard:
its bytes, a row for each client that the schedule has let come by then, are taken off, and the last checkpoint has to
hold just as many rows. Growth is the median of what is left in the last quarter of the time over that of the second
quarter; the folder's bytes a round are those of the second half of the time beside those of the whole. The script ends
with an error where memory has grown by more than a twentieth, where a round of the second half has added more to the
folder than one of the whole, or a process has ended by itself in any way but well.

30 minutes on two cores shared with much other work that went first (nice 15), so in fewer rounds than there could be;
torch 2.13.0+cpu, one thread:

    case       rounds    runs    MB, second and last quarter    tables, MB     growth of the rest    folder, MB
    rounds     22,200       5               359.4     359.4         0.0   0.0               1.000          0.80
    clients    15,400       1               708.6     735.9        37.0  65.8               0.999         31.62
    nodes         240       1               400.9     400.9         0.0   0.0               1.000          0.02
    runs          300     200               394.1     394.1         0.1   0.1               1.000          3.79

Before checkpoints were written piece by piece the second of these grew by 16 %: each took two copies of the table, in
memory that stays once it is taken.
"""

from __future__ import annotations

import argparse
import csv
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

import numpy as np
import tomli_w
from safetensors import safe_open

from fedsim import standing
from fedsim.files import write_json
from fedsim.participation import Schedule
from fedsim.record import read_metrics

RESULTS = Path(__file__).parent / "results"
MOST = 1.05  # growth of memory that is allowed
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


def last_round(run: Path) -> int:
    """The round of the evaluation that was recorded last."""
    with open(run / "times.csv", "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        whole = file.read().rpartition(b"\n")[0]
    *_, line = csv.reader(whole.decode(errors="replace").splitlines())
    return int(line[2])


def rows_of(run: Path) -> list[tuple[int, int, int, int]]:
    """The tables of clients in the last checkpoint of a run folder, each as the seed of its run, the round, how many
    rows it has, and the bytes of one."""
    saved, _ = standing.latest(run)
    if saved is None:
        return []
    content = json.loads(saved.path.read_text())["content"]
    found = []
    with safe_open(saved.path.with_suffix(".safetensors"), framework="pt") as file:

        def look(part: Any, one: dict[str, Any]) -> None:
            if isinstance(part, dict) and isinstance(table := part.get("table"), dict) and "slot" in table:
                rows = file.get_slice(table["data"]["tensor"])
                a_row = file.get_tensor(table["data"]["tensor"])[:1]
                found.append((one["seed"], one["done"], rows.get_shape()[0], a_row.numel() * a_row.element_size()))
            elif isinstance(part, dict):
                for each in part.values():
                    look(each, one)

        for one in content["runs"]:
            look(one["state"], one)
    return found


def heard(schedule: Schedule, rounds: int) -> Any:
    """[rounds + 1] how many different clients have taken part after so many rounds."""
    came, count = np.zeros(schedule.n, dtype=bool), [0]
    for t in range(rounds):
        who = schedule.present(t)
        count.append(count[-1] + int((~came[who]).sum()))
        came[who] = True
    return count


def tables_at(run: Path, rounds: list[int]) -> list[int]:
    """Bytes that the strategies' tables of clients took when so many rounds were recorded. Raises RuntimeError where a
    table of the last checkpoint has not a row for each client that came."""
    bytes = [0] * len(rounds)
    count: dict[int, Any] = {}
    for seed, done, rows, each in rows_of(run):
        if seed not in count:
            count[seed] = heard(Schedule.load(run / f"schedule-seed{seed}.npz"), max(done, *rounds))
        if rows != count[seed][done]:
            raise RuntimeError(f"a table has {rows} rows after round {done}, in which {count[seed][done]} had come")
        bytes = [total + each * count[seed][t] for total, t in zip(bytes, rounds, strict=True)]
    return bytes


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
    begin, seen = time.monotonic(), list[tuple[int, int, int]]()
    while child.poll() is None and time.monotonic() - begin < seconds:
        held = memory(child.pid)
        if held:
            seen.append((held, last_round(run), size(run)))
        time.sleep(1.0 if seconds > 20 else 0.1)
    ended = child.poll()
    if ended is None:
        child.send_signal(signal.SIGTERM)
    said = child.communicate()[1]
    if (ended or 0) != 0 or child.returncode not in (0, 143):
        raise RuntimeError(f"it ended with {child.returncode}: {said.strip()}")
    rows = read_metrics(run)
    quarter = max(1, len(seen) // 4)
    kept = tables_at(run, [t for _, t, _ in seen])
    other = [held - table for (held, _, _), table in zip(seen, kept, strict=True)]

    def middles(values: list[int]) -> list[float]:
        """The medians in the second quarter and in the last."""
        return [statistics.median(part) for part in (values[quarter : 2 * quarter] or values, values[-quarter:])]

    early, late = middles(other)
    (_, half, there), (_, end, all_of_it) = seen[len(seen) // 2], seen[-1]
    rounds = sorted({row.round for row in rows})
    return {
        "seconds": round(time.monotonic() - begin, 1),
        "rounds": rounds[-1],
        "runs": len({(row.strategy, row.seed) for row in rows}),
        "evaluations": len({(row.strategy, row.seed, row.round) for row in rows}),
        "memory_mb": [round(value / 1e6, 1) for value in middles([held for held, _, _ in seen])],
        "tables_mb": [round(value / 1e6, 1) for value in middles(kept)],
        "growth": late / early,
        "largest_mb": round(max(held for held, _, _ in seen) / 1e6, 1),
        "folder_mb": round(size(run) / 1e6, 2),
        "bytes_a_round": [round(all_of_it / end, 1), round((all_of_it - there) / max(1, end - half), 1)],
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
    swollen = [name for name, case in found["cases"].items() if case["bytes_a_round"][1] > case["bytes_a_round"][0]]
    if swollen:
        raise SystemExit(f"a folder grows faster and faster: {', '.join(swollen)}")


if __name__ == "__main__":
    main()
