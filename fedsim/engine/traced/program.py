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

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fedsim.engine.traced import kernels
from fedsim.engine.traced.buffers import Memory, writing_to
from fedsim.engine.traced.operators import VIEWS, alike, kind, same
from fedsim.engine.traced.simpler import simplify

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import Node

    from fedsim.engine.traced.kernels import Call

Function = Callable[..., Sequence["Tensor"]]


ROUNDING = 1e-5  # of what an operator gives in another way
KINKS = 1e-2  # of a whole gradient: where an activation is nearly 0, rounding says on which side of a ReLU it is
_calling = threading.Lock()  # a model, which then holds somebody's parameters, and while it is traced others' methods


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
        self.values: tuple[Tensor, ...] = ()
        before = [one.clone() for one in self.less]
        try:
            with _calling:
                made = compiled(twin or function, self.inputs, self.less)
                expected = function(*self.inputs)
            slopes, values = expected[: len(before)], expected[len(before) :]
            for call, args, named in made.calls:
                call(*args, **named)
            if made.exact and twin is None:
                after = [one - slope for one, slope in zip(before, slopes, strict=True)]
                right = all(map(same, [*self.less, *made.values], [*after, *values]))
            else:
                taken = [one - now for one, now in zip(before, self.less, strict=True)]
                right = near(taken, slopes, KINKS, before) and near(made.values, values, KINKS)
            if right:
                self.calls, self.values, self.function = made.calls, made.values, None
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
            with torch.no_grad(), _calling:
                values = self.function(*self.inputs)
                if self.less:
                    torch._foreach_sub_(self.less, list(values[: len(self.less)]))
            return values[len(self.less) :]
        for call, args, named in self.calls:
            call(*args, **named)
        return self.values


def near(
    values: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float, rounded: Sequence[Tensor] = ()
) -> bool:
    """Whether tensors hold the same numbers but for rounding: whether the norm of their difference is that small a part
    of their norm, of all of it, so that the answer does not hang on a few small numbers of what they hold today. They
    may be differences of tensors like `rounded`."""
    import torch

    if any(a.shape != b.shape or a.dtype != b.dtype for a, b in zip(values, expected, strict=True)):
        return False
    if not all(torch.equal(a, b) for a, b in zip(values, expected, strict=True) if not a.is_floating_point()):
        return False  # places of maxima
    pairs = [(a, b) for a, b in zip(values, expected, strict=True) if a.is_floating_point()]
    if not pairs:
        return True
    off = torch.stack([torch.where(alike(a, b), 0, a - b).norm() for a, b in pairs]).norm()
    size = torch.stack([torch.where(b.isfinite(), b, 0).norm() for _, b in pairs]).norm()
    slack = sum(float(one.norm()) * torch.finfo(one.dtype).eps for one in rounded)
    return bool(off <= tolerance * size + slack)


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
            simplify(graph.graph)
        nodes = list(graph.graph.nodes)
        given = iter(inputs)
        places = dict(zip((node for node in nodes if node.op == "placeholder"), inputs, strict=True))
        changed = {one.untyped_storage().data_ptr() for one in less}
        seen = {node for node, one in places.items() if one.untyped_storage().data_ptr() in changed}
        products = {
            found for one in nodes[-1].args[0][: len(less)]
            if (found := product(one)) is not None and not any(looked_into(part) in seen for part in found.args)
        }  # fmt: skip
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
                if pure and all(one in fixed for one in node.all_input_nodes):
                    fixed.add(node)
                elif kind(node) == "write":
                    calls.append((target, args, named))
                elif node in products:
                    pass  # computed where it is taken off
                elif way is not None and ends_in_relu(node):
                    waiting = (way, args)
                elif kind(node) == "compute":
                    values[node] = placed = memory.place(node, found)
                    if way is not None and way.into is not None:
                        calls += way.into(placed, args)
                    else:
                        calls.append(writing_to(run, args, named, found, placed))
            memory.release(at)
    raise AssertionError("a graph ends with its output")


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


def looked_into(node: Any) -> Node:
    """Whose memory a value is a view of: its own, or another's."""
    while node.op == "call_function" and kind(node) in ("view", "identity"):
        node = node.args[0]
    found: Node = node
    return found


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


def viewable(tensor: Tensor, shape: Sequence[int]) -> bool:
    """Whether a tensor can be looked at in another shape without being copied."""
    try:
        tensor.view(shape)
    except RuntimeError:
        return False
    return True
