"""Checkpoints: a strategy's state, the round and where a run stands, in one safetensors file; never pickle.

The tensors are the file's tensors; everything else is JSON in its header, so that a checkpoint is one file that is
either there whole or not there. A state is a NamedTuple of tensors, `Rows`, numbers, text, None, and more of the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FORMAT = 1


def save_checkpoint(path: str | Path, state: Any, t: int, meta: dict[str, Any] | None = None) -> None:
    """Write a state as it stands after t rounds. `meta` is anything JSON holds: seed, label, schedule digest, ...

    Atomic: a crash leaves the file that was there before. Raises OSError with one line when it cannot be written.
    """
    from fedsim.files import write_atomically
    from fedsim.tensors import written

    tensors: dict[str, Tensor] = {}
    structure = take_apart(state, "state", tensors)
    content = {"format": FORMAT, "t": t, "meta": meta or {}, "structure": structure}
    header = json.dumps(content | {"digest": _digest(content, tensors)})
    write_atomically(Path(path), written(tensors, {"fedsim": header}))


def load_checkpoint(path: str | Path, like: Any) -> tuple[Any, int, dict[str, Any]]:
    """(state, t, meta) of a checkpoint. `like` is a fresh state of the same strategy and task, strategy.init(x, p):
    it gives the types and the devices, and the file is checked against it.

    Raises FileNotFoundError, and ValueError where the file is no checkpoint or of another strategy, model or precision.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get("fedsim")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a checkpoint, or is damaged: {error}") from error
    if header is None:
        raise ValueError(f"{path} is a safetensors file but not a checkpoint of fedsim")
    try:
        content = json.loads(header)
        known, written = content["format"] == FORMAT, content.pop("digest", None)
        if known and written is not None and written != _digest(content, tensors):  # those of fedsim 0.1 have none
            raise ValueError("its contents are not those that were written")
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error or 'its header cannot be read'}") from error
    if not known:
        raise ValueError(f"{path} has checkpoint format {content['format']}, this fedsim reads {FORMAT}")
    try:
        state = taken_together(content["structure"], like, tensors.__getitem__)
    except ValueError as difference:
        raise ValueError(f"{path} does not fit: {difference}; it was saved from another experiment") from None
    return state, content["t"], content["meta"]


def _digest(content: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256 of all that a checkpoint says, so that no bit of it changes unnoticed."""
    from fedsim.tensors import pieces

    hashed = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name in sorted(tensors):
        hashed.update(f"{name} {_show(tensors[name])}".encode())
        for piece in pieces(tensors[name]):
            hashed.update(piece)
    return hashed.hexdigest()


def taken_together(structure: Any, like: Any, tensor: Callable[[str], Tensor]) -> Any:
    """What `take_apart` took apart, in the types and on the device of a fresh state, with its tensors by name. Raises
    ValueError, saying where, for what is not of the same strategy, model and precision."""
    try:
        return _put_together(structure, like, "state", tensor, _device(like))
    except _Differs as difference:
        raise ValueError(str(difference)) from None


class _Differs(Exception):
    """What the file holds is not what the fresh state has."""


def _is_namedtuple(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields")


def _is_table(value: Any) -> bool:
    """Whether a value keeps its memory as named tensors: `Rows`."""
    return hasattr(value, "tensors") and hasattr(value, "restored")


def take_apart(value: Any, at: str, tensors: dict[str, Tensor]) -> Any:
    """The structure of a state as JSON holds it; its tensors themselves go into `tensors`, named by where they are, and
    are to be written before the state is played on. Raises ValueError for what a state cannot hold."""
    import torch

    if isinstance(value, torch.Tensor):
        tensors[at] = value.detach()
        return {"tensor": at}
    if _is_table(value):
        parts = value.tensors()
        return {"table": {name: take_apart(part, f"{at}.{name}", tensors) for name, part in parts.items()}}
    if _is_namedtuple(value):
        fields = zip(value._fields, value, strict=True)
        return {"tuple": {name: take_apart(item, f"{at}.{name}", tensors) for name, item in fields}}
    if isinstance(value, (list, tuple)):
        return {"list": [take_apart(item, f"{at}.{i}", tensors) for i, item in enumerate(value)]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: take_apart(item, f"{at}.{key}", tensors) for key, item in value.items()}}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise ValueError(f"{at} is a {type(value).__name__}: a state holds tensors, Rows, numbers, text and tuples of them")


def _put_together(structure: Any, like: Any, at: str, named: Callable[[str], Tensor], device: torch.device) -> Any:
    """The inverse of `take_apart`, in the types of `like`. What is None in either may be a tensor in the other:
    some memory appears only when it is first needed."""
    import torch

    (kind, content), *_ = structure.items()
    if kind == "tensor":
        tensor = named(content).to(device)
        if isinstance(like, torch.Tensor) and (tensor.shape, tensor.dtype) != (like.shape, like.dtype):
            raise _Differs(f"{at} is {_show(tensor)}, here {_show(like)}")
        if like is not None and not isinstance(like, torch.Tensor):
            raise _Differs(f"{at} is a tensor, here a {type(like).__name__}")
        return tensor
    if kind == "value":
        if content is not None and like is not None and type(content) is not type(like):
            raise _Differs(f"{at} is a {type(content).__name__}, here a {type(like).__name__}")
        return content
    if kind == "table" and _is_table(like):
        now = like.tensors()
        _same(content, now, at)
        loaded = {name: named(part["tensor"]) for name, part in content.items()}
        for name, tensor in loaded.items():
            # rows are stored for the clients that have appeared, so of a table of rows only the row has to agree
            rows = tensor.ndim > 1 and tensor.shape[1:] == now[name].shape[1:]
            if tensor.dtype != now[name].dtype or not (rows or tensor.shape == now[name].shape):
                raise _Differs(f"{at}.{name} is {_show(tensor)}, here {_show(now[name])}")
        return like.restored(loaded)
    if kind == "tuple" and _is_namedtuple(like):
        _same(content, like._fields, at)
        items = {n: _put_together(s, getattr(like, n), f"{at}.{n}", named, device) for n, s in content.items()}
        return type(like)(**items)
    if kind == "dict" and isinstance(like, dict):
        _same(content, like, at)
        return {k: _put_together(s, like[k], f"{at}.{k}", named, device) for k, s in content.items()}
    if kind == "list" and isinstance(like, (list, tuple)) and not _is_namedtuple(like) and len(content) == len(like):
        pairs = enumerate(zip(content, like, strict=True))
        return type(like)(_put_together(s, item, f"{at}.{i}", named, device) for i, (s, item) in pairs)
    raise _Differs(f"{at} is a {kind}, here a {type(like).__name__}")


def _same(stored: Any, here: Any, at: str) -> None:
    if list(stored) != list(here):
        raise _Differs(f"{at} has the fields {', '.join(stored)}, here {', '.join(here)}")


def _show(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _device(like: Any) -> torch.device:
    """The device of the state: that of x."""
    import torch

    x = getattr(like, "x", None)
    return x.device if isinstance(x, torch.Tensor) else torch.device("cpu")
