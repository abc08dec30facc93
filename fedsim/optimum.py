"""Where a convex problem has its minimum, and what keeps a run away from it.

    f(x_T) − f*  =  [f(x_w) − f*]        participation bias: the objective worked on, Σ w_i F_i, has another minimum x_w
                  + [f(x_d) − f(x_w)]    client drift: local steps settle at x_d, where Σ w_i Δ_i(x_d) = 0
                  + [f(x_T) − f(x_d)]    sampling noise, and the way not yet gone

f = Σ p_i F_i + decay/2 |x|² with F_i the mean loss over client i's training examples and the local training's weight
decay, f* = f(x*) its least value, w the shares of the bias ledger, Δ_i(x) client i's whole-batch local work from x.
The terms sum to the error by construction; a term may be negative, where one error undoes another. Without weight
decay a model that can tell all examples apart has its minimum at infinity, for any weights, and all error is way not
yet gone.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from fedsim.strategy import Strategy, Work

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.local import LocalSGD
    from fedsim.task import Task

EXAMPLES = 16384  # in one pass
LANES = 16  # clients whose local work is done side by side


class Optimum(NamedTuple):
    """A minimum of Σ w_i F_i + decay/2 |x|²."""

    x: Tensor  # [P] float64
    value: float
    slope: float  # norm of the gradient that is left


class Split(NamedTuple):
    """What keeps x_T from x*. The first four are differences of f, the rest distances between models."""

    suboptimality: float  # f(x_T) - f*, the sum of the next three
    participation_bias: float  # f(x_w) - f*
    client_drift: float  # f(x_d) - f(x_w)
    sampling_noise: float  # f(x_T) - f(x_d)
    distance: float  # |x_T - x*|
    distance_participation: float  # |x_w - x*|
    distance_drift: float  # |x_d - x_w|
    distance_noise: float  # |x_T - x_d|


def in_double(task: Task) -> Task:
    """The same task computing in float64."""
    import torch

    def double(value: Tensor | None) -> Tensor | None:
        return value.to(torch.float64) if value is not None and value.is_floating_point() else value

    kept = ("inputs", "test_inputs", "mean", "std")
    changed: dict[str, Any] = {name: double(getattr(task, name)) for name in kept}
    return replace(task, dtype=torch.float64, **changed)


def value_and_slope(task: Task, w: Tensor, x: Tensor, decay: float = 0.0) -> tuple[float, Tensor]:
    """Σ w_i F_i(x) + decay/2 |x|² and its gradient [P], over all training examples; x [P], w [n]."""
    import torch

    share = torch.repeat_interleave(w / task.size, task.size, output_size=len(task.rows)).to(task.dtype)
    x = x.detach()
    total, slope = decay / 2 * float(x @ x), decay * x
    x = x.requires_grad_()
    for rows, weight in zip(task.rows.split(EXAMPLES), share.split(EXAMPLES), strict=True):
        loss = task.losses(task.layout.views(x), task.inputs[rows], task.targets[rows]) @ weight
        slope += torch.autograd.grad(loss, x)[0]
        total += float(loss.detach())
    return total, slope


def minimise(
    task: Task, w: Tensor | None = None, decay: float = 0.0, *, x: Tensor | None = None, tolerance: float = 1e-6,
    iterations: int = 2000,
) -> Optimum:  # fmt: skip
    """The minimum of Σ w_i F_i + decay/2 |x|² of a convex task, by SciPy's L-BFGS in float64 from x [P] (or zeros).

    w [n], not negative, defaults to the clients' shares of the examples. Stops where the largest entry of the gradient
    falls to `tolerance`; `Optimum.slope` says what was reached. Raises ValueError for negative weights, or where the
    loss has no lower bound to be found (a value that is not finite).
    """
    import numpy as np
    import torch
    from scipy.optimize import minimize

    task = in_double(task)
    w = task.weights() if w is None else w.to(torch.float64)
    if bool((w < 0).any()):
        raise ValueError(f"client {int(w.argmin())} has the negative weight {float(w.min()):.3g}: no convex objective")
    first = torch.zeros(task.layout.size, dtype=torch.float64) if x is None else x.detach().double().cpu()

    def at(values: Any) -> tuple[float, Any]:
        value, slope = value_and_slope(task, w, torch.from_numpy(np.array(values)).to(task.device), decay)
        if not np.isfinite(value):
            raise ValueError("the objective is not finite on the way to its minimum; scale the inputs down")
        return value, slope.cpu().numpy()

    found = minimize(
        at, first.numpy(), jac=True, method="L-BFGS-B",
        options={"maxiter": iterations, "maxfun": 2 * iterations, "gtol": tolerance, "ftol": 0.0, "maxcor": 30},
    )  # fmt: skip
    best = torch.from_numpy(np.array(found.x)).to(task.device)
    return Optimum(best, float(found.fun), float(np.linalg.norm(found.jac)))


def drifted(
    task: Task,
    local: LocalSGD,
    strategy: Strategy,
    state: Any,
    w: Tensor,
    x: Tensor,
    rounds: int = 100,
    tolerance: float = 1e-6,
) -> Tensor:
    """x_d [P], where the clients' whole-batch local work cancels, Σ w_i Δ_i(x_d) = 0: SciPy's Anderson mixing from x.

    The work is what `strategy` would send in `state` (its pull, shift and scale; a second point is x_d too), from x_d,
    with as many steps as a client takes with its minibatches. Stops where the rest has fallen to `tolerance` of its
    first size, or after so many `rounds`.
    """
    import numpy as np
    import torch
    from scipy.optimize import root

    from fedsim.engine import Stacked

    task, w = in_double(task), w.to(torch.float64)
    steps = [local.count(size) for size in task.sizes]
    whole = replace(local, batch=None, epochs=None, steps=max(steps))
    effort = torch.tensor([count / max(steps) for count in steps])
    who = torch.arange(task.n)
    sent = strategy.send(state, who.to(task.device))
    work = Work(sent.start, sent.shift, sent.scale, sent.mu, against=sent.against)
    work = work._replace(**{
        name: value.to(torch.float64)
        for name in ("shift", "scale", "mu", "against") if hasattr(value := getattr(work, name), "to")
    })  # fmt: skip
    engine, keys = Stacked(chunk=LANES), torch.zeros(task.n, dtype=torch.int64, device=task.device)

    def move(at: Tensor) -> Tensor:
        every = at.expand(task.n, -1)
        there = None if sent.other is None else every  # where nothing moves, the model before is this one
        answer = engine(task, who, work._replace(start=every, other=there), keys, whole, 0, effort)
        return w @ answer.delta

    def flat(values: Any) -> Any:
        return move(torch.from_numpy(np.array(values)).to(task.device)).cpu().numpy()

    first = x.to(torch.float64).cpu().numpy()
    still = tolerance * max(float(np.abs(flat(first)).max()), 1e-300)
    options = {"fatol": still, "maxiter": rounds, "line_search": None, "jac_options": {"M": 20, "alpha": 1.0}}
    with warnings.catch_warnings():  # steps that go too far, and are mended
        warnings.simplefilter("ignore", RuntimeWarning)
        found = root(flat, first, method="anderson", options=options)
    return torch.from_numpy(np.array(found.x)).to(task.device)


def split(
    task: Task, local: LocalSGD, strategy: Strategy, state: Any, model: Tensor, p: Tensor, w: Tensor, best: Optimum
) -> Split:
    """What keeps `model` [P] from `best`, the minimum for p [n] and the weight decay, given its run's shares w [n].

    Raises ValueError where a share is negative, which makes the objective worked on no convex one.
    """
    import torch

    double = in_double(task)
    p, model = p.to(torch.float64), model.to(torch.float64)
    wrong = minimise(task, w, local.weight_decay, x=best.x).x
    drift = drifted(task, local, strategy, state, w, wrong)

    def f(x: Tensor) -> float:
        return value_and_slope(double, p, x, local.weight_decay)[0]

    at_model, at_wrong, at_drift = f(model), f(wrong), f(drift)
    return Split(
        at_model - best.value, at_wrong - best.value, at_drift - at_wrong, at_model - at_drift,
        float((model - best.x).norm()), float((wrong - best.x).norm()),
        float((drift - wrong).norm()), float((model - drift).norm()),
    )  # fmt: skip
