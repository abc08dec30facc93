"""Operators of fedsim's own, for CPUs: small products of matrices, convolutions of few channels, pooling, shuffling.

The libraries torch calls are made for large matrices; a client's are small, and on some processors those libraries use
half of what a core can do (benchmarks/engine/NOTES.md). Where there is a C++ compiler these operators are compiled once
a machine, in some seconds, and kept in the user's cache; where there is none, torch's are used. FEDSIM_NATIVE=0 does
without them.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any, NamedTuple

COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-O3", "-march=native", "-std=c++20", "-fwrapv", "-shared", "-fPIC")
PATIENCE = 300.0  # seconds for a compiler
_loading = threading.Lock()


class Found(NamedTuple):
    """What came of looking for the operators."""

    operators: Any  # torch.ops.fedsim, or None
    told: str  # which operators are used, for people


class Recipe(NamedTuple):
    """How the operators are compiled."""

    compiler: list[str]
    version: str
    name: str  # of the library: another one for whatever it depends on


def operators() -> Any:
    """torch.ops.fedsim, compiled if need be; None where there is no such thing, which `told` explains."""
    return found().operators


def told() -> str:
    """Which operators train models on a CPU here, in words."""
    return found().told


def pending() -> bool:
    """Whether the operators are still to be compiled, which takes some seconds."""
    wanted = recipe()
    return isinstance(wanted, Recipe) and not (cache() / wanted.name).is_file()


def found() -> Found:
    """Looks for the operators, once in a process."""
    with _loading:
        return _found()


@functools.cache
def _found() -> Found:
    import torch

    wanted = recipe()
    if isinstance(wanted, str):
        return Found(None, f"torch's ({wanted})")
    try:
        torch.ops.load_library(str(library(wanted)))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        why = getattr(error, "stderr", None) or str(error)
        return Found(None, f"torch's ({Path(wanted.compiler[0]).name}: {' '.join(str(why).split())[:200]})")
    return Found(torch.ops.fedsim, f"fedsim's own, by {wanted.version}")


@functools.cache
def recipe() -> Recipe | str:
    """How they are compiled; in words, why they are not."""
    import torch

    from fedsim.native.source import SOURCE

    if os.environ.get("FEDSIM_NATIVE", "1") == "0":
        return "FEDSIM_NATIVE=0"
    compiler = next((path for name in (os.environ.get("CXX", ""), *COMPILERS) if name and (path := which(name))), None)
    if compiler is None:
        return "no C++ compiler"
    try:
        asked = subprocess.run([*compiler, "--version"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{Path(compiler[0]).name}: {error}"
    version = (asked.stdout.splitlines() or ["a compiler that does not say its version"])[0]
    depends = (SOURCE, FLAGS, compiler, asked.stdout, torch.__version__, torch.__file__, processor())
    return Recipe(compiler, version, f"operators-{hashlib.sha256(repr(depends).encode()).hexdigest()[:24]}.so")


def which(command: str) -> list[str] | None:
    """A command as a list, its program by its path; None: there is no such program."""
    first, *rest = shlex.split(command) or [""]
    path = shutil.which(first)
    return None if path is None else [path, *rest]


def library(wanted: Recipe) -> Path:
    """The compiled operators. Raises OSError or subprocess.SubprocessError where they cannot be compiled."""
    import torch

    from fedsim.native.source import SOURCE

    folder = cache()
    if (folder / wanted.name).is_file():
        return folder / wanted.name
    root = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory(dir=folder) as room:  # whoever compiles it at the same time has a room of its own
        source, made = Path(room) / "operators.cpp", Path(room) / wanted.name
        source.write_text(SOURCE)
        links = [f"-L{root / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
        command = [*wanted.compiler, *FLAGS, f"-I{root / 'include'}", str(source), "-o", str(made), *links]
        subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
        made.replace(folder / wanted.name)
    return folder / wanted.name


def cache() -> Path:
    """The folder that keeps what was compiled: the user's own, or of this process where there is none."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(base) / "fedsim"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(_passing().name)


@functools.cache
def _passing() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="fedsim-")


def processor() -> str:
    """What -march=native looks at: homes are shared between machines."""
    cpu = Path("/proc/cpuinfo")
    if not cpu.is_file():
        return f"{platform.machine()} {platform.processor()}"
    lines = cpu.read_text(errors="replace").split("\n\n")[0].splitlines()
    said = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU part", "CPU implementer")
    return "\n".join(line for line in lines if line.startswith(said))
