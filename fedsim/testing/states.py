"""Comparing states: what one holds, a copy of it, and where two differ, in words."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedsim.rows import Rows


class Broken(AssertionError):
    """A law does not hold: what is wrong, in which round, with whom present."""

    def __init__(self, text: str, t: int | None = None, who: Any = None) -> None:
        super().__init__(text)
        self.text = text
        self.t = t
        self.who = who if who is None else [int(i) for i in who]


class Inapplicable(AssertionError):
    """A law says nothing here, for the reason given."""


def contents(state: Any, at: str = "") -> dict[str, Any]:
    """All a state holds, by where it is: tensors copied, tables of rows written out."""
    if isinstance(state, Rows):
        return {
            f"{at}.rows": state.dense().clone(),
            f"{at}.mean": state.mean.clone(),
            f"{at}.seen": state.seen().clone(),
        }
    if isinstance(state, Tensor):
        return {at: state.detach().clone()}
    if hasattr(state, "_fields"):
        return {k: v for name in state._fields for k, v in contents(getattr(state, name), f"{at}.{name}").items()}
    return {at: state}


def copied(state: Any) -> Any:
    """A state that shares no memory with the one given."""
    if isinstance(state, Rows):
        return state.copy()
    if isinstance(state, Tensor):
        return state.clone()
    if hasattr(state, "_fields"):
        return type(state)(*(copied(value) for value in state))
    return state


def same(a: Any, b: Any, what: str = "", t: int | None = None, who: Any = None) -> None:
    """Two states, or two `contents`, or two tensors are equal bit for bit. Raises Broken."""
    close(a, b, 0.0, what, t, who)


def close(a: Any, b: Any, tolerance: float, what: str = "", t: int | None = None, who: Any = None) -> None:
    """Two states, or two `contents`, or two tensors are equal to a relative tolerance, and of the same kinds.

    Raises Broken, which says where they first differ, and `what` b is: "where the uninterrupted run has".
    """
    found = difference(a, b, tolerance, what or "where it should be")
    if found is not None:
        raise Broken(found, t, who)


def difference(a: Any, b: Any, tolerance: float, what: str) -> str | None:
    """Where a is not what b is, in words: "x[3] is 0.25 where it should be 0.5"; None where they agree."""
    one, other = (s if isinstance(s, dict) else contents(s) for s in (a, b))
    if list(one) != list(other):
        return f"the state holds {', '.join(one)} {what} {', '.join(other)}"
    for at, value in one.items():
        name = at.removeprefix(".") or "x"
        expected = other[at]
        if isinstance(value, Tensor) and isinstance(expected, Tensor):
            if (value.shape, value.dtype) != (expected.shape, expected.dtype):
                return f"{name} is {kind(value)} {what} {kind(expected)}"
            wrong = _apart(value, expected, tolerance)
            if wrong is not None:
                place = "" if not wrong else f"[{', '.join(map(str, wrong))}]"
                got, wanted = numbers(value[wrong], expected[wrong])
                return f"{name}{place} is {got} {what} {wanted}"
        elif type(value) is not type(expected) or value != expected:
            return f"{name} is {value!r} {what} {expected!r}"
    return None


def _apart(a: Tensor, b: Tensor, tolerance: float) -> tuple[int, ...] | None:
    """The first place at which two tensors of one shape differ; NaN equals NaN."""
    if a.is_floating_point():
        equal = torch.isclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True) if tolerance else _equal(a, b)
    else:
        equal = a == b
    if bool(equal.all()):
        return None
    return tuple(int(i) for i in (~equal).nonzero()[0].tolist())


def _equal(a: Tensor, b: Tensor) -> Tensor:
    return (a == b) | (a.isnan() & b.isnan())


def kind(tensor: Tensor) -> str:
    """A tensor's precision and shape: "float32 [6, 8]"."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def numbers(one: Any, other: Any) -> tuple[str, str]:
    """Two numbers with as few digits as show that they differ."""
    pair = [value.item() if isinstance(value, Tensor) else value for value in (one, other)]
    for digits in (4, 7, 10, 17):
        a, b = (f"{value:.{digits}g}" if isinstance(value, float) else str(value) for value in pair)
        if a != b:
            return a, b
    return str(pair[0]), str(pair[1])


def finite(state: Any) -> str | None:
    """The first number of a state that is NaN or infinite, in words; None where all are finite."""
    for at, value in contents(state).items():
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
            wrong = tuple(int(i) for i in (~value.isfinite()).nonzero()[0].tolist())
            place = f"[{', '.join(map(str, wrong))}]" if wrong else ""
            return f"{at.removeprefix('.')}{place} is {value[wrong].item()}"
    return None
