"""Where a run comes from: the name of its folder, and the machine it ran on."""

from __future__ import annotations

import contextlib
import datetime
from pathlib import Path
from typing import Any


def default_folder(name: str, now: datetime.datetime | None = None) -> Path:
    """runs/<name>-<date time>, with a number after it when that is taken."""
    stamp = (now or datetime.datetime.now()).strftime("%Y%m%d-%H%M%S")
    first = Path("runs") / f"{name}-{stamp}"
    path, number = first, 1
    while path.exists():
        number += 1
        path = first.with_name(f"{first.name}-{number}")
    return path


def environment(device: str) -> dict[str, Any]:
    """What a run depends on beside its experiment. Imports torch."""
    import importlib.metadata
    import platform
    import sys

    import torch

    from fedsim import __version__, native

    versions = {"fedsim": __version__}
    for package in ("torch", "numpy", "networkx", "flwr"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    gpu = torch.cuda.get_device_name(torch.device(device)) if device.startswith("cuda") else None
    return {
        "python": sys.version.split()[0],
        "packages": versions,
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "device": device,
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "operators": native.told() if device == "cpu" else None,
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }
