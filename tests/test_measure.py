"""Figures of merit against plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from fedsim import federate, measure
from fedsim.data.partition import Dirichlet
from fedsim.task import Task


@pytest.fixture(scope="module")
def task() -> Task:
    return federate("digits", clients=30, partition=Dirichlet(alpha=0.3), model="mlp", seed=1, dtype=torch.float64)


def models(task: Task, n: int) -> torch.Tensor:
    return torch.stack([task.fresh(i) for i in range(n)])


def plain(task: Task, x: torch.Tensor) -> dict[str, float]:
    """By hand: one forward pass over the test set."""
    outputs = task.outputs(task.layout.views(x), task.test_inputs)
    hit = outputs.argmax(1) == task.test_targets
    classes = [hit[task.test_targets == c].double().mean() for c in range(10)]
    return {
        "test_loss": float(cross_entropy(outputs, task.test_targets)),
        "test_accuracy": float(hit.double().mean()),
        "worst_class_accuracy": float(min(classes)),
    }


def test_one_model(task: Task) -> None:
    x = task.fresh(1)
    assert measure.test(task, x) == pytest.approx(plain(task, x), rel=1e-12)
    assert measure.evaluate(task, x) == measure.test(task, x)


def test_one_model_goes_in_small_passes_and_without_vmap(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ALONE examples on a CPU; the figures of each example are those it has among others, to rounding."""
    x, seen = task.fresh(1), []
    as_it_is = measure._loss_and_hit

    def watched(made: Task, named: Any, inputs: torch.Tensor, targets: torch.Tensor) -> Any:
        seen.append((len(inputs), torch._C._functorch.is_batchedtensor(next(iter(named.values())))))
        return as_it_is(made, named, inputs, targets)

    two, _ = measure._losses_and_hits(task, torch.stack([x, x]), None)
    monkeypatch.setattr(measure, "_loss_and_hit", watched)
    monkeypatch.setattr(measure, "ALONE", 100)
    one, _ = measure._losses_and_hits(task, x[None], None)
    n = len(task.test_targets)
    assert seen == [(100, False)] * (n // 100) + [(n % 100, False)] * (n % 100 > 0)
    torch.testing.assert_close(one[0], two[0], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("n", [3, 37])
def test_nodes_are_measured_one_by_one(task: Task, n: int) -> None:
    """Also where they do not fill the last group of models."""
    x = models(task, n)
    each = [plain(task, row) for row in x]
    for got, want in zip(measure.tests(task, x), each, strict=True):
        assert got == pytest.approx(want, rel=1e-12)
    found = measure.gossip(task, x)
    assert found["test_loss"] == pytest.approx(sum(e["test_loss"] for e in each) / n)
    assert found["test_accuracy_lowest"] == pytest.approx(min(e["test_accuracy"] for e in each))
    assert found["test_accuracy_highest"] == pytest.approx(max(e["test_accuracy"] for e in each))
    assert found["mean_model_test_loss"] == pytest.approx(plain(task, x.mean(0))["test_loss"])
    some = measure.gossip(task, x, torch.tensor([0, 2]))
    assert some["test_loss"] == pytest.approx((each[0]["test_loss"] + each[2]["test_loss"]) / 2)
    assert some["consensus_distance"] == found["consensus_distance"]


def test_the_objective_weighs_clients(task: Task) -> None:
    """sum_i p_i F_i, each F_i over its own examples."""
    x = task.fresh(1)
    params = task.layout.views(x)
    F = []
    for i in range(task.n):
        rows = task.rows[task.first[i] : task.first[i] + task.size[i]]
        F.append(float(task.losses(params, task.inputs[rows], task.targets[rows]).mean()))
    for name in ("examples", "uniform"):
        p = task.weights(name)
        assert float(p.sum()) == pytest.approx(1.0)
        want = sum(float(w) * f for w, f in zip(p, F, strict=True))
        assert measure.objective(task, x, p) == pytest.approx(want, rel=1e-10)
    with pytest.raises(ValueError, match="objective must be"):
        task.weights("fair")


def own(task: Task, x: torch.Tensor, i: int, part: Any) -> tuple[float, float]:
    """A client's loss and accuracy by hand; NaN without examples."""
    rows = part.rows[part.first[i] : part.first[i] + part.size[i]]
    outputs = task.outputs(task.layout.views(x), task.inputs[rows])
    hit = outputs.argmax(1) == task.targets[rows]
    return float(cross_entropy(outputs, task.targets[rows])), float(hit.double().mean())


@pytest.fixture(scope="module")
def held_out() -> Task:
    """Clients of one example have none held out."""
    return federate(
        "digits",
        clients=60,
        partition=Dirichlet(alpha=0.05),
        model="logistic",
        seed=1,
        dtype=torch.float64,
        holdout=0.3,
    )


@pytest.mark.parametrize("nodes", [False, True])
@pytest.mark.parametrize("name", ["training", "held-out"])
def test_every_client_is_measured_on_its_own(
    task: Task, held_out: Task, name: str, nodes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under one model, or under its own; also where clients are cut into several passes and passes into several."""
    made = task if name == "training" else held_out
    x = models(made, made.n) if nodes else made.fresh(1)
    each = [own(made, x[i] if nodes else x, i, made if made.held is None else made.held) for i in range(made.n)]
    for examples, side_by_side in ((2048, 64), (50, 3)):
        monkeypatch.setattr(measure, "EXAMPLES", examples)
        monkeypatch.setattr(measure, "OWN", side_by_side)
        found = measure.per_client(made, x)
        assert found.on == name
        assert found.accuracy is not None
        torch.testing.assert_close(found.loss, torch.tensor([loss for loss, _ in each]).double(), equal_nan=True)
        torch.testing.assert_close(found.accuracy, torch.tensor([a for _, a in each]).double(), equal_nan=True)
        assert torch.equal(found.measured, ~found.loss.isnan())
    assert bool(found.measured.all()) == (name == "training")


@pytest.mark.parametrize("nodes", [False, True])
def test_the_objective_costs_no_second_pass(
    task: Task, held_out: Task, nodes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is what it is alone, where both are of one model on the training examples."""
    passes = 0
    whole = measure._losses_and_hits

    def counted(*arguments: Any) -> Any:
        nonlocal passes
        passes += 1
        return whole(*arguments)

    monkeypatch.setattr(measure, "_losses_and_hits", counted)
    for made in (task, held_out):
        x, p = (models(made, made.n) if nodes else made.fresh(1)), made.weights("uniform")
        passes = 0
        found, training = measure.per_client_and_training(made, x)
        assert passes == (1 if nodes or made.held is None else 2)
        assert float(p @ training) == measure.objective(made, x, p)
        assert torch.equal(found.loss.nan_to_num(-1), measure.per_client(made, x).loss.nan_to_num(-1))
        if made.held is None and not nodes:
            assert float(p @ found.loss) == pytest.approx(float(p @ training), rel=1e-12)


def test_what_is_held_out_is_in_no_objective(held_out: Task) -> None:
    x, p = held_out.fresh(1), held_out.weights()
    each = [own(held_out, x, i, held_out)[0] for i in range(held_out.n)]
    assert measure.objective(held_out, x, p) == pytest.approx(sum(w * f for w, f in zip(p.tolist(), each, strict=True)))


def test_consensus_distance_and_layer_variance(task: Task) -> None:
    x = models(task, 4)
    assert measure.consensus_distance(x[:1].expand(4, -1)) == pytest.approx(0.0, abs=1e-12)
    assert measure.consensus_distance(torch.tensor([[0.0, 0.0], [6.0, 8.0]])) == pytest.approx(5.0)
    found = measure.layer_variance(x, task.layout)
    weights = {name: view for name, view in task.layout.views(x).items() if view.ndim == 3}
    assert found.keys() == weights.keys()
    for name, view in weights.items():
        want = sum(float(layer.var(unbiased=False)) for layer in view) / 4
        assert found[name] == pytest.approx(want, rel=1e-10)


def test_the_same_nodes_are_tested_throughout() -> None:
    some = measure.sample(100, 10, seed=3)
    assert torch.equal(some, measure.sample(100, 10, seed=3))
    assert not torch.equal(some, measure.sample(100, 10, seed=4))
    assert len(some.unique()) == 10
    assert measure.sample(5, 10, seed=1).tolist() == measure.sample(5, None, seed=1).tolist() == [0, 1, 2, 3, 4]


def test_a_problem_without_classes_has_a_loss_only() -> None:
    quadratic = federate("quadratic", clients=4, model="scalar")
    x = torch.tensor([1.5])
    for found in (measure.per_client(quadratic, x), measure.per_client(quadratic, x.expand(4, 1))):
        assert found.accuracy is None
        assert found.loss.tolist() == [a / 2 * (1.5 - b) ** 2 for a, b in ((1, 0), (0.5, 10), (2, -4), (1.5, 7))]
    assert measure.test(quadratic, x).keys() == {"test_loss"}
    assert measure.objective(quadratic, x, quadratic.weights("uniform")) == pytest.approx(
        sum(a / 2 * (1.5 - b) ** 2 for a, b in ((1, 0), (0.5, 10), (2, -4), (1.5, 7))) / 4
    )
