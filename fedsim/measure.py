"""Figures of merit: pure functions of models and data, evaluated in batches.

A model is x [P]; gossip gives x [n, P] and is measured node by node, with the mean model apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim import keyed

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.task import Layout, Task

EXAMPLES = 2048  # per forward pass, over all models
MODELS = 16  # evaluated side by side


def _losses_and_hits(task: Task, x: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and correctness [m, N] of every model x [m, P] on every example; without classes nothing is correct."""
    import torch

    losses, hits = [], []
    with torch.no_grad():
        for models in x.split(MODELS):
            params = task.layout.views(models)
            batch = EXAMPLES // len(models)
            parts = []
            for a, b in zip(inputs.split(batch), targets.split(batch), strict=True):

                def one(named: dict[str, Tensor], a: Tensor = a, b: Tensor = b) -> tuple[Tensor, Tensor]:
                    outputs = task.outputs(named, a)
                    hit = outputs.argmax(1) == b if task.classes else torch.zeros_like(b, dtype=torch.bool)
                    return task.criterion(outputs, b), hit

                parts.append(torch.func.vmap(one)(params))
            losses.append(torch.cat([part[0] for part in parts], dim=1))
            hits.append(torch.cat([part[1] for part in parts], dim=1))
    return torch.cat(losses), torch.cat(hits)


def tests(task: Task, x: Tensor) -> list[dict[str, float]]:
    """Test loss, accuracy and worst class accuracy of each model of x [m, P]; without classes only the loss."""
    import torch

    losses, hits = _losses_and_hits(task, x, task.test_inputs, task.test_targets)
    out = {"test_loss": losses.double().mean(1)}
    if task.classes:
        right = torch.zeros(len(x), task.classes, dtype=torch.float64, device=x.device)
        right.index_add_(1, task.test_targets, hits.double())
        count = torch.bincount(task.test_targets, minlength=task.classes)
        out["test_accuracy"] = hits.double().mean(1)
        out["worst_class_accuracy"] = (right / count)[:, count > 0].min(1).values
    columns = [value.tolist() for value in out.values()]
    return [dict(zip(out, row, strict=True)) for row in zip(*columns, strict=True)]


def test(task: Task, x: Tensor) -> dict[str, float]:
    """Test loss, accuracy and worst class accuracy of one model x [P], or their means over nodes x [n, P].

    Without classes only the loss.
    """
    each = tests(task, x if x.ndim == 2 else x[None])
    return {name: sum(one[name] for one in each) / len(each) for name in each[0]}


def objective(task: Task, x: Tensor, p: Tensor | None = None) -> float:
    """The objective trained for, sum_i p_i F_i(x) with F_i the mean loss over client i's examples, of x [P].

    For nodes x [n, P]: of the mean model, which is what the network is to agree on.
    """
    import torch

    if x.ndim == 2:
        x = x.mean(0)
    p = task.weights() if p is None else p
    share = torch.repeat_interleave(p / task.size, task.size, output_size=len(task.rows))  # [rows]
    losses, _ = _losses_and_hits(task, x[None], task.inputs[task.rows], task.targets[task.rows])
    return float(share @ losses[0].double())


def sample(n: int, nodes: int | None, seed: int) -> Tensor:
    """Which nodes to evaluate [min(n, nodes)], ascending: the same in every round and for every strategy."""
    import torch

    if nodes is None or nodes >= n:
        return torch.arange(n)
    return keyed.permutation(keyed.fold(seed, "evaluate"), n)[:nodes].sort().values


def consensus_distance(x: Tensor) -> float:
    """Root mean square distance of the nodes x [n, P] to their mean."""
    return float((x - x.mean(0)).double().square().sum(1).mean().sqrt())


def layer_variance(x: Tensor, layout: Layout) -> dict[str, float]:
    """For each layer with two dimensions or more: the variance over its entries, averaged over the nodes x [n, P]."""
    return {
        name: float(view.flatten(1).double().var(dim=1, unbiased=False).mean())
        for name, view in layout.views(x if x.ndim == 2 else x[None]).items()
        if view.ndim > 2
    }


def gossip(task: Task, x: Tensor, nodes: Tensor | None = None) -> dict[str, float]:
    """What there is to say of nodes x [n, P]: test figures as means over `nodes` (default: all), their spread, the mean
    model's own, the consensus distance, and each layer's variance inside a node."""
    each = tests(task, x if nodes is None else x[nodes.to(x.device)])
    out = {name: sum(one[name] for one in each) / len(each) for name in each[0]}
    key = "test_accuracy" if task.classes else "test_loss"
    values = [one[key] for one in each]
    out[f"{key}_lowest"], out[f"{key}_highest"] = min(values), max(values)
    out.update({f"mean_model_{name}": value for name, value in test(task, x.mean(0)).items()})
    out["consensus_distance"] = consensus_distance(x)
    out.update({f"variance/{name}": value for name, value in layer_variance(x, task.layout).items()})
    return out


def evaluate(task: Task, x: Tensor, nodes: Tensor | None = None) -> dict[str, float]:
    """`test` for one model [P], `gossip` for a stack of them [n, P]."""
    return test(task, x) if x.ndim == 1 else gossip(task, x, nodes)
