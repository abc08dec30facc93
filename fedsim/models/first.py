"""A module's parameters, and their first values: drawn from a seed, the global generators untouched."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from fedsim import keyed

if TYPE_CHECKING:
    from torch import Tensor, nn

_SEEDED: ContextVar[bool] = ContextVar("fedsim_models_seeded", default=False)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, the CPU generators of torch, numpy and `random` start from the seed; after, they are as they were."""
    import random

    import numpy as np
    import torch

    state = global_state()
    token = _SEEDED.set(True)
    # not torch.manual_seed, which also reseeds every GPU's generator
    torch.default_generator.manual_seed(keyed.seed(seed, "weights"))
    np.random.seed(keyed.seed(seed, "weights-numpy") % 2**32)
    random.seed(keyed.seed(seed, "weights-random"))
    try:
        yield
    finally:
        _SEEDED.reset(token)
        restore(state)


def fresh(factory: Callable[[], nn.Module], seed: int) -> dict[str, Tensor]:
    """New initial weights: {name: tensor on the CPU} of the module the factory makes, the same for the same seed."""
    with seeded(seed):
        return {name: value.detach().cpu().clone() for name, value in parameters(factory()).items()}


def parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """What is trained: the parameters that require a gradient; each tied one once, under its first name."""
    return {name: value for name, value in module.named_parameters() if value.requires_grad}


def is_seeded() -> bool:
    """Whether this is inside `seeded`."""
    return _SEEDED.get()


def global_state() -> tuple[Any, ...]:
    """The states of the global generators: torch's of the CPU, of all GPUs, numpy's, Python's."""
    import random

    import numpy as np
    import torch

    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return torch.get_rng_state(), gpus, np.random.get_state(), random.getstate()


def restore(state: tuple[Any, ...]) -> None:
    """Puts the global generators back into a state."""
    import random

    import numpy as np
    import torch

    cpu, gpus, numpy_state, random_state = state
    torch.set_rng_state(cpu)
    if gpus:
        torch.cuda.set_rng_state_all(gpus)
    np.random.set_state(numpy_state)
    random.setstate(random_state)


def moved(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    """Whether anything was drawn between two states of the global generators."""
    import numpy as np
    import torch

    gpus = len(before[1]) == len(after[1]) and all(map(torch.equal, before[1], after[1]))
    arrays = all(np.array_equal(x, y) for x, y in zip(before[2], after[2], strict=True))
    return not (torch.equal(before[0], after[0]) and gpus and arrays and before[3] == after[3])
