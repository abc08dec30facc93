"""benchmarks/gpu_cifar10.py at a tiny size on the CPU: both contenders do the work that is stated."""

from __future__ import annotations

import importlib.util
import json
import math
import os
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


def small(made: Any, **changes: Any) -> workloads.Workload:
    sizes = {"clients": 12, "examples": 10, "present": 3, "rounds": 3, "warm": 1, "batch": 5, "steps": 2}
    return replace(made.CIFAR, **(sizes | changes))


def by_hand(folder: Path, dataset: Dataset, t: int) -> torch.Tensor:
    """Where everyone of round t gets to [k, P] from the first model, by torch.optim.SGD without dropout, in float64."""
    world, orders = np.load(folder / "world.npz"), np.load(folder / "orders.npy")
    scale = dataset.inputs.double() / 255
    inputs = (scale - scale.mean((0, 2, 3), keepdim=True)) / scale.std((0, 2, 3), keepdim=True, correction=0)
    found = []
    for client, order in zip(world["cohorts"][t], orders[t], strict=True):
        assert sorted(order) == sorted(world["rows"][client])  # an epoch over what that user holds
        module = script("engine/cifar10_pfl.py").network((3, 8, 8), world["first"]).double().eval()
        optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
        for batch in torch.from_numpy(order).split(5):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(module(inputs[batch]), dataset.targets[batch]).backward()
            optimiser.step()
        found.append(torch.nn.utils.parameters_to_vector(module.parameters()).detach())
    return torch.stack(found)


