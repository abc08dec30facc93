"""Fine-tuning: every client goes on training for itself before it is measured, and nothing of that reaches the server.

    [finetune]
    epochs = 1
    lr = 0.01
    only = ["head"]         # left out: the whole model

Clients are then measured twice, as they are (client_accuracy, ...) and fine-tuned (tuned_client_accuracy, ...), at
every evaluation, which costs a turn of all clients each time. Fine-tuning a common model is a baseline of
personalisation that every method of it has to beat.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fedsim.local import LocalSGD
from fedsim.lr_schedules import Constant

if TYPE_CHECKING:
    from torch import Tensor

    from fedsim.engine import Engine
    from fedsim.task import Task

    Models = Callable[[Tensor], Tensor]  # from who [k] to their models [k, P]


@dataclass(frozen=True)
class FineTune:
    """How clients fine-tune: `steps` minibatches or `epochs`; what is not said here is as in their local training."""

    steps: int | None = None
    epochs: int | None = None
    lr: float | None = None  # left out: the local training's, without its schedule
    only: tuple[str, ...] = ()  # parameters: names, patterns, "head", "norm" (`fedsim.parts`); none: all

    def __post_init__(self) -> None:
        self.local(LocalSGD(steps=1))  # refuses what no local training could be

    def local(self, local: LocalSGD) -> LocalSGD:
        """The local training that the fine-tuning is."""
        lr = local.lr if self.lr is None else self.lr
        return replace(local, steps=self.steps, epochs=self.epochs, lr=lr, lr_schedule=Constant(), curriculum=None)


def tuned(
    task: Task, models: Models, rule: FineTune, local: LocalSGD, engine: Engine, *, seed: int = 0, t: int = 0
) -> Models:
    """The models of clients who have fine-tuned theirs, as they stand after t rounds: for `measure.per_client`.

    A client's minibatches follow from the seed, t and its number, whoever is fine-tuned beside it. Raises ValueError
    for an unknown parameter in `only`.
    """
    from fedsim import keyed, parts
    from fedsim.strategy import Work

    scale: Tensor | float = 1.0
    if rule.only:
        try:
            split = parts.split(task.layout, rule.only, task.device)
        except ValueError as error:
            raise ValueError(f"[finetune] only: {error}") from error
        scale = task.inputs.new_zeros((1, task.layout.size), dtype=task.dtype)
        scale[:, split.meant] = 1.0
    how = rule.local(local)

    def models_after(who: Tensor) -> Tensor:
        start = models(who)
        keys = keyed.fold(seed, "finetune", t, who)
        return start + engine(task, who.cpu(), Work(start, scale=scale), keys, how).delta

    return models_after
