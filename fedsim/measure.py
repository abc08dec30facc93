"""Figures of merit: pure functions of models and data, evaluated in batches.

A model is x [P]; gossip gives x [n, P] and is measured node by node, with the mean model apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

from fedsim import keyed

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.task import Layout, Task

    Models = (
        Tensor | Callable[[Tensor], Tensor]
    )  # one [P], one for each client [n, P], or from who [k] to theirs [k, P]

EXAMPLES = 2048  # per forward pass, over all models
ALONE = 256  # of one model on a CPU: its activations stay in the caches, which halves the time of large ones
MODELS = 16  # evaluated side by side
OWN = 64  # the same where each model has examples of its own


class PerClient(NamedTuple):
    """How well every client is served: on what it holds out, where the task holds anything out, else on its training
    examples."""

    loss: Tensor  # [n] float64, mean over the client's examples; NaN where it has none of these
    accuracy: Tensor | None  # [n] float64, the same; None: no classification
    measured: Tensor  # [n] bool: has such examples
    on: Literal["held-out", "training"]


def _loss_and_hit(task: Task, named: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and correctness [b] of a model on examples; without classes nothing is correct."""
    import torch

    outputs = task.outputs(named, inputs)
    hit = outputs.argmax(1) == targets if task.classes else torch.zeros_like(targets, dtype=torch.bool)
    return task.criterion(outputs, targets), hit


