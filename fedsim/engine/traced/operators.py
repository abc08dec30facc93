"""What an operator of a traced graph does, and when two tensors are the same."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import Node

VIEWS = {  # operators on what is nobody else's that do as well as views of it
    "aten._unsafe_view.default": "view", "aten.unsqueeze_.default": "unsqueeze", "aten.squeeze_.default": "squeeze",
    "aten.t_.default": "t",
}  # fmt: skip


def kind(node: Node) -> str:
    """What an operator does: "view" of its first argument's memory, "write" into it, "identity", or "compute"."""
    target: Any = node.target
    name = str(target)
    if target is operator.getitem or name in VIEWS:
        return "view"
    if name == "aten.mul.Scalar" and node.args[1] == 1:
        return "identity"
    taken, returned = target._schema.arguments, target._schema.returns
    if any(argument.alias_info is not None and argument.alias_info.is_write for argument in taken):
        return "write"
    return "view" if returned and returned[0].alias_info is not None else "compute"


def random(node: Node) -> bool:
    """Whether an operator draws something."""
    import torch

    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


IGNORED = ("dtype", "layout", "device", "pin_memory")  # an out= form has these from its buffer


def out_form(target: Any) -> tuple[Any, list[str]] | None:
    """The overload of an operator that writes to given tensors, and what it calls them."""
    packet = target.overloadpacket
    wanted = [(a.name, str(a.type)) for a in target._schema.arguments if a.name not in IGNORED]
    for overload in (getattr(packet, name) for name in packet.overloads()):
        arguments = overload._schema.arguments
        outs = [a.name for a in arguments if a.is_out]
        taken = [(a.name, str(a.type)) for a in arguments if not a.is_out and a.name not in IGNORED]
        if outs and len(outs) == len(target._schema.returns) and taken == wanted:
            return overload, outs
    return None


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers, NaN included."""
    return a.dtype == b.dtype and a.shape == b.shape and bool(alike(a, b).all())


def alike(a: Tensor, b: Tensor) -> Tensor:
    """Where two tensors hold the same number, infinity included, or both NaN."""
    return (a == b) | ((a != a) & (b != b))
