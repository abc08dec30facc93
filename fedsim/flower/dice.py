"""The global generators that Flower's strategies draw from, seeded while a strategy is at work."""

from __future__ import annotations

import gc
import random
from typing import Any

import numpy as np
import torch


class Dice:
    """The global generators of Python, numpy and torch, seeded for a while and then put back as they were.

    For as long, what exists is kept from the garbage collector: Flower's QFedAvg and Bulyan have it look through the
    whole process once per reply, 0.2 s each with torch loaded.
    """

    def __init__(self) -> None:
        self._kept: Any = None
        self._freezes = not gc.get_freeze_count()  # who has frozen objects for reasons of their own keeps them so

    def hold(self, seed: int) -> None:
        """Seeds them; the first time also remembers how they were."""
        if self._kept is None:
            self._kept = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
            if self._freezes:
                gc.freeze()
        random.seed(seed)
        np.random.seed(seed & 0xFFFFFFFF)
        torch.default_generator.manual_seed(seed)

    def release(self) -> None:
        """Puts them back."""
        if self._kept is not None:
            (python, numpy, tensor), self._kept = self._kept, None
            random.setstate(python)
            np.random.set_state(numpy)
            torch.random.set_rng_state(tensor)
            if self._freezes:
                gc.unfreeze()

    def held(self, seed: int) -> Held:
        """The same for a `with` block."""
        return Held(self, seed)


class Held:
    """A block with the generators seeded."""

    def __init__(self, dice: Dice, seed: int) -> None:
        self.dice, self.seed = dice, seed

    def __enter__(self) -> None:
        self.dice.hold(self.seed)

    def __exit__(self, *error: object) -> None:
        self.dice.release()
