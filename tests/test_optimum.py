"""Minima of convex tasks and what keeps a run away from them: closed forms on Q4, scikit-learn as the twin."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import F64, Honest, close, everyone, last

from fedsim import LocalSGD, data, federate, optimum
from fedsim.data.partition import Dirichlet
from fedsim.strategies import SCAFFOLD, FedAvg, FedAvgMVR, FedProx

A = torch.tensor([1.0, 0.5, 2.0, 1.5], dtype=F64)
B = torch.tensor([0.0, 10.0, -4.0, 7.0], dtype=F64)
LOCAL = LocalSGD(lr=0.05, steps=5, batch=None)
KAPPA = 1 - (1 - 0.05 * A) ** 5
V = torch.tensor([0.9, 0.2, 0.5, 0.05], dtype=F64) / 1.65


@pytest.fixture(scope="module")
def q4() -> Any:
    return federate(data.Quadratic().load(), clients=4, model="scalar", dtype=F64)


def state_of(strategy: Any, x: float = 0.0) -> Any:
    return strategy.init(torch.full((1,), x, dtype=F64), torch.full((4,), 0.25, dtype=F64))


@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize("w", [torch.full((4,), 0.25, dtype=F64), V], ids=["uniform", "biased"])
def test_minimum_of_quadratics(q4: Any, w: torch.Tensor, decay: float) -> None:
    """Σ w a b / (Σ w a + decay)."""
    found = optimum.minimise(q4, w, decay)
    x = float((w * A * B).sum() / ((w * A).sum() + decay))
    assert found.x.item() == pytest.approx(x, abs=1e-6)
    assert found.value == pytest.approx(float((w * A / 2 * (x - B) ** 2).sum()) + decay / 2 * x**2, rel=1e-9)
    assert found.slope < 1e-5


def test_where_local_steps_settle(q4: Any) -> None:
    """Σ v κ b / Σ v κ, -1.044511 for average all (specs, §5.2); a pull of FedProx changes κ, scaffolding cures it."""
    x = optimum.drifted(q4, LOCAL, FedAvg(), state_of(FedAvg()), V, torch.zeros(1, dtype=F64))
    assert x.item() == pytest.approx(-1.044511, abs=5e-7)
    prox = FedProx(mu=1.0)
    x = optimum.drifted(q4, LOCAL, prox, state_of(prox), V, torch.zeros(1, dtype=F64))
    k = A / (A + 1) * (1 - (1 - 0.05 * (A + 1)) ** 5)
    assert x.item() == pytest.approx(float((V * k * B).sum() / (V * k).sum()), abs=1e-6)
    clients = Honest(A[:, None], B[:, None])
    state = last(SCAFFOLD(), clients, everyone(4, 200), n=4, x=torch.zeros(1, dtype=F64), local=LOCAL)
    x = optimum.drifted(q4, LOCAL, SCAFFOLD(), state, torch.full((4,), 0.25, dtype=F64), torch.zeros(1, dtype=F64))
    assert x.item() == pytest.approx(1.5, abs=1e-6)


def test_a_second_point_moves_along(q4: Any) -> None:
    """FedAvg-M-VR settles where FedAvg does, whatever the model before was."""
    state = last(
        FedAvgMVR(), Honest(A[:, None], B[:, None]), everyone(4, 400), n=4, x=torch.zeros(1, dtype=F64), local=LOCAL
    )
    equal = torch.full((4,), 0.25, dtype=F64)
    x = optimum.drifted(q4, LOCAL, FedAvgMVR(), state._replace(before=state.x + 3), equal, torch.zeros(1, dtype=F64))
    assert x.item() == pytest.approx(1.680542, abs=1e-6)


def test_the_split_is_the_error_taken_apart(q4: Any) -> None:
    p = torch.full((4,), 0.25, dtype=F64)
    best = optimum.minimise(q4, p)
    model = torch.tensor([-0.9], dtype=F64)
    found = optimum.split(q4, LOCAL, FedAvg(), state_of(FedAvg()), model, p, V, best)
    wrong, settled = float((V * A * B).sum() / (V * A).sum()), -1.044511

    def f(x: float) -> float:
        return float((A / 2 * (x - B) ** 2).mean())

    assert found.participation_bias == pytest.approx(f(wrong) - f(1.5), abs=1e-5)
    assert found.client_drift == pytest.approx(f(settled) - f(wrong), abs=1e-5)
    assert found.sampling_noise == pytest.approx(f(-0.9) - f(settled), abs=1e-5)
    assert found.suboptimality == pytest.approx(f(-0.9) - f(1.5), abs=1e-5)
    assert found.suboptimality == pytest.approx(sum(found[1:4]), abs=1e-12)
    assert found.distance == pytest.approx(2.4, abs=1e-5)
    assert found.distance_participation == pytest.approx(1.5 - wrong, abs=1e-5)
    assert found.distance_drift == pytest.approx(settled - wrong, abs=1e-5)


def test_the_minimum_of_logistic_regression_is_scikit_learns() -> None:
    """A constant feature with a penalty of its own is our bias; clients weighted, single precision on the task."""
    from sklearn.linear_model import LogisticRegression

    task = federate("digits", clients=6, partition=Dirichlet(alpha=0.5), model="logistic", seed=1)
    w = torch.tensor([0.3, 0.1, 0.2, 0.15, 0.05, 0.2], dtype=F64)
    decay = 0.05
    found = optimum.minimise(task, w, decay, tolerance=1e-8)
    inputs = task.ready(task.inputs[task.rows]).flatten(1).double().numpy()
    inputs = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
    share = torch.repeat_interleave(w / task.size, task.size).numpy()
    twin = LogisticRegression(C=1 / decay, fit_intercept=False, tol=1e-9, max_iter=3000)
    twin.fit(inputs, task.targets[task.rows].numpy(), sample_weight=share)
    named = task.layout.views(found.x)
    weight = next(value for value in named.values() if value.ndim == 2)
    bias = next(value for value in named.values() if value.ndim == 1)
    close(torch.cat([weight, bias[:, None]], dim=1), torch.from_numpy(twin.coef_), 1e-4)


def test_negative_weights_are_refused(q4: Any) -> None:
    with pytest.raises(ValueError, match="client 2 has the negative weight"):
        optimum.minimise(q4, torch.tensor([0.5, 0.5, -0.1, 0.1], dtype=F64))
