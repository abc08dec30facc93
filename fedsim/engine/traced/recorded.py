"""A step without Python: its operators, recorded once, run as often as asked.

A chunk's step is the same few dozen operators on the same tensors for ever. Called one by one from Python they cost
some microseconds each, and workers side by side wait for Python's lock. So a step is done once under a mode that sees
every operator, and what it saw is run again: on a CPU as one TorchScript graph with a loop around it, which needs
Python for nothing; on a GPU as CUDA graphs, of one step and of stretches that come again. Either is held against the
step itself, to the last bit, before it takes its place.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fedsim.engine.traced.operators import same

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Step = Callable[[], None]

LONGEST = 64  # steps in a CUDA graph
GRAPHS = 4  # of stretches, kept for a step
_making = threading.Lock()


Seen = tuple[Any, tuple[Any, ...], dict[str, Any], Any]  # an operator, what it was given and what came of it


def watched(step: Step) -> list[Seen]:
    """Takes a step, and says which operators that were."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: list[Seen] = []

    class Tape(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            seen.append((function, args, kwargs or {}, out))
            return out

    mode: Any = Tape
    with mode(), torch.no_grad():
        step()
    return seen


class Scripted:
    """A step's operators as one TorchScript graph, run any number of times in a row without Python's lock."""

    def __init__(self, step: Step, loose: Sequence[Tensor]) -> None:
        """Takes the step, once. `loose` tensors may be exchanged for others of the same kind by `bind`. Raises
        whatever is in the way: an operator or a value that TorchScript does not know."""
        import torch

        text, given = script(watched(step), loose)
        with _making:
            self._function = torch._C._create_function_from_graph("step", torch._C.parse_ir(text))
        self._fixed = given
        self.bind(loose)

    def bind(self, loose: Sequence[Tensor]) -> None:
        """Use these from now on."""
        self._given = [*loose, *self._fixed]

    def release(self) -> None:
        """Keeps nothing of what was bound alive."""
        self._given = []

    def __call__(self, times: int) -> None:
        import torch

        optimises = torch._C._get_graph_executor_optimize()  # this thread's: whether runs are watched and rewritten
        torch._C._set_graph_executor_optimize(False)
        try:
            with torch.no_grad():
                self._function(times, *self._given)
        finally:
            torch._C._set_graph_executor_optimize(optimises)


class Captured:
    """A step as a CUDA graph, and stretches of steps as one each from the second time they are asked for."""

    def __init__(self, step: Step, loose: Sequence[Tensor]) -> None:
        self._step = step
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._asked: dict[int, int] = {}
        self._bound: Any = None
        self.bind(loose)

    def bind(self, loose: Sequence[Tensor]) -> None:
        """Graphs know where a tensor lies; those of another place are of no use."""
        bound = [(one.data_ptr(), one.shape, one.stride(), one.dtype) for one in loose]
        if bound != self._bound:
            self._graphs.clear()
        self._bound = bound

    def release(self) -> None:
        """Keeps nothing alive as it is."""

    def __call__(self, times: int) -> None:
        for piece in [LONGEST] * (times // LONGEST) + [times % LONGEST] * (times % LONGEST > 0):
            self._asked[piece] = self._asked.get(piece, 0) + 1
            again = piece in self._graphs or self._asked[piece] > 1
            for _ in range(1 if again else piece):
                self._graph(piece if again else 1).replay()

    def _graph(self, length: int) -> torch.cuda.CUDAGraph:
        """Of so many steps; the first that was made makes room for one too many."""
        if length not in self._graphs:
            others = [each for each in self._graphs if each > 1]
            if len(others) >= GRAPHS:
                del self._graphs[others[0]]
            self._graphs[length] = self._captured(length)
        return self._graphs[length]

    def _captured(self, times: int) -> torch.cuda.CUDAGraph:
        import torch

        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(times):
                self._step()
        return graph


def recorded(step: Step, state: Sequence[Tensor], loose: Sequence[Tensor]) -> Scripted | Captured | None:
    """Takes a step, and gives what takes such steps without Python; None where there is no such way, or it gives other
    numbers. `state` is all that a step leaves behind for later ones."""
    import torch

    device = state[0].device.type
    if device not in ("cpu", "cuda"):
        step()
        return None
    before = [one.clone() for one in state]
    made: Scripted | Captured | None = None
    try:
        made = Scripted(step, loose) if device == "cpu" else None
    except Exception:  # TorchScript does not know something; this half of a step is taken again
        torch._foreach_copy_(list(state), before)
    if made is None:
        step()
    after = [one.clone() for one in state]
    try:
        if device == "cuda":
            made = Captured(step, loose)
        if made is None:
            return None
        torch._foreach_copy_(list(state), before)
        made(1)
        if all(map(same, state, after)):
            return made
    except Exception:  # something cannot be captured, or this torch has no such graphs
        pass
    torch._foreach_copy_(list(state), after)
    return None


# --- TorchScript's intermediate representation, as text ---------------------------------------------------------------


def script(seen: Sequence[Seen], loose: Sequence[Tensor]) -> tuple[str, list[Tensor]]:
    """A graph of the operators seen, (times, loose..., others...) -> (), and the others. What is looked at in fixed
    tensors is looked at now, not in every step."""
    graph = Graph(loose)
    for function, args, named, out in seen:
        graph.add(function, args, named, out)
    return graph.text(), graph.fixed


class Graph:
    """The text of a graph, line by line."""

    def __init__(self, loose: Sequence[Tensor]) -> None:
        self._names: dict[int, str] = {}  # by id; `_held` keeps ids from being given again
        self._held: list[Any] = []
        self._constants: dict[str, str] = {}
        self._head: list[str] = []
        self._body: list[str] = []
        self._given: list[str] = []
        self._made: set[int] = set()  # by an operator of the step, or loose: not there before
        self._count = 0
        self.fixed: list[Tensor] = []
        for one in loose:
            self._given.append(self._named(one))
            self._made.add(id(one))

    def add(self, function: Any, args: Sequence[Any], named: dict[str, Any], out: Any) -> None:
        """A line for an operator that was called."""
        import torch

        schema = function._schema
        outs = list(out) if isinstance(out, (tuple, list)) else [out] if isinstance(out, torch.Tensor) else []
        views = schema.returns and all(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
        if views and not any(id(one) in self._made for one in tensors((args, named))):
            return  # a look at what is fixed: fixed itself
        values = []
        for i, argument in enumerate(schema.arguments):
            given = argument.default_value
            if argument.name in named:
                given = named[argument.name]
            elif i < len(args):
                given = args[i]
            values.append(self._value(given, kind(argument.type)))
        left = []
        for one in outs:
            known = id(one) in self._names  # written to, and given back
            left.append(self._fresh() if known else self._named(one))
            if not known:
                self._made.add(id(one))
        made = ", ".join(f"{name} : Tensor" for name in left)
        self._body.append(f"      {made}{' = ' if made else ''}{schema.name}({', '.join(values)})")

    def text(self) -> str:
        """The whole."""
        inputs = ", ".join(["%times : int", *(f"{name} : Tensor" for name in self._given)])
        return "\n".join([
            f"graph({inputs}):", *self._head, "  %yes : bool = prim::Constant[value=1]()",
            "  prim::Loop(%times, %yes)", "    block0(%step : int):", *self._body, "      -> (%yes)",
            "  return (%yes)", "",
        ])  # fmt: skip

    def _fresh(self) -> str:
        self._count += 1
        return f"%v{self._count}"

    def _named(self, tensor: Any) -> str:
        self._held.append(tensor)
        self._names[id(tensor)] = self._fresh()
        return self._names[id(tensor)]

    def _value(self, value: Any, wanted: str) -> str:
        """The name of an argument."""
        import torch

        if isinstance(value, torch.Tensor):
            if id(value) not in self._names:
                self._given.append(self._named(value))
                self.fixed.append(value)
            return self._names[id(value)]
        if isinstance(value, (list, tuple)):
            inner = wanted.removesuffix("[]")
            parts = ", ".join(self._value(one, inner) for one in value)
            made = f"{inner}[] = prim::ListConstruct({parts})"
            if any(id(one) in self._made for one in value):
                name = self._fresh()
                self._body.append(f"      {name} : {made}")
                return name
            return self._once(made)
        type, attribute = constant(value)
        return self._once(f"{type} = prim::Constant{attribute}()")

    def _once(self, made: str) -> str:
        """The name of what is made before the first step, and for all."""
        if made not in self._constants:
            self._constants[made] = self._fresh()
            self._head.append(f"  {self._constants[made]} : {made}")
        return self._constants[made]


def constant(value: Any) -> tuple[str, str]:
    """The type and the attribute of a constant. Raises TypeError if it is none that is written here."""
    import torch

    if value is None:
        return "NoneType", ""
    if isinstance(value, bool):
        return "bool", f"[value={int(value)}]"
    if isinstance(value, int):
        return "int", f"[value={value}]"
    if isinstance(value, float) and value - value == 0:
        return "float", f"[value={value!r}]" if "." in repr(value) else f"[value={value:.17e}]"
    if isinstance(value, str) and '"' not in value and "\\" not in value:
        return "str", f'[value="{value}"]'
    if isinstance(value, torch.dtype):
        return "int", f"[value={TYPES.index(str(value).removeprefix('torch.'))}]"
    if isinstance(value, torch.device):
        return "Device", f'[value="{value}"]'
    if value is torch.strided:
        return "int", "[value=0]"
    if isinstance(value, torch.memory_format):
        return "int", f"[value={FORMATS.index(str(value).removeprefix('torch.'))}]"
    raise TypeError(f"{value!r} cannot be written down as a constant")


TYPES = (  # c10's ScalarType
    "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "complex32", "complex64",
    "complex128", "bool", "qint8", "quint8", "qint32", "bfloat16",
)  # fmt: skip
FORMATS = ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d")  # c10's MemoryFormat


def kind(given: Any) -> str:
    """A schema's type as a graph writes it: Optional[List[int]] is int[]."""
    text = str(given).removeprefix("Optional[")
    text = text if text == str(given) else text[:-1]
    if not text.startswith("List["):
        return {"number": "Scalar"}.get(text, text)
    inner = text[len("List[") : -1]
    return kind(inner) + ("?" if inner.startswith("Optional[") else "") + "[]"


def tensors(value: Any) -> list[Tensor]:
    """The tensors in arguments."""
    import torch
    from torch.utils._pytree import tree_leaves

    return [one for one in tree_leaves(value) if isinstance(one, torch.Tensor)]
