"""Who is measured, in which settings, and the environments they need."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim import resolve
from fedsim.bench.turns import CHILD, Player

KEPT = {  # glibc keeps pages it would hand back to the system between steps: nothing to clear and map again
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),  # the largest it takes
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
}
TUNED = {  # and torch takes large pages, and helpers without work leave the cores to other threads
    **KEPT,
    "THP_MEM_ALLOC_ENABLE": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")

Setting = dict[str, Any]


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memories() -> dict[str, dict[str, str]]:
    """Ways to hold memory and cores, by name, as environment variables: what is offered to all."""
    with_glibc = platform.libc_ver()[0] == "glibc"
    return {"": {}, "tuned": TUNED} if with_glibc else {"": {}}


def many(what: str, most: int) -> list[Setting]:
    """One and as many as there are cores of something."""
    return [{what: count} for count in sorted({1, most})]


@dataclass(frozen=True)
class Rival:
    """A contender: its driver, what it needs, and what may be tried."""

    name: str
    title: str
    driver: str
    settings: Callable[[int], list[Setting]]  # of so many cores; "threads" is what a process may use of them
    needs: tuple[tuple[str, ...], ...] = ()  # packages in the versions tested, of each environment; none: it is ours
    torch: bool = True
    gossip: tuple[bool, ...] = (False,)
    alone: bool = False  # a setting at a time: it is heavy
    differs: str = ""  # from the workload as it is stated

    @property
    def ours(self) -> bool:
        """Whether it runs in our own environment."""
        return not self.needs


def fedjax_settings(n: int) -> list[Setting]:
    """Old JAX is the faster one on small models, new JAX on large ones, where `pmap` runs no more."""
    both: list[Setting] = [{"backend": "jit", "environment": i} for i in (0, 1)]
    return [*both, *([{"backend": "pmap", "devices": n, "environment": 0}] if n > 1 else [])]


RIVALS = {
    each.name: each
    for each in (
        Rival(
            "plain", "plain PyTorch", "with_plain.py", gossip=(False, True),
            settings=lambda n: [*many("threads", n), *([{"processes": n}] if n > 1 else [])],
        ),
        Rival(
            "flower", "Flower (Ray)", "with_flower.py", settings=lambda n: many("actors", n), alone=True,
            needs=(("flwr[simulation]==1.41.0", "ray==2.55.1"),),
        ),
        Rival(
            "pfl", "pfl-research", "with_pfl.py", needs=(("pfl==0.6.0",),),
            settings=lambda n: [*many("threads", n), *([{"processes": n}] if n > 1 else [])],
        ),
        Rival(
            "fedlab", "FedLab", "with_fedlab.py", needs=(("fedlab==1.3.0",),), settings=lambda n: many("threads", n),
        ),
        Rival(
            "fedjax", "FedJAX", "with_fedjax.py", torch=False, settings=fedjax_settings,
            needs=(
                ("fedjax==0.0.17", "jax==0.4.25", "jaxlib==0.4.25", "numpy<2", "scipy<1.13", "dm-haiku<0.0.14"),
                ("fedjax==0.0.17", "jax==0.10.2", "jaxlib==0.10.2"),
            ),
        ),
        Rival(
            "gossipy", "gossipy", "with_gossipy.py", needs=(("gossipy-dfl==0.0.1",),), gossip=(True,),
            settings=lambda n: many("threads", n),
            differs="plain push: a node sends to one random neighbour instead of four, averages half and half with "
            "what it gets, and trains for every model received (once a round on average)",
        ),
    )
}  # fmt: skip
OURS = Rival("fedsim", "fedsim", "with_fedsim.py", settings=lambda n: many("threads", n), gossip=(False, True))


def chosen(names: Sequence[str]) -> list[Rival]:
    """Rivals by name, in the order of the table. Raises ValueError for a name that is not in it."""
    for name in names:
        if name not in RIVALS:
            raise ValueError(f"rival {name!r} is not known{resolve.nearest(name, RIVALS)}")
    return [rival for name, rival in RIVALS.items() if name in names]


def label(rival: Rival, setting: Setting, memory: str = "") -> str:
    """A setting in words."""
    words = []
    for what, value in setting.items():
        if what == "environment":  # known by the package in which it differs
            words.append(rival.needs[value][1])
        else:
            words.append(
                f"{value} {what if value != 1 else what.removesuffix('s')}" if isinstance(value, int) else value
            )
    return ", ".join([*words, *([memory] if memory else [])]) or "as it comes"


# Processes ------------------------------------------------------------------------------------------------------------


def start(rival: Rival, python: str, world: Path, setting: Setting, memory: dict[str, str]) -> Player:
    """A contender at work on a workload. `threads` limits the libraries; processes and actors have one each."""
    environment = {name: value for name, value in os.environ.items() if name not in THREADS}
    if set(setting) & {"threads", "processes", "actors"}:
        environment |= dict.fromkeys(THREADS, str(setting.get("threads", 1)))
    if "devices" in setting:
        environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={setting['devices']}"
    if rival.ours:
        package = str(Path(__file__).parents[2])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, environment.get("PYTHONPATH", "")]))
    else:
        environment.pop("PYTHONPATH", None)
    command = [python, str(CHILD), rival.driver, str(world), json.dumps(setting)]
    return Player(command, environment | memory)


# Environments ---------------------------------------------------------------------------------------------------------


def requirements(rival: Rival, which: int = 0) -> list[str]:
    """What is installed for a rival: its packages, and PyTorch in our own version."""
    own = importlib.metadata.version("torch").partition("+")[0]
    needs = rival.needs[which]
    numpy = [] if any(one.startswith("numpy") for one in needs) else ["numpy"]
    return [*([f"torch=={own}"] if rival.torch else []), *numpy, *needs]


def environments(rival: Rival, folder: Path, say: Callable[[str], None]) -> list[str]:
    """The Pythons of the rival's environments under `folder`, each made if it is not there or was made for something
    else. Raises RuntimeError with what pip said last if one cannot be made."""
    if rival.ours:
        return [sys.executable]
    return [_environment(rival, which, folder, say) for which in range(len(rival.needs))]


def _environment(rival: Rival, which: int, folder: Path, say: Callable[[str], None]) -> str:
    place = folder / (f"{rival.name}-{which}" if which else rival.name)
    python, marker = place / "bin" / "python", place / "fedsim-bench.txt"
    needed = requirements(rival, which)
    stamp = hashlib.sha256("\n".join([*needed, sys.version]).encode()).hexdigest()
    if marker.exists() and marker.read_text() == stamp:
        return str(python)
    say(f"making an environment for {rival.title}: {', '.join(rival.needs[which])}")
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    _run([sys.executable, "-m", "venv", "--clear", str(place)])
    if rival.torch:  # first: a range that it satisfies then installs no other
        _run([*pip, *needed[:2]])
    _run([*pip, *needed])
    marker.write_text(stamp)
    return str(python)


def _run(command: list[str]) -> None:
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    if told.returncode:
        said = [line for line in told.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise RuntimeError(f"its environment cannot be made: {(said or ['pip failed'])[-1].strip()}")
