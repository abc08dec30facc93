"""Run folders made by hand for the tests of the page: known curves, nobody trained."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedsim import experiment
from fedsim.clients import summary
from fedsim.participation import Bernoulli, Equal
from fedsim.record import RunFolder

ENVIRONMENT = {
    "python": "3.11.7", "packages": {"fedsim": "0.1.0", "torch": "2.9"}, "platform": "Linux", "processor": "x86_64",
    "device": "cpu", "gpu": None, "threads": 1, "started": "2026-01-02T03:04:05+00:00",
}  # fmt: skip


def height(place: int, seed: int, share: float) -> float:
    """The accuracy of the strategy at a place: later ones are worse by 0.1, and a seed is as lucky for all of them."""
    luck = 0.01 * math.sin(7 * seed) + 0.001 * math.cos(place + seed)
    return (0.9 - 0.1 * place) * (1 - math.exp(-4 * share)) + luck


def toml(labels: Sequence[str], seeds: Sequence[int], rounds: int, every: int, **more: Any) -> str:
    """An experiment of FedAvgs, the last of them gossip on a ring."""
    entries = [{"name": "FedAvg", "label": label, "lr": 1.0} for label in labels]
    if more.pop("gossip", True) and len(labels) > 2:
        entries[-1] = {"name": "DPSGD", "label": labels[-1], "topology": {"name": "ring"}}
    document: dict[str, Any] = {
        "name": more.pop("name", "made"),
        "task": {
            "data": "digits",
            "clients": 20,
            "model": "logistic",
            "partition": {"name": "dirichlet", "alpha": 0.5},
        },
        "participation": {"name": "bernoulli", "probabilities": {"name": "equal", "p": 0.3}},
        "local": {"lr": 0.1, "steps": 2, "batch": 8},
        "strategy": entries,
        "run": {"rounds": rounds, "seeds": list(seeds), "eval-every": every},
    }
    for key, value in more.items():
        document[key] = {**document[key], **value} if isinstance(document.get(key), dict) else value
    return experiment.parse(document).toml()


def made(
    path: Path, labels: Sequence[str] = ("FedAvg", "FedAU", "gossip"), seeds: Sequence[int] = (1, 2, 3),
    rounds: int = 40, every: int = 4, value: Callable[[int, int, float], float] = height,
    lost: Mapping[tuple[str, int], str] | None = None, clients: bool = True, more: Sequence[str] = (), **table: Any,
) -> Path:  # fmt: skip
    """A run folder of curves `value(place of the label, seed, share of the rounds)`. Runs in `lost` end half way, with
    that reason, or none: as if the machine had been switched off. `more`: metrics beside the usual ones."""
    text = toml(labels, seeds, rounds, every, **table)
    n = tomllib.loads(text)["task"]["clients"]
    rng = np.random.default_rng(0)
    with RunFolder(path, text, ENVIRONMENT) as folder:
        for seed in seeds:
            schedule = Bernoulli(Equal(0.3)).draw(n, rounds, seed)
            folder.schedule(seed, schedule)
            for place, label in enumerate(labels):
                gone = (lost or {}).get((label, seed))
                until = rounds if gone is None else rounds // 2
                for t in [*range(0, until, every), until]:
                    accuracy = value(place, seed, t / rounds)
                    metrics = {"test_loss": 2.5 - 2 * accuracy, "test_accuracy": accuracy, "present": 6.0}
                    metrics |= {"worst_decile_accuracy": accuracy / 2, "weight_distance": 0.5 - accuracy / 3}
                    metrics |= {"bytes_up": 1e5 * t * (place + 1), "bytes_down": 1e5 * t}
                    metrics |= {name: accuracy + i for i, name in enumerate(more)}
                    if label == "gossip":
                        metrics["consensus_distance"] = 1e-7 if t == 0 else 1 / t
                    folder.measured(label, seed, t, metrics)
                if gone:
                    folder.failed({"strategy": label, "seed": seed, "round": until, "reason": gone})
                elif gone is None:
                    run = {"strategy": label, "seed": seed, "rounds": rounds, "final": metrics, "final_mean": metrics,
                           "seconds": 2.0, "client_trainings_per_second": 100.0 + place,
                           "spent": {"training": 1.0, "aggregation": 0.5, "evaluation": 0.5}}  # fmt: skip
                    if clients:
                        held = {"client": np.arange(n), "examples": np.arange(n) + 5, "held_out": np.zeros(n, int)}
                        well = accuracy if math.isfinite(accuracy) else 0.1
                        figures = {"loss": rng.random(n), "accuracy": well + 0.01 * rng.random(n)}
                        who = {"rate": schedule.rates(), "weight": np.full(n, 1 / n), "group": np.arange(n) % 3}
                        run["clients"] = summary({**held, **who, "effective_weight": np.full(n, 1 / n), **figures})
                        harm = {"worse": 0.1 * place, "difference": 0.02 * place}
                        run["clients"]["harm"] = {"against": labels[-1], "accuracy": harm}
                    folder.finished(run)
    return path