def test_what_pfl_is_handed_are_our_minibatches(dataset: Dataset, tmp_path: Path) -> None:
    """A round of `simulate` is plain SGD over the written orders, averaged by user, dropout aside."""
    made = script("gpu_cifar10.py")
    work = small(made)
    made.save(work, dataset, tmp_path / "world", seed=4)
    world, spec = np.load(tmp_path / "world" / "world.npz"), json.loads((tmp_path / "world" / "spec.json").read_text())
    module = script("engine/cifar10_pfl.py").network((3, 8, 8), world["first"])
    for layer in module:
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    pool = dataset._replace(mean=tuple(spec["mean"]), std=tuple(spec["std"]))
    parts = Parts(world["rows"].reshape(-1), np.arange(0, 120, 10), np.full(12, 10), drawn=True)
    task = make_task(pool, parts, module, dtype=torch.float64)
    chosen = Lists(np.arange(6) * 3, world["cohorts"].reshape(-1).astype(np.int32))
    playing = simulate(task, strategies.FedAvg(), Schedule(12, 5, chosen), LocalSGD(lr=0.1, steps=2, batch=5), seed=4,
                       engine=Stacked(2))  # fmt: skip
    step, ends = next(playing), by_hand(tmp_path / "world", dataset, 0)
    torch.testing.assert_close(step.round.start + step.round.delta, ends, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(step.model, ends.mean(0), rtol=1e-6, atol=1e-7)
    other = by_hand(tmp_path / "world", dataset, 1)  # other users, other minibatches
    assert not torch.allclose(other.mean(0), step.model, rtol=1e-3, atol=1e-4)


def test_the_child_plays_the_rounds_and_is_judged(dataset: Dataset, tmp_path: Path) -> None:
    """Ours without dropout ends its first round where plain SGD does, and with it elsewhere."""
    made = script("gpu_cifar10.py")
    work = small(made, rounds=2)
    one = made.cifar10(replace(work, rounds=1), tmp_path / "one", dataset, None, "cpu", seed=4, dropout=False)
    told = torch.from_numpy(np.load(tmp_path / "one" / "fedsim.npy")).double()
    torch.testing.assert_close(told, by_hand(tmp_path / "one", dataset, 0).mean(0), rtol=1e-4, atol=1e-6)
    found = made.cifar10(work, tmp_path / "world", dataset, None, "cpu", seed=4, looks=2)
    last = np.load(tmp_path / "world" / "fedsim.npy")
    assert not np.allclose(last, told, rtol=1e-3, atol=1e-4)
    assert (one["rounds"], found["rounds"]) == (1, 2)
    assert list(found["fedsim"]["accuracy"]) == [1, 2]
    assert found["fedsim"]["late"] == found["fedsim"]["accuracy"][2]
    network = script("engine/cifar10_pfl.py").network((3, 8, 8), last).eval()
    scale = dataset.inputs.float() / 255
    mean, std = scale.mean((0, 2, 3), keepdim=True), scale.std((0, 2, 3), keepdim=True)
    with torch.no_grad():
        hits = network((dataset.test_inputs.float() / 255 - mean) / std).argmax(1) == dataset.test_targets
    assert found["fedsim"]["late"] == float(hits.double().mean())
    assert found["fedsim"]["seconds_of_all"] > found["fedsim"]["seconds"] > 0
    assert found["parameters"] == len(last)
    assert found["apart"] == {}
    assert "ratio" not in found
    with pytest.raises(SystemExit, match="needs 1200 images, and there are 160"):
        made.save(replace(work, clients=120), dataset, tmp_path / "many")
    with pytest.raises(SystemExit, match="12 users, of whom 13 a round cannot come"):
        made.save(replace(work, present=13), dataset, tmp_path / "crowd")


def test_pfl_computes_the_same_round(dataset: Dataset, tmp_path: Path) -> None:
    """pfl-research itself beside ours: without dropout their first rounds are one, with it they are not."""
    place = os.environ.get("FEDSIM_ENVS")
    python = Path(place or ".") / "pfl" / "bin" / "python"
    if place is None or not python.exists():
        pytest.skip("needs pfl-research: set FEDSIM_ENVS to the folder that `fedsim bench --rivals pfl --envs` filled")
    made = script("gpu_cifar10.py")
    same = made.cifar10(small(made), tmp_path / "same", dataset, str(python), "cpu", seed=4, dropout=False, looks=3)
    assert list(same["apart"]) == [1, 2, 3]
    assert max(same["apart"].values()) < 1e-4
    assert same["pfl"]["accuracy"] == same["fedsim"]["accuracy"]
    assert same["ratio"] == same["pfl"]["seconds"] / same["fedsim"]["seconds"]
    other = made.cifar10(small(made), tmp_path / "other", dataset, str(python), "cpu", seed=4, looks=3)
    assert min(other["apart"].values()) > 1e-2


def test_agreement_is_paired_by_seed() -> None:
    made = script("gpu_cifar10.py")
    runs = [{"seed": seed, "fedsim": {"late": ours}, "pfl": {"late": theirs}}
            for seed, ours, theirs in ((1, 0.5, 0.49), (2, 0.6, 0.61), (3, 0.7, 0.7))]  # fmt: skip
    found = made.agreement([*runs, {"seed": 9, "fedsim": {"late": 0.1}}])  # without pfl: not counted
    assert found["seeds"] == (1, 2, 3)
    assert found["fedsim"] == pytest.approx(0.6)
    assert found["difference"] == pytest.approx(0.0, abs=1e-12)
    assert found["high"] == pytest.approx(
        4.302652729696142 * 0.01 / math.sqrt(3)
    )  # Student's t, two degrees of freedom
    assert not found["clear"]
    assert made.agreement([{"seed": 9, "fedsim": {"late": 0.1}}]) is None


def test_a_result_is_gone_on_with_or_refused(tmp_path: Path) -> None:
    made, out = script("gpu_cifar10.py"), tmp_path / "found.json"
    fresh = made.before(out, {"device": "cpu", "rounds": 3})
    assert fresh["cifar10"] == fresh["workloads"] == []
    out.write_text(json.dumps(fresh | {"cifar10": [{"seed": 1}]}))
    assert made.before(out, {"device": "cpu", "rounds": 3})["cifar10"] == [{"seed": 1}]
    with pytest.raises(SystemExit, match="was made with rounds 3 instead of 4; choose another --out"):
        made.before(out, {"device": "cpu", "rounds": 4})
    out.write_text("[]")
    with pytest.raises(SystemExit, match="is not what this script writes"):
        made.before(out, {"device": "cpu", "rounds": 3})
    with pytest.raises(SystemExit, match=r"there is no folder .*nowhere; make it first"):
        made.before(tmp_path / "nowhere" / "found.json", {})


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
