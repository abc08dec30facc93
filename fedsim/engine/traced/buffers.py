"""Where a program's operators write what they compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fedsim.engine.traced.operators import kind, out_form, same

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import Node

    from fedsim.engine.traced.kernels import Call


class Memory:
    """Buffers for what operators compute, each free for another when nothing that looks into it is needed any more."""

    def __init__(self, nodes: Sequence[Node], last_of_all: set[Node]) -> None:
        """`last_of_all` are computed when everything else has been."""
        self._root: dict[Node, Node] = {}  # whose memory a node looks into
        last: dict[Node, int] = {}
        for at, node in enumerate(nodes):
            shares = node.op == "call_function" and kind(node) != "compute" and isinstance(node.args[0], type(node))
            self._root[node] = self._root[node.args[0]] if shares else node  # type: ignore[index]
            for other in node.all_input_nodes:
                never = node.op == "output" or node in last_of_all  # values are not let go
                last[self._root[other]] = len(nodes) if never else max(at, last.get(self._root[other], at))
        self._ends: dict[int, list[Node]] = {}
        for node, at in last.items():
            self._ends.setdefault(at, []).append(node)
        self._blocks: dict[Node, list[Tensor]] = {}
        self._free: list[Tensor] = []

    def place(self, node: Node, found: Any) -> Any:
        """A buffer like each tensor found, holding the same."""
        many = isinstance(found, (tuple, list))
        placed = [None if one is None else self._buffer(node, one) for one in (found if many else [found])]
        return placed if many else placed[0]

    def release(self, at: int) -> None:
        """Operator number `at` has been called: what only it was waiting for is free."""
        for node in self._ends.get(at, ()):
            self._free += self._blocks.pop(node, [])

    def _buffer(self, node: Node, like: Tensor) -> Tensor:
        import torch

        extent = 1 + sum((size - 1) * stride for size, stride in zip(like.shape, like.stride(), strict=True))
        stride = like.stride() if extent == like.numel() else torch.empty(like.shape, device="meta").stride()
        size = max(like.numel() * like.element_size(), 1)
        fitting = [block for block in self._free if size <= block.numel() <= 2 * size and block.device == like.device]
        if fitting:
            block = min(fitting, key=torch.Tensor.numel)
            self._free = [other for other in self._free if other is not block]
        else:
            block = torch.empty(-(-size // 64) * 64, dtype=torch.uint8, device=like.device)
        self._blocks.setdefault(node, []).append(block)
        flat = block[: like.numel() * like.element_size()].view(like.dtype)
        return flat.as_strided(like.shape, stride).copy_(like)


def writing_to(target: Any, args: Any, named: dict[str, Any], found: Any, placed: Any) -> Call:
    """The call that writes an operator's value to its buffers: by its out= form where it has one that does."""
    name = str(target)
    if name == "aten.clone.default" or (name == "aten._to_copy.default" and set(named) <= {"dtype"}):
        return (placed.copy_, (args[0],), {})
    many = isinstance(found, (tuple, list))
    buffers, values = (list(placed), list(found)) if many else ([placed], [found])
    form = out_form(target) if hasattr(target, "overloadpacket") else None
    if form is not None and all(buffer is not None for buffer in buffers):
        overload, outs = form
        taken = {argument.name for argument in overload._schema.arguments}
        named_too = {k: v for k, v in named.items() if k in taken} | dict(zip(outs, buffers, strict=True))
        try:
            overload(*args, **named_too)
            if all(map(same, buffers, values)):
                return (overload, args, named_too)
        except (RuntimeError, TypeError):
            pass
        for buffer, value in zip(buffers, values, strict=True):
            buffer.copy_(value)

    def copied(*args: Any, **named: Any) -> None:
        out = target(*args, **named)
        for buffer, value in zip(buffers, out if many else [out], strict=True):
            if buffer is not None:
                buffer.copy_(value)

    return (copied, args, named)
