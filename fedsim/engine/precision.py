"""In what products of matrices and convolutions of float32 numbers are computed, and what that does to a gradient."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.local import LocalSGD
    from fedsim.task import Task

HOST = {"float32": "ieee", "tf32": "tf32", "bfloat16": "bf16"}  # what torch calls it; a machine without it uses float32
CUDA = {"float32": "ieee", "tf32": "tf32", "bfloat16": "tf32"}  # where float32 tensors have no bfloat16 products


def use(products: str) -> None:
    """Has torch, in this process, compute products in "float32", "tf32" or "bfloat16"; sums stay float32."""
    import torch

    backends: Any = torch.backends  # of whose parts the stubs know nothing
    for part in (backends.mkldnn.matmul, backends.mkldnn.conv):
        part.fp32_precision = HOST[products]
    for part in (backends.cuda.matmul, backends.cudnn.conv):
        part.fp32_precision = CUDA[products]


def off(task: Task, locals: Iterable[LocalSGD], products: str) -> float:
    """How far a gradient computed so lies from that in float32, as a share of its norm: of the first client's first
    minibatch at the first model, the largest among the ways of training. Leaves torch computing so."""
    import torch

    from fedsim.engine.gradients import gradients
    from fedsim.engine.plan import width

    found = [0.0]
    gradient = gradients(task, dropout=False)
    params = task.layout.views(task.fresh(0)[None])
    for local in set(locals):
        places = task.rows[: min(width(task, local), task.sizes[0])][None]
        weights = torch.full(places.shape, 1 / places.shape[1], dtype=task.dtype, device=task.device)
        given = (params, task.inputs[places], task.targets[places], weights, torch.zeros_like(places[:, 0]), None)
        slopes = []
        for precision in ("float32", products):
            use(precision)
            slopes.append(task.layout.stack(gradient(*given)[0]))
        found.append(float((slopes[1] - slopes[0]).norm() / slopes[0].norm().clamp(min=1e-30)))
    return max(found)
