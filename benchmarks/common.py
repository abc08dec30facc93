"""What benchmarks have in common: where numbers come from, intervals, and going on with a file of runs."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

Case = TypeVar("Case")


def machine(*packages: str) -> dict[str, Any]:
    """Where something is measured: versions, platform, cores, and how much else was going on."""
    import fedsim

    return {
        "fedsim": fedsim.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        **{name: importlib.metadata.version(name) for name in packages},
    }


def interval(differences: Sequence[float]) -> dict[str, float]:
    """Mean of paired differences and its 95 % interval (Student's t); without one for a single difference."""
    from scipy.stats import t as student

    mean = statistics.mean(differences)
    if len(differences) < 2:
        return {"mean": mean}
    half = float(student.ppf(0.975, len(differences) - 1)) * statistics.stdev(differences) / math.sqrt(len(differences))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The runs in a file of lines of JSON; none if there is no such file yet."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def go_on(
    path: Path, cases: Iterable[Case], runs: dict[Case, dict[str, Any]], run: Callable[[Case], dict[str, Any]]
) -> None:
    """Run the cases that are not among the runs yet; each is added to the file, a line of JSON, when it is over."""
    for case in cases:
        if case in runs:
            continue
        runs[case] = run(case)
        with open(path, "a") as file:
            file.write(json.dumps(runs[case], ensure_ascii=False) + "\n")
        print(*case, runs[case]["accuracy"][-1], f"{runs[case]['seconds']} s", flush=True)  # type: ignore[misc]