def _batches(task: Task, rows: Tensor | None, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets of these rows of the pool, or of the test set (None), `size` at a time."""
    if rows is None:
        yield from zip(task.test_inputs.split(size), task.test_targets.split(size), strict=True)
    else:
        for part in rows.split(size):
            yield task.inputs[part], task.targets[part]


def _losses_and_hits(task: Task, x: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """Loss and correctness [m, N] of every model x [m, P] on every example: of these rows of the pool, or of the test
    set (None)."""
    import torch

    if x.shape[-1] != task.layout.size:
        raise ValueError(f"the model has {x.shape[-1]} numbers but the task's has {task.layout.size} parameters")
    losses, hits = [], []
    with torch.no_grad():
        for models in x.split(MODELS):
            parts = []
            if len(models) == 1:  # as it is: under vmap convolutions and attention take longer
                named = task.layout.views(models[0])
                for a, b in _batches(task, rows, ALONE if x.device.type == "cpu" else EXAMPLES):
                    loss, hit = _loss_and_hit(task, named, a, b)
                    parts.append((loss[None], hit[None]))
            else:
                params = task.layout.views(models)
                for a, b in _batches(task, rows, EXAMPLES // len(models)):

                    def one(named: dict[str, Tensor], a: Tensor = a, b: Tensor = b) -> tuple[Tensor, Tensor]:
                        return _loss_and_hit(task, named, a, b)

                    parts.append(torch.func.vmap(one)(params))
            losses.append(torch.cat([part[0] for part in parts], dim=1))
            hits.append(torch.cat([part[1] for part in parts], dim=1))
    return torch.cat(losses), torch.cat(hits)


def tests(task: Task, x: Tensor) -> list[dict[str, float]]:
    """Test loss, accuracy and worst class accuracy of each model of x [m, P]; without classes only the loss."""
    import torch

    losses, hits = _losses_and_hits(task, x, None)
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
    return float((task.weights() if p is None else p) @ training_losses(task, x))


def training_losses(task: Task, x: Models) -> Tensor:
    """F_i [n] float64: the mean loss of one model x [P] over each client's training examples; for nodes x [n, P] of the
    mean model; where a function says whose model is which, of each client's own."""
    if callable(x):
        return _own(task, x, task.rows, task.first, task.size)[0] / task.size
    x = x if x.ndim == 1 else x.mean(0)
    return _shared(task, x, task.rows, task.first, task.size)[0] / task.size


def example_losses(task: Task, x: Tensor, rows: Tensor) -> Tensor:
    """The loss [N] float64 of one model x [P] on each example of these rows of the pool [N]."""
    return _losses_and_hits(task, x[None], rows)[0][0].double()


def per_client(task: Task, x: Models) -> PerClient:
    """Every client's loss and accuracy under one model x [P], or each under its own of x [n, P], on data of its own.

    x may be a function from clients [k] to their models [k, P]: these need not all be there at once.
    """
    import torch

    held = task.held
    rows, first, size = (task.rows, task.first, task.size) if held is None else held
    if callable(x):
        loss, hits = _own(task, x, rows, first, size)
    else:
        loss, hits = (
            _own(task, x.__getitem__, rows, first, size) if x.ndim == 2 else _shared(task, x, rows, first, size)
        )
    measured = size > 0
    mean, share = (torch.where(measured, values / size, torch.nan) for values in (loss, hits))
    on: Literal["held-out", "training"] = "training" if held is None else "held-out"
    return PerClient(mean, share if task.classes else None, measured, on)


def per_client_and_training(task: Task, x: Models) -> tuple[PerClient, Tensor]:
    """`per_client` and `training_losses`, in one pass over the training examples where both need the same."""
    found = per_client(task, x)
    same = found.on == "training" and (callable(x) or x.ndim == 1)
    return found, found.loss if same else training_losses(task, x)


def _shared(task: Task, x: Tensor, rows: Tensor, first: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Sums [n] of loss and hits of one model x [P] over every client's examples."""
    import torch

    losses, hits = _losses_and_hits(task, x[None], rows)
    loss, right = _sums(torch.stack([losses[0].double(), hits[0].double()], dim=1), first, size).unbind(1)
    return loss, right


def _sums(values: Tensor, first: Tensor, size: Tensor) -> Tensor:
    """[n, c] sums over each client's stretch of the values [rows, c]; in the same order every time, on a GPU too."""
    import torch
    from torch.nn.functional import embedding_bag

    if not len(values):
        return torch.zeros(len(size), values.shape[1], dtype=values.dtype, device=values.device)
    return embedding_bag(torch.arange(len(values), device=values.device), values, first, mode="sum")


def _own(
    task: Task, models: Callable[[Tensor], Tensor], rows: Tensor, first: Tensor, size: Tensor
) -> tuple[Tensor, Tensor]:
    """Sums [n] of loss and hits of every client's own model over its own examples, models of clients of like size side
    by side."""
    import torch

    loss, hits = (torch.zeros(len(size), dtype=torch.float64, device=task.device) for _ in range(2))
    sizes = size.tolist()
    for group in _groups(sizes):
        who = torch.tensor(group, device=task.device)
        params = task.layout.views(models(who).contiguous())
        for start in range(0, sizes[group[-1]], EXAMPLES // len(group)):
            stop = min(start + EXAMPLES // len(group), sizes[group[-1]])
            position = torch.arange(start, stop, device=task.device)
            counted = position < size[who, None]  # [m, b]
            pool = rows[first[who, None] + torch.where(counted, position, 0)]  # padding is a client's first example

            def one(named: dict[str, Tensor], a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
                return _loss_and_hit(task, named, a, b)

            with torch.no_grad():
                found = torch.func.vmap(one)(params, task.inputs[pool], task.targets[pool])
            for total, values in zip((loss, hits), found, strict=True):
                total[who] += torch.where(counted, values.double(), 0.0).sum(1)
    return loss, hits


def _groups(sizes: list[int]) -> Iterator[list[int]]:
    """Clients with examples, by size, in groups that take a forward pass of at most EXAMPLES, or one client's."""
    group: list[int] = []
    for i in sorted((i for i, size in enumerate(sizes) if size), key=sizes.__getitem__):
        if group and ((len(group) + 1) * sizes[i] > EXAMPLES or len(group) == OWN):
            yield group
            group = []
        group.append(i)
    if group:
        yield group


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
