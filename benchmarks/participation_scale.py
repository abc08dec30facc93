"""Claim: who is there among a million clients for 10,000 rounds, a hundred a round, takes seconds and under 1 GB.

For each process and stage, in a process of its own: draw the schedule, go through its rows, save it, load it, describe
it and draw the figures of `fedsim participation`. Seconds are wall time, one thread; peak memory is getrusage's of the
whole process, of which Python, torch and fedsim are the line "nothing" ("drawn": after drawing, "all": at the end). The
stages stand on Bernoulli clients of the same rate; those that take some away stand on more, so that about a hundred a
round are left. "cyclic" and "tower" (partial work of dropout of selection of outages of lifespans) are there too.

    python benchmarks/participation_scale.py        # about three minutes; results/participation_scale.json

Two cores shared with other work (load 7): drawing 0.3 to 6 s, report and figures 2 to 7 s, the rows of uniform, which
name a million available clients each, 11 s and of the others below 0.2 s; peak 362 to 575 MB, 233 of them "nothing".
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import machine

if TYPE_CHECKING:  # the parent stays small: a child's peak begins at its parent's
    from fedsim.participation import Participation

RESULTS = Path(__file__).parent / "results" / "participation_scale.json"
CASES = ("nothing", "uniform", "bernoulli", "markov", "diurnal", "cyclic", "selected", "dropout", "partial-work",
         "deadline", "outages", "lifespans", "tower")  # fmt: skip
SECONDS, MEGABYTES = 60.0, 1000.0  # what every case has to stay under


def process(case: str, p: float, k: int, rounds: int) -> Participation:
    """The process of a case: presence p of everybody, k a round."""
    from fedsim import participation as parts

    def there(times: float = 1.0) -> Participation:
        return parts.Bernoulli(times * p)

    stay = rounds / 2  # who joins in the first half and stays so long is there for about 0.38 of all rounds
    made: dict[str, Participation] = {
        "uniform": parts.Uniform(k),
        "bernoulli": there(),
        "markov": parts.Markov(p),
        "diurnal": parts.Diurnal(p / 0.7),
        "cyclic": parts.Cyclic(p, length=rounds, start="stationary"),
        "selected": parts.Selected(there(2), k),
        "dropout": parts.Dropout(there(1 / 0.9), 0.1),
        "partial-work": parts.PartialWork(there(), 0.5),
        "deadline": parts.Deadline(there(2), 1.0, 0.5, noise=0.2),
        "outages": parts.Outages(there(1 / 0.9), clusters=10, down=0.1),
        "lifespans": parts.Lifespans(there(2.6), joining=rounds // 2, stay=stay),
        "tower": parts.PartialWork(
            parts.Dropout(parts.Selected(parts.Outages(parts.Lifespans(there(6), rounds // 2, stay)), k), 0.1)
        ),
    }
    return made[case]


def peak() -> float:
    """The most memory this process has held so far, in MB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1e-6 if sys.platform == "darwin" else 1.024e-3)  # bytes there, kibibytes on Linux


def measure(case: str, clients: int, rounds: int, k: int) -> dict[str, Any]:
    """One case, in this process."""
    import torch

    from fedsim.participation import Schedule
    from fedsim.report import participation as report

    torch.set_num_threads(1)
    if case == "nothing":
        return {"seconds": {}, "peak_mb": {"all": peak()}}
    seconds: dict[str, float] = {}
    begin = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal begin
        seconds[name], begin = time.perf_counter() - begin, time.perf_counter()

    schedule = process(case, k / clients, k, rounds).draw(clients, rounds, 0)
    lap("draw")
    drawn = peak()
    for row in schedule:
        del row
    lap("rows")
    with tempfile.TemporaryDirectory() as folder:
        schedule.save(Path(folder) / "schedule.npz")
        size = (Path(folder) / "schedule.npz").stat().st_size
        lap("save")
        schedule = Schedule.load(Path(folder) / "schedule.npz")
        lap("load")
        found = report.describe(schedule)
        lap("describe")
        report.write(Path(folder) / "report", schedule, found, None)
        lap("figures")
    return {
        "process": repr(process(case, k / clients, k, rounds)),
        "asked": found["work"]["asked"],
        "present": found["present"]["mean"],
        "file_mb": size / 1e6,
        "seconds": seconds,
        "peak_mb": {"drawn": drawn, "all": peak()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--clients", type=int, default=10**6)
    parser.add_argument("--rounds", type=int, default=10**4)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--case", choices=CASES, help="only this one, in this process, as a line of JSON")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.case:
        print(json.dumps(measure(given.case, given.clients, given.rounds, given.k)))
        return
    size = ["--clients", str(given.clients), "--rounds", str(given.rounds), "--k", str(given.k)]
    result: dict[str, Any] = {
        "command": " ".join(["python benchmarks/participation_scale.py", *sys.argv[1:]]),
        "clients": given.clients,
        "rounds": given.rounds,
        "k": given.k,
        "machine": machine("torch", "numpy", "matplotlib"),
        "limits": {"seconds": SECONDS, "peak_mb": MEGABYTES},
        "cases": {},
    }
    for case in CASES:
        command = [sys.executable, __file__, "--case", case, *size]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        if told.returncode:
            raise SystemExit(f"{case} failed:\n{told.stderr}")
        found = result["cases"][case] = json.loads(told.stdout)
        took = ", ".join(f"{name} {value:.2f} s" for name, value in found["seconds"].items())
        peaks = ", ".join(f"{name} {value:.0f} MB" for name, value in found["peak_mb"].items())
        print(f"{case:12} {found.get('present', 0):6.1f} a round; {took}; peak {peaks}", file=sys.stderr)
    result["within_limits"] = all(
        sum(found["seconds"].values()) < SECONDS and max(found["peak_mb"].values()) < MEGABYTES
        for found in result["cases"].values()
    )
    with tempfile.NamedTemporaryFile("w", dir=given.out.parent, delete=False, suffix=".json") as file:
        file.write(json.dumps(result, indent=1) + "\n")
    os.replace(file.name, given.out)
    verdict = "all within" if result["within_limits"] else "NOT all within"
    print(f"{verdict} {SECONDS:.0f} s and {MEGABYTES:.0f} MB; {given.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
