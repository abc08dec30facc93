"""A chunk's step as a straight-line program: traced once, then run without autograd and with little new memory.

A chunk has one shape for ever, so the gradient of its losses is one list of operators. `Program` traces it (torch.fx's
make_fx), takes every view once, computes once what does not depend on its inputs, gives every operator a buffer to
write to, and lets a buffer be taken over where what it held is no longer needed; where `kernels` knows a faster way to
compute something on this machine, that way is taken. Weights' gradients that are products of matrices are never
written down: the product is taken off the weights as it is computed. What is left of a step is a few dozen calls that
write in place. The program is held against the function when it is made, and where anything is in the way of a trace
the function itself runs.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fedsim.engine import kernels

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import Node

    from fedsim.engine.kernels import Call

Function = Callable[..., Sequence["Tensor"]]


ROUNDING = 1e-5  # of what an operator gives in another way
KINKS = 1e-2  # of a whole gradient: where an activation is nearly 0, rounding says on which side of a ReLU it is
_tracing = threading.Lock()  # torch.fx traces one function at a time


class Program:
    """A function of tensors whose shapes never change: fill `inputs`, call it, read its values before the next call.

    Its first values are taken off the tensors `less`, in place, after everything else; a call gives the others.
    """

    def __init__(
        self, function: Function, inputs: Sequence[Tensor], less: Sequence[Tensor] = (), twin: Function | None = None
    ) -> None:
        """Of a function without side effects. What `inputs` hold now stands for anything they may hold, and is left
        as it is; `less` may look into them. `twin` computes the same to rounding, and is traced in its place."""
        import torch

        self.function: Function | None = function  # None: the trace does without it, or it is lent out no more
        self.inputs, self.less = tuple(inputs), list(less)
        self.calls: list[Call] | None = None  # None: there is no trace of it
        self.graph: Any = None  # a CUDA graph of the calls
        self.values: tuple[Tensor, ...] = ()
        before = [one.clone() for one in self.less]
        try:
            with _tracing:
                made = compiled(twin or function, self.inputs, self.less)
            expected = function(*self.inputs)
            expected = [one - off for one, off in zip(before, expected, strict=False)] + list(expected[len(before) :])
            for call, args, named in made.calls:
                call(*args, **named)
            found = [*self.less, *made.values]
            if agree(found, expected, made.exact and twin is None):
                self.calls, self.values, self.function = made.calls, made.values, None
                self._captured(before, expected, made.exact and twin is None)
        except Exception:  # whatever in a user's model cannot be traced; the function itself says what is wrong with it
            self.calls = None
        finally:
            if before:
                torch._foreach_copy_(self.less, before)

    def __call__(self) -> Sequence[Tensor]:
        """The function's values for what `inputs` hold, without those that were taken off."""
        import torch

        if self.calls is None:
            assert self.function is not None
            values = self.function(*self.inputs)
            if self.less:
                torch._foreach_sub_(self.less, list(values[: len(self.less)]))
            return values[len(self.less) :]
        if self.graph is not None:
            self.graph.replay()
            return self.values
        for call, args, named in self.calls:
            call(*args, **named)
        return self.values

    def _captured(self, before: list[Tensor], expected: Sequence[Tensor], exact: bool) -> None:
        """Has a GPU remember the calls as one CUDA graph, held against the function as well."""
        import torch

        if self.inputs[0].device.type != "cuda":
            return
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                for call, args, named in self.calls or ():
                    call(*args, **named)
        except RuntimeError:  # something in it cannot be captured
            return
        for one, old in zip(self.less, before, strict=True):
            one.copy_(old)
        graph.replay()
        if agree([*self.less, *self.values], expected, exact):
            self.graph = graph


