"""How good a model is on the data of clients, or on the test examples, as replies to evaluate messages say it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedsim import measure
from fedsim.engine.loop import rows_of
from fedsim.task import Task

EXAMPLES = 2048  # per forward pass


def own_figures(task: Task, x: Tensor, clients: Sequence[int]) -> list[dict[str, Any]]:
    """Loss, accuracy and number of examples of a model [P] on the data of each of the clients, in joint batches."""
    rows = torch.cat([rows_of(task, i) for i in clients])
    params = task.layout.views(x)
    losses, hits = [], []
    with torch.no_grad():
        for here in rows.split(EXAMPLES):
            outputs, targets = task.outputs(params, task.inputs[here]), task.targets[here]
            losses.append(task.criterion(outputs, targets))
            if task.classes:
                hits.append(outputs.argmax(1) == targets)
    sizes = [task.sizes[i] for i in clients]
    means = [part.double().mean() for part in torch.cat(losses).split(sizes)]
    out: list[dict[str, Any]] = [
        {"num-examples": size, "loss": loss} for size, loss in zip(sizes, torch.stack(means).tolist(), strict=True)
    ]
    if task.classes:
        shares = torch.stack([part.double().mean() for part in torch.cat(hits).split(sizes)]).tolist()
        for found, share in zip(out, shares, strict=True):
            found["accuracy"] = share
    return out


def tested_figures(task: Task, x: Tensor) -> dict[str, Any]:
    """The same of a model [P] on the task's test examples."""
    found = measure.test(task, x)
    out: dict[str, Any] = {"num-examples": len(task.test_targets), "loss": found["test_loss"]}
    if "test_accuracy" in found:
        out["accuracy"] = found["test_accuracy"]
    return out
