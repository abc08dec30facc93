"""A chunk's gradients as a straight-line program: traced once, then run without autograd and without new memory.

A chunk has one shape for ever, so the gradient of its losses is one list of operators. `Program` traces it (torch.fx's
make_fx), takes every view once, computes once what does not depend on its inputs, gives every operator a buffer to
write to, and lets a buffer be taken over where what it held is no longer needed. What is left of a step is a few dozen
calls that write in place. The numbers are those of the function, bit for bit: the program is held against it when it is
made, and where anything is in the way of a trace the function itself runs.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import Node

Function = Callable[..., Sequence["Tensor"]]
Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


_tracing = threading.Lock()  # torch.fx traces one function at a time


class Program:
    """A function of tensors whose shapes never change: fill `inputs`, call it, read its values before the next call."""

    def __init__(self, function: Function, inputs: Sequence[Tensor]) -> None:
        """Of a function without side effects. What `inputs` hold now stands for anything they may hold."""
        self.function: Function | None = function  # None: the trace does without it, or it is lent out no more
        self.inputs = tuple(inputs)
        self.calls: list[Call] | None = None  # None: there is no trace of it
        self.values: tuple[Tensor, ...] = ()
        try:
            with _tracing:
                calls, values, exact = compiled(function, self.inputs)
            for call, args, named in calls:
                call(*args, **named)
            expected = function(*self.inputs)
            if all(map(same, values, expected)) if exact else near(values, expected):
                self.calls, self.values, self.function = calls, values, None
        except Exception:  # whatever in a user's model cannot be traced; the function itself says what is wrong with it
            self.calls = None

    def __call__(self) -> Sequence[Tensor]:
        """The function's values for what `inputs` hold."""
        if self.calls is None:
            assert self.function is not None
            return self.function(*self.inputs)
        for call, args, named in self.calls:
            call(*args, **named)
        return self.values


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers, NaN included."""
    return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def near(values: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Whether tensors hold the same numbers but for rounding: to 1e-5 of the largest of all in float32."""
    import torch

    scale = torch.stack([one.abs().max() for one in expected if one.numel()]).max()
    return all(
        a.dtype == b.dtype
        and a.shape == b.shape
        and bool((((a - b).abs() <= 100 * torch.finfo(b.dtype).eps * scale) | (a == b) | ((a != a) & (b != b))).all())
        for a, b in zip(values, expected, strict=True)
    )


def compiled(function: Function, inputs: Sequence[Tensor]) -> tuple[list[Call], tuple[Tensor, ...], bool]:
    """The calls that compute a function of these very tensors, where they leave its values, and whether these are the
    function's to the last bit: convolutions of one model on a CPU run on pictures with their channels last, which
    pooling is faster with."""
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    with torch.no_grad():
        graph = make_fx(lambda *given: tuple(function(*given)))(*inputs)
        graph.graph.eliminate_dead_code()
        nodes = list(graph.graph.nodes)
        given = iter(inputs)
        memory = Memory(nodes)
        pure = not any(node.op == "call_function" and kind(node) == "write" for node in nodes)
        values: dict[Node, Any] = {}
        fixed: set[Node] = set()  # what does not depend on the inputs
        calls: list[Call] = []
        exact = True
        for at, node in enumerate(nodes):
            args, named = (torch.fx.node.map_arg(part, values.__getitem__) for part in (node.args, node.kwargs))
            if node.op == "placeholder":
                values[node] = next(given)
            elif node.op == "get_attr":
                values[node] = getattr(graph, node.target)
                fixed.add(node)
            elif node.op == "output":
                return calls, tuple(args[0]), exact
            elif kind(node) == "identity":
                values[node] = args[0]
            else:
                target: Any = VIEWS.get(str(node.target), node.target)
                if isinstance(target, str):
                    target = getattr(torch.ops.aten, target).default
                if convolves_one(node, args):
                    target, exact = channels_last(target), False
                if target is torch.ops.aten.view.default and not exact and not viewable(*args):
                    held = memory.place(node, args[0].contiguous())  # it was a view of channels in their usual place
                    calls.append((held.copy_, (args[0],), {}))
                    args = (held, args[1])
                values[node] = found = target(*args, **named)
                if pure and all(other in fixed or shape_alone(node) for other in node.all_input_nodes):
                    fixed.add(node)
                elif kind(node) == "write":
                    calls.append((target, args, named))
                elif kind(node) == "compute":
                    values[node] = memory.place(node, found)
                    calls.append(writing_to(target, args, named, found, values[node]))
            memory.release(at)
    raise AssertionError("a graph ends with its output")


VIEWS = {  # operators on what is nobody else's that do as well as views of it
    "aten._unsafe_view.default": "view", "aten.unsqueeze_.default": "unsqueeze", "aten.squeeze_.default": "squeeze",
    "aten.t_.default": "t",
}  # fmt: skip


def convolves_one(node: Node, args: Any) -> bool:
    """Whether an operator is a convolution of pictures by one model, forwards or backwards, on a CPU."""
    name = str(node.target)
    if name not in ("aten.convolution.default", "aten.convolution_backward.default"):
        return False
    pictures, groups = args[0], args[8] if name == "aten.convolution.default" else args[9]
    return bool(pictures.ndim == 4 and groups == 1 and pictures.device.type == "cpu")


def channels_last(target: Any) -> Callable[..., Any]:
    """A convolution whose tensors have their channels last."""
    import torch

    def last(value: Any) -> Any:
        four = isinstance(value, torch.Tensor) and value.ndim == 4
        return value.contiguous(memory_format=torch.channels_last) if four else value

    def run(*args: Any, **named: Any) -> Any:
        found = target(*map(last, args), **named)
        return tuple(map(last, found)) if isinstance(found, tuple) else last(found)

    return run


def viewable(tensor: Tensor, shape: Sequence[int]) -> bool:
    """Whether a tensor can be looked at in another shape without being copied."""
    try:
        tensor.view(shape)
    except RuntimeError:
        return False
    return True


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


def shape_alone(node: Node) -> bool:
    """Whether an operator asks only for its argument's shape."""
    return str(node.target) in ("aten.ones_like.default", "aten.zeros_like.default", "aten.full_like.default")


class Memory:
    """Buffers for what operators compute, each free for another when nothing that looks into it is needed any more."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._root: dict[Node, Node] = {}  # whose memory a node looks into
        last: dict[Node, int] = {}
        for at, node in enumerate(nodes):
            shares = node.op == "call_function" and kind(node) != "compute" and isinstance(node.args[0], type(node))
            self._root[node] = self._root[node.args[0]] if shares else node  # type: ignore[index]
            for other in node.all_input_nodes:
                last[self._root[other]] = len(nodes) if node.op == "output" else at  # values are never let go
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
