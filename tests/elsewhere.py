"""A device that is not there: its tensors hold values, and whoever asks for them is written down.

On a GPU the host runs ahead: it queues up work and waits only where it is told a value (`item`, `tolist`, a copy to the
host) or a shape that depends on values (`nonzero`, a mask as an index, `unique`). On the CPU of a test these cost
nothing and nobody sees them. A tensor of this device says that it lies on "lazy", of which no machine has one, and lies
on the CPU; `Watched` does what is asked of it and lists what the host had to wait for.
"""

from __future__ import annotations

import traceback
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

DEVICE = torch.device("lazy:0")
WAITS = {"_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "unique_consecutive", "masked_select", "equal"}


class Away(Tensor):
    """A tensor of that device, around one of the host with its values."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> Away:
        out: Away = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, values.size(), strides=values.stride(), storage_offset=values.storage_offset(), dtype=values.dtype,
            device=DEVICE,
        )  # fmt: skip
        out.values = values
        return out

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return done(func, args, kwargs or {}, [])


class Wait(NamedTuple):
    """Where the host had to wait."""

    operator: str
    where: str  # file:function of fedsim


class Made(TorchFunctionMode):
    """A block in which that device is served where torch works below the operators: a tensor or an index made of
    numbers, which is copied from the host, and `tolist`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and "device" in kwargs:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if args and isinstance(args[0], Away):
            x = args[0]
            if func is Tensor.tolist:
                return x.to("cpu").tolist()
            if func is Tensor.new_tensor:
                return torch.tensor(*args[1:], **{"dtype": x.dtype, **kwargs}).to(x.device)
            if func is Tensor.__getitem__ and isinstance(args[1], list):
                return x[torch.tensor(args[1]).to(x.device)]
        return func(*args, **kwargs)


class Watched(TorchDispatchMode):
    """A block in which tensors may be made on that device; `waits` lists what the host had to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[Wait] = []
        self.made = Made()

    def __enter__(self) -> Watched:
        self.made.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.made.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return done(func, args, kwargs or {}, self.waits)


def done(func: Any, args: Any, kwargs: dict[str, Any], waits: list[Wait]) -> Any:
    """What an operator gives, on the device where torch would have it."""
    name = func.__name__.partition(".")[0]
    tensors: list[Tensor] = []
    tree_map(lambda x: tensors.append(x) if isinstance(x, Tensor) else None, (args, kwargs))
    away = [x for x in tensors if isinstance(x, Away)]
    asked = kwargs.get("device")
    here = asked is not None and torch.device(asked).type == "cpu"
    there = torch.device(asked).type == DEVICE.type if asked is not None else bool(away)
    if away:
        mask = name in ("index", "index_put", "index_put_") and any(
            x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]
        )
        copied = (name == "_to_copy" and here) or (name == "copy_" and not isinstance(args[0], Away))
        if name in WAITS or mask or copied:
            frames = [frame for frame in traceback.extract_stack() if "/fedsim/" in frame.filename]
            last = frames[-1] if frames else None
            where = "the test" if last is None else f"{last.filename.rpartition('/fedsim/')[2]}:{last.name}"
            waits.append(Wait(name, where))
        if not copied and name != "copy_" and any(x.ndim and not isinstance(x, Away) for x in tensors):
            raise AssertionError(f"{func} is given a tensor of the host beside one of the device")
    if there and asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    inner = tree_map(lambda x: x.values if isinstance(x, Away) else x, (args, kwargs))
    out = func(*inner[0], **inner[1])
    given = {id(x.values): x for x in away}  # what was written to in place stays the tensor that it was
    return tree_map(lambda x: given.get(id(x), Away(x) if there else x) if isinstance(x, Tensor) else x, out)
