"""A Flower app folder around an experiment: what `fedsim new app` makes, and what is submitted to a SuperLink."""

from __future__ import annotations

import re
from pathlib import Path

import tomli_w

EXPERIMENT = """\
# What `flwr run .` runs: fedsim list strategies, fedsim list topologies, ...

[task]
data = "digits"
clients = 4        # as many SuperNodes
model = { name = "mlp", hidden = [32] }
partition = { name = "dirichlet", alpha = 0.3 }

[participation]
name = "bernoulli"
probabilities = 0.7

[local]
lr = 0.1
steps = 5
batch = 16

[[strategy]]
name = "FedAU"

[[strategy]]
name = "DPSGD"
label = "gossip"
topology = "ring"

[run]
rounds = 3
eval-every = 1
device = "cpu"
threads = 1
"""

README = """\
# {name}

An experiment of fedsim as a Flower app: edit experiment.toml, then

    flwr run . --stream --federation-config "num-supernodes=4"

or, on SuperNodes started with --node-config "partition-id=0 num-partitions=4" and so on,

    flwr run . CONNECTION --stream --run-config 'out="runs/first" set="run.rounds=10"'

fedsim must be installed where the SuperLink and the SuperNodes run. The run folder appears where the SuperLink runs.
"""


def app(folder: Path) -> None:
    """Makes a small app to begin with. Raises FileExistsError when the folder is there and holds something, ValueError
    when Flower will not have its name."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already; choose another folder")
    name = folder.absolute().name
    if not re.fullmatch(r"[a-zA-Z][a-zA-Z0-9-]{0,31}", name):
        why = "letters, digits and hyphens, at most 32, a letter first"
        raise ValueError(f"{name!r} cannot be the folder of a Flower app, which wants {why}; choose another")
    write(folder, name, EXPERIMENT)
    (folder / "README.md").write_text(README.format(name=name), encoding="utf-8")


def write(folder: Path, name: str, experiment: str, **config: str | float | bool) -> None:
    """Writes an app: the experiment, and a pyproject.toml that says how Flower runs it."""
    project = {
        "project": {
            "name": name,
            "version": "1.0.0",
            "description": "An experiment of fedsim",
            "license": "Apache-2.0",
            "dependencies": [],  # fedsim comes with the machine: a SuperLink may have no index to install from
        },
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "fedsim",
                    "components": {"serverapp": "fedsim.flower.app:server", "clientapp": "fedsim.flower.app:client"},
                    "config": {"experiment": "experiment.toml", **({"out": "", "set": ""} | config)},
                }
            }
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "experiment.toml").write_text(experiment, encoding="utf-8")
    (folder / "pyproject.toml").write_text(tomli_w.dumps(project), encoding="utf-8")
