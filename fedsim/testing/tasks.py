"""What holds for every task: a model, examples, and who holds which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fedsim import keyed
from fedsim.data import Dataset
from fedsim.engine import Loop, Stacked
from fedsim.local import LocalSGD
from fedsim.strategy import Work
from fedsim.task import Task, federate
from fedsim.testing.report import Outcome, Report, attempt, check_names, settle
from fedsim.testing.states import Broken, Inapplicable, close, same

LOCAL = LocalSGD(lr=0.01, steps=2, batch=4)
FEW = 3  # clients that are trained


def every_example_has_one_owner(task: Task) -> None:
    """Clients' examples are in the pool, none belongs to two clients, and what is held out is nobody's to train on."""
    rows = task.rows
    if int(rows.min()) < 0 or int(rows.max()) >= len(task.inputs):
        raise Broken(f"rows name example {int(rows.max())} of {len(task.inputs)}")
    times = torch.bincount(rows, minlength=len(task.inputs))
    if int(times.max()) > 1:
        row = int(times.argmax())
        owners = [i for i in range(task.n) if row in rows[task.firsts[i] : task.firsts[i] + task.sizes[i]].tolist()]
        raise Broken(f"example {row} is listed {int(times.max())} times, by clients {owners}")
    if task.held is not None and bool(torch.isin(task.held.rows, rows).any()):
        row = int(task.held.rows[torch.isin(task.held.rows, rows)][0])
        raise Broken(f"example {row} is held out for testing, and trained on")


def a_seed_decides_the_first_model(task: Task) -> None:
    """The same seed gives the same finite numbers [P], whatever torch's generator says."""
    one = task.fresh(3)
    if list(one.shape) != [task.layout.size] or one.dtype != task.dtype:
        raise Broken(f"fresh gives {one.dtype} {list(one.shape)} where {task.dtype} [{task.layout.size}] is wanted")
    if not bool(one.isfinite().all()):
        raise Broken(f"parameter {int((~one.isfinite()).nonzero()[0])} of the first model is not finite")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        same({"fresh(3)": task.fresh(3)}, {"fresh(3)": one}, "drawn again, where it was")


def a_loss_is_of_its_own_example(task: Task) -> None:
    """One finite loss for each example, the same with others beside it: nothing is averaged over the batch."""
    params, few = task.layout.views(task.fresh(3)), task.rows[: min(4, len(task.rows))]
    losses = task.losses(params, task.inputs[few], task.targets[few])
    if list(losses.shape) != [len(few)]:
        raise Broken(f"losses have the shape {list(losses.shape)} for {len(few)} examples")
    for j in range(len(few)):
        alone = task.losses(params, task.inputs[few[j : j + 1]], task.targets[few[j : j + 1]])
        if not bool(alone.isfinite().all()):
            raise Broken(f"the loss of example {int(few[j])} at the first model is {float(alone[0])}")
        tolerance = 1e-9 if task.dtype == torch.float64 else 1e-4
        name = f"the loss of example {int(few[j])}"
        close({name: losses[j]}, {name: alone[0]}, tolerance, f"beside {len(few) - 1} others, where alone it is")


def a_key_decides_the_losses(task: Task) -> None:
    """Dropout and augmentation follow from the key, whatever torch's generator says; without a key there is none."""
    params, few = task.layout.views(task.fresh(3)), task.rows[: min(4, len(task.rows))]
    for key, word in ((torch.tensor(5), "with one key"), (None, "without a key")):
        one = task.losses(params, task.inputs[few], task.targets[few], key)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(12345)
            other = task.losses(params, task.inputs[few], task.targets[few], key)
        same({"the loss": other}, {"the loss": one}, f"drawn again {word}, where it was")


def train(task: Task, who: list[int], engine: Any) -> Any:
    """What the clients `who` answer after two steps from the first model."""
    there = torch.tensor(who)
    keys = keyed.fold(1, "client", 0, there)
    return engine(task, there, Work(task.fresh(3).expand(len(who), -1)), keys, LOCAL, 0, torch.ones(len(who)))


def training_stays_finite(task: Task) -> None:
    """Two steps at a learning rate of 0.01 from the first model end in finite numbers."""
    answer = train(task, list(range(min(FEW, task.n))), Loop())
    wrong = ~answer.delta.isfinite().all(1)
    if bool(wrong.any()):
        raise Broken(f"the move of client {int(answer.who[wrong][0])} is not finite after 2 steps with lr 0.01")


def engines_agree(task: Task) -> None:
    """Side by side in one program or one after another, clients move alike up to rounding."""
    who = list(range(min(FEW, task.n)))
    one, other = train(task, who, Stacked(2)), train(task, who, Loop())
    scale = float(other.delta.abs().max()) or 1.0
    off = (one.delta - other.delta).abs().amax(1) / scale
    if float(off.max()) > (1e-9 if task.dtype == torch.float64 else 1e-3):
        i = int(off.argmax())
        raise Broken(f"client {i}'s move differs by {float(off[i]):.2g} of the largest between Stacked and Loop")


def others_do_not_matter(task: Task) -> None:
    """A client's numbers are bit-identical whoever trains beside it."""
    if task.n < 2:
        raise Inapplicable("there is one client")
    alone = train(task, [0], Stacked(2)).delta[0]
    beside = train(task, list(range(min(FEW, task.n))), Stacked(2)).delta[0]
    same({"client 0's move": beside}, {"client 0's move": alone}, "beside others, where alone it is")


LAWS = (
    every_example_has_one_owner,
    a_seed_decides_the_first_model,
    a_loss_is_of_its_own_example,
    a_key_decides_the_losses,
    training_stays_finite,
    engines_agree,
    others_do_not_matter,
)
NAMES = tuple(law.__name__ for law in LAWS)


def examine(task: Any, waived: Mapping[str, str] | None = None) -> Report:
    """What holds of a task, or of a data set spread over a few clients; see `fedsim.testing.check_task`.

    Raises ValueError for what is neither.
    """
    if isinstance(task, Dataset):
        task = federate(task, clients=min(FEW, len(task.inputs)), model="logistic" if task.classes else "mlp")
    if not isinstance(task, Task):
        raise ValueError(f"{type(task).__name__} is no task: fedsim.federate and fedsim.make_task give one")
    waived = dict(waived or {})
    check_names(waived, NAMES, "task")
    size = f"{task.n} clients, {task.layout.size} parameters"
    outcomes: list[Outcome] = []
    for law in LAWS:
        outcomes.append(settle(law.__name__, attempt(law, task), size, waived))
    return Report(task.name, tuple(outcomes))
