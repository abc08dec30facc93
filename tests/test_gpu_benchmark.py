"""benchmarks/gpu_cifar10.py at a tiny size on the CPU: both contenders do the work that is stated."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim import LocalSGD, Stacked, make_task, models, simulate, strategies
from fedsim.bench import workloads
from fedsim.data import Dataset
from fedsim.data.partition import Parts
from fedsim.participation import Schedule
from fedsim.participation.schedule import Lists

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(Path(name).stem, BENCHMARKS / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    rng = np.random.default_rng(3)
    targets = rng.integers(10, size=160)
    inputs = rng.integers(256, size=(160, 3, 8, 8)) // 2 + 12 * targets[:, None, None, None]
    pictures, labels = torch.from_numpy(inputs.astype(np.uint8)), torch.from_numpy(targets)
    return Dataset("tiny", pictures, labels, pictures[:40], labels[:40], 10)


def test_the_set_up_is_pfls() -> None:
    """1000 users of 50 images, 50 a round, an epoch in batches of 10, 1500 rounds: 375,000 steps."""
    work = script("gpu_cifar10.py").CIFAR
    assert (work.clients, work.examples, work.present, work.batch, work.rounds) == (1000, 50, 50, 10, 1500)
    assert work.steps * work.batch == work.examples
    assert work.present * work.steps * work.rounds == 375_000
    assert sum(p.numel() for p in models.build(work.model, (3, 32, 32), 10).parameters()) == work.parameters


def test_both_have_the_same_network() -> None:
    theirs = script("engine/cifar10_pfl.py").network
    ours = models.build("pfl-cnn", (3, 32, 32), 10).eval()
    first = torch.nn.utils.parameters_to_vector(ours.parameters()).detach()
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(theirs((3, 32, 32), first.numpy()).eval()(x), ours(x))
        assert [type(layer) for layer in theirs((3, 32, 32))] == [type(layer) for layer in ours]
        rates = [[layer.p for layer in m if isinstance(layer, torch.nn.Dropout)] for m in (theirs((3, 32, 32)), ours)]
        assert rates[0] == rates[1]


def test_ours_plays_the_rounds_and_is_judged(dataset: Dataset, tmp_path: Path) -> None:
    """The child process ends where `simulate` does here with the same users, and its accuracy is that model's."""
    made = script("gpu_cifar10.py")
    work = replace(made.CIFAR, clients=12, examples=10, present=3, rounds=2, warm=1, batch=5, steps=2)
    found = made.cifar10(work, tmp_path / "world", dataset, None, "cpu")
    world = np.load(tmp_path / "world" / "world.npz")
    assert sorted(world["rows"].reshape(-1).tolist()) == sorted(set(world["rows"].reshape(-1).tolist()))
    scale = dataset.inputs.numpy() / 255
    pool = dataset._replace(mean=float(scale.mean()), std=float(scale.std()))
    module = models.build("pfl-cnn", (3, 8, 8), 10)
    torch.nn.utils.vector_to_parameters(torch.from_numpy(world["first"]), module.parameters())
    parts = Parts(world["rows"].reshape(-1), np.arange(0, 120, 10), np.full(12, 10), drawn=True)
    task = make_task(pool, parts, module)
    chosen = Lists(np.arange(5) * 3, world["cohorts"].reshape(-1).astype(np.int32))
    steps = simulate(task, strategies.FedAvg(), Schedule(12, 4, chosen), LocalSGD(lr=0.1, steps=2, batch=5),
                     seed=1, engine=Stacked(1))  # fmt: skip
    *_, last = (next(steps) for _ in range(3))
    told = np.load(tmp_path / "world" / "fedsim.npy")
    np.testing.assert_allclose(told, last.model.numpy(), rtol=1e-4, atol=1e-6)
    assert not np.allclose(told, world["first"], atol=1e-4)
    params = task.layout.views(torch.from_numpy(told))
    hits = task.outputs(params, dataset.test_inputs).argmax(1) == dataset.test_targets
    assert found["fedsim"]["accuracy"] == float(hits.double().mean())
    assert found["fedsim"]["seconds_of_all"] > found["fedsim"]["seconds"] > 0
    assert found["parameters"] == task.layout.size
    assert "ratio" not in found
    with pytest.raises(SystemExit, match="needs 1200 images, and there are 160"):
        made.save(replace(work, clients=120), dataset, tmp_path / "many")


def test_the_roofline_counts_flop_and_bytes(dataset: Dataset, tmp_path: Path) -> None:
    made = script("gpu_cifar10.py")
    grey = Dataset("grey", dataset.inputs[:, :1], dataset.targets, dataset.test_inputs[:, :1], dataset.test_targets, 10)
    work = replace(workloads.WORKLOADS["W1"], clients=16, examples=10, present=8, rounds=1, warm=1, batch=5, steps=2)
    found = made.roofline(work, tmp_path / "world", grey, "cpu")
    assert found["flop_a_round"] == 8 * 2 * 5 * (2 * 2 * 64 * 10)
    assert found["bytes_a_round"] == 8 * 2 * 3 * 4 * 650
    assert found["roofline"] == pytest.approx(max(found["limits"].values()) / found["seconds"])
    assert 0 < found["roofline"] < 1
    assert math.isfinite(found["peak_flop_per_second"])