def agree(found: Sequence[Tensor], expected: Sequence[Tensor], exact: bool) -> bool:
    """Whether a program gives its function's values, to the last bit or but for rounding."""
    return all(map(same, found, expected)) if exact else near(found, expected, KINKS)


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers, NaN included."""
    return a.dtype == b.dtype and a.shape == b.shape and bool(alike(a, b).all())


def near(values: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> bool:
    """Whether tensors hold the same numbers but for rounding: whether the norm of their difference is that small a part
    of the norm of what differs."""
    import torch

    if any(a.shape != b.shape or a.dtype != b.dtype for a, b in zip(values, expected, strict=True)):
        return False
    pairs = [(a, b, alike(a, b)) for a, b in zip(values, expected, strict=True)]
    off = torch.stack([torch.where(equal, 0, a - b).norm() for a, b, equal in pairs]).norm()
    size = torch.stack([torch.where(equal, 0, b).norm() for _, b, equal in pairs]).norm()
    return bool(off <= tolerance * size)


def alike(a: Tensor, b: Tensor) -> Tensor:
    """Where two tensors hold the same number, infinity included, or both NaN."""
    return (a == b) | ((a != a) & (b != b))


class Compiled(NamedTuple):
    """What a program consists of."""

    calls: list[Call]
    values: tuple[Tensor, ...]  # where the calls leave them
    exact: bool  # whether they are the function's to the last bit


def compiled(function: Function, inputs: Sequence[Tensor], less: Sequence[Tensor]) -> Compiled:
    """The calls that compute a function of these very tensors and take its first values off those of `less`."""
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    with torch.no_grad():
        graph = make_fx(lambda *given: tuple(function(*given)))(*inputs)
        graph.graph.eliminate_dead_code()
        pure = not any(node.op == "call_function" and kind(node) == "write" for node in graph.graph.nodes)
        if pure:
            once(graph.graph)
        nodes = list(graph.graph.nodes)
        given = iter(inputs)
        products = {found for one in nodes[-1].args[0][: len(less)] if (found := product(one)) is not None}
        memory = Memory(nodes, products)
        values: dict[Node, Any] = {}
        fixed: set[Node] = set()  # what does not depend on the inputs
        calls: list[Call] = []
        exact, waiting = True, None  # a convolution that its positive part will compute
        for at, node in enumerate(nodes):
            args, named = (torch.fx.node.map_arg(part, values.__getitem__) for part in (node.args, node.kwargs))
            if node.op == "placeholder":
                values[node] = next(given)
            elif node.op == "get_attr":
                values[node] = getattr(graph, node.target)
                fixed.add(node)
            elif node.op == "output":
                calls += taken_off(less, node.args[0], values, products)
                return Compiled(calls, tuple(args[0][len(less) :]), exact and not products)
            elif kind(node) == "identity":
                values[node] = args[0]
            else:
                target: Any = VIEWS.get(str(node.target), node.target)
                if isinstance(target, str):
                    target = getattr(torch.ops.aten, target).default
                if target is torch.ops.aten.view.default and not exact and not viewable(*args):
                    held = memory.place(node, args[0].contiguous())  # it was a view of channels in their usual place
                    calls.append((held.copy_, (args[0],), {}))
                    args = (held, args[1])
                way = kernels.rectified(*waiting) if waiting else kernels.way(node, args)
                found, run, waiting = target(*args, **named), target, None
                if way is not None and agrees(other := way.run(*args), found):
                    found, run, exact = other, way.run, False
                else:
                    way = None
                values[node] = found
                if pure and all(one in fixed or shape_alone(node) for one in node.all_input_nodes):
                    fixed.add(node)
                elif kind(node) == "write":
                    calls.append((target, args, named))
                elif node in products:
                    pass  # computed where it is taken off
                elif way is not None and ends_in_relu(node):
                    waiting = (way.run, args)
                elif kind(node) == "compute":
                    values[node] = placed = memory.place(node, found)
                    if way is not None and way.into is not None:
                        calls += way.into(placed, args)
                    else:
                        calls.append(writing_to(run, args, named, found, placed))
            memory.release(at)
    raise AssertionError("a graph ends with its output")


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


def random(node: Node) -> bool:
    """Whether an operator draws something."""
    import torch

    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def agrees(found: Any, expected: Any) -> bool:
    """Whether another way gives an operator's own value, a tensor or several, to rounding."""
    import torch

    if isinstance(expected, torch.Tensor):
        return near([found], [expected], ROUNDING)
    there = [(a, b) for a, b in zip(found, expected, strict=True) if a is not None or b is not None]
    return all(a is not None and b is not None and near([a], [b], ROUNDING) for a, b in there)


def product(end: Any) -> Node | None:
    """The product of matrices that a value is, as it was computed or transposed, if nothing else asks for it."""
    node = end
    while node.op == "call_function" and kind(node) == "view" and len(node.users) == 1:
        node = node.args[0]
    if str(node.target) not in ("aten.bmm.default", "aten.mm.default") or len(node.users) != 1:
        return None
    found: Node = node
    apart = kernels.taken_apart(*(part.meta["val"] for part in node.args))
    return found if apart and turned(end, found) is not None else None


def turned(end: Node, found: Node) -> bool | None:
    """Whether a value is the transpose of that product; None: it is something else. A stack of one may stand for it."""
    value, matrix = end.meta["val"], found.meta["val"]
    if value.ndim > matrix.ndim and len(value) == 1:
        value = value[0]
    for answer in (False, True):
        if value.shape == matrix.shape and value.stride() == matrix.stride():
            return answer
        matrix = matrix.mT
    return None


def taken_off(less: Sequence[Tensor], ends: Sequence[Node], values: dict[Node, Any], products: set[Node]) -> list[Call]:
    """The calls that take the values of the first of `ends` off the tensors."""
    import torch

    calls: list[Call] = []
    targets: list[Tensor] = []
    others: list[Tensor] = []
    for target, end in zip(less, ends, strict=False):
        found = product(end)
        if found is None or found not in products:
            targets.append(target)
            others.append(values[end])
            continue
        left, right = (values[part] for part in found.args)  # type: ignore[index]
        target = target[0] if target.ndim > left.ndim else target
        calls += kernels.subtract(target.mT if turned(end, found) else target, left, right)
    return [*calls, (torch._foreach_sub_, (targets, others), {})] if others else calls


def ends_in_relu(node: Node) -> bool:
    """Whether a convolution is there for its positive part alone, which comes next."""
    after = node.next
    return (
        str(node.target) == "aten.convolution.default" and list(node.users) == [after]
        and str(after.target) == "aten.relu.default"
    )  # fmt: skip


VIEWS = {  # operators on what is nobody else's that do as well as views of it
    "aten._unsafe_view.default": "view", "aten.unsqueeze_.default": "unsqueeze", "aten.squeeze_.default": "squeeze",
    "aten.t_.default": "t",
}  # fmt: skip


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
