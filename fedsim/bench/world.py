"""A workload as files that every contender reads: nothing of ours is needed for that."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.bench.drivers.child import torch_module

if TYPE_CHECKING:
    from fedsim.bench.workloads import Workload
    from fedsim.data import Dataset

SEED = 1
ROUNDS = 4096  # for which it is settled who is there: more than are played


def load(folder: Path | None = None) -> Dataset:
    """Fashion-MNIST. Raises FileNotFoundError, one line that says where it was sought."""
    from fedsim import data

    return data.load("fashion-mnist", folder)


def save_images(dataset: Dataset, file: Path) -> None:
    """The training examples, which all workloads share."""
    np.savez(file, inputs=dataset.inputs.numpy(), targets=dataset.targets.numpy())


def first(model: str) -> Any:
    """The model where everybody begins [P], float32."""
    import torch

    from fedsim import models

    with models.seeded(SEED):
        made = torch_module(model)
    return torch.nn.utils.parameters_to_vector(made.parameters()).detach().numpy()


def save(workload: Workload, dataset: Dataset, images: Path, folder: Path) -> None:
    """A workload's folder for `drivers/child.py`: who holds what, who is there, who is joined, the first model."""
    import networkx as nx

    from fedsim.data.partition import IID
    from fedsim.participation import Uniform

    n = workload.clients
    folder.mkdir(parents=True)
    if workload.gossip:
        rows = np.arange(n * workload.examples).reshape(n, workload.examples) % len(dataset.targets)
        graph = nx.random_regular_graph(workload.degree, n, seed=SEED)
        neighbours = np.array([sorted(graph[i]) for i in range(n)])
        cohorts = np.zeros((0, 0), dtype=np.int64)
    else:
        places = IID().split(dataset.targets.numpy(), n, SEED).rows
        rows = np.asarray(places)[: n * workload.examples].reshape(n, workload.examples)
        neighbours = np.zeros((n, 0), dtype=np.int64)
        schedule = Uniform(workload.present).draw(n, ROUNDS, SEED)
        cohorts = np.stack([row.chosen.numpy() for row in schedule])
    np.savez(folder / "world.npz", rows=rows, cohorts=cohorts, neighbours=neighbours, first=first(workload.model))
    spec = {"workload": asdict(workload), "images": str(images), "mean": dataset.mean, "std": dataset.std}
    (folder / "spec.json").write_text(json.dumps(spec))


def accuracy(workload: Workload, dataset: Dataset, model: Any) -> float:
    """Of a model [P] on the test set, whoever trained it."""
    import torch

    made = torch_module(workload.model)
    torch.nn.utils.vector_to_parameters(torch.from_numpy(np.asarray(model, np.float32)), made.parameters())
    assert isinstance(dataset.mean, float)
    assert isinstance(dataset.std, float)
    inputs = (dataset.test_inputs.float() / 255 - dataset.mean) / dataset.std
    with torch.no_grad():
        hits = [
            (made(x).argmax(1) == y).sum()
            for x, y in zip(inputs.split(1000), dataset.test_targets.split(1000), strict=True)
        ]
    return float(torch.stack(hits).sum()) / len(dataset.test_targets)
