"""What a traced graph need not compute."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedsim.engine.traced.operators import kind, random

if TYPE_CHECKING:
    from torch.fx import Node


def simplify(graph: Any) -> None:
    """Leaves out of a graph without side effects what is there already, is multiplied by one, or is nobody's; the
    numbers stay the same to the last bit."""
    once(graph)
    constants(graph)
    units(graph)
    graph.eliminate_dead_code()


def once(graph: Any) -> None:
    """Lets nothing be computed twice: of operators that are alike, of the same values, the first stands for all."""
    seen: dict[Any, Node] = {}
    for node in list(graph.nodes):
        if node.op == "call_function" and not random(node):
            like = repr((str(node.target), node.args, node.kwargs))  # nodes as their names, which are unique
            first = seen.setdefault(like, node)
            if first is not node:
                node.replace_all_uses_with(first)
                graph.erase_node(node)


NUMBERS: dict[str, float] = {
    "aten.ones_like.default": 1, "aten.zeros_like.default": 0, "aten.new_ones.default": 1, "aten.new_zeros.default": 0,
}  # fmt: skip


def constants(graph: Any) -> None:
    """Tensors full of a number that are like another in shape alone have nothing to do with it."""
    import torch

    for node in list(graph.nodes):
        if node.op != "call_function" or str(node.target) not in NUMBERS:
            continue
        value = node.meta["val"]
        with graph.inserting_before(node):
            made = graph.call_function(
                torch.ops.aten.full.default, (list(value.shape), NUMBERS[str(node.target)]),
                {"dtype": value.dtype, "device": value.device},
            )  # fmt: skip
        made.meta["val"] = value
        node.replace_all_uses_with(made)
        graph.erase_node(node)


def units(graph: Any) -> None:
    """What is multiplied by ones is what it was."""
    for node in list(graph.nodes):
        if node.op != "call_function" or str(node.target) != "aten.mul.Tensor":
            continue
        value = node.meta["val"]
        for one, other in (node.args, node.args[::-1]):
            if not (isinstance(one, type(node)) and isinstance(other, type(node)) and full_of_ones(one)):
                continue
            kept = other.meta["val"]
            if (kept.shape, kept.dtype) == (value.shape, value.dtype):
                node.replace_all_uses_with(other)
                graph.erase_node(node)
                break


def full_of_ones(node: Node) -> bool:
    """Whether a tensor holds nothing but ones, seen in whatever shape."""
    while node.op == "call_function" and kind(node) == "view" and isinstance(node.args[0], type(node)):
        node = node.args[0]
    return node.op == "call_function" and str(node.target) == "aten.full.default" and bool(node.args[1] == 1)
