"""The shapes of examples, and how they are spelt in messages."""

from __future__ import annotations

Shape = tuple[int, ...]


def show(shape: Shape) -> str:
    """A shape as text, such as [3, 32, 32]."""
    return f"[{', '.join(map(str, shape))}]"


def images(model: str, shape: Shape, side: int) -> tuple[int, int, int]:
    """Channels, height and width of images no smaller than `side`. Raises ValueError, one line, for anything else."""
    if len(shape) != 3 or min(shape[1:]) < side:
        raise ValueError(
            f"{model} needs images [channels, height, width] of side {side} or more, got {show(shape)}; use mlp"
        )
    return shape[0], shape[1], shape[2]
