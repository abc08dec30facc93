"""Tensors as a safetensors file, a piece at a time: to write down a state takes no second state's memory.

safetensors' own writers want all tensors in host memory at once, none of them sharing memory with another, and some of
its versions copy them all. A run writes its state every minute, and memory once taken stays taken
(`fedsim.engine.heap`): it would grow by twice what its tables do.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

PIECE = 2**24  # bytes that are on their way at a time
KINDS = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}  # fmt: skip  what the format calls them


def written(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file with these tensors, one part after the other. Raises ValueError, before the
    first, for numbers of a kind that a file cannot hold."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # so that all are aligned
    end = 0
    for name in order:
        tensor, begin = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        header[name] = {"dtype": kind(tensor, name), "shape": list(tensor.shape), "data_offsets": [begin, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    yield len(head).to_bytes(8, "little") + head
    for name in order:
        yield from pieces(tensors[name])


def kind(tensor: Tensor, name: str) -> str:
    """What safetensors calls the numbers of a tensor."""
    found = KINDS.get(str(tensor.dtype).removeprefix("torch."))
    if found is None:
        raise ValueError(f"{name} is of {tensor.dtype}, which a checkpoint does not hold")
    return found


def pieces(tensor: Tensor) -> Iterator[memoryview]:
    """A tensor's bytes, row after row, in parts of about PIECE (or a row, if that is more): of one that lies elsewhere
    than in host memory, or in another order, no more than that is copied."""
    import torch

    if not tensor.numel():
        return
    flat, lies = tensor.detach(), tensor.is_contiguous()
    if lies:
        flat = flat.as_strided((flat.numel(),), (1,))
    rows = max(1, PIECE * len(flat) // (flat.numel() * flat.element_size()))
    for part in flat.split(rows):
        part = part.cpu() if lies else part.cpu().clone(memory_format=torch.contiguous_format).reshape(-1)
        yield part.view(torch.uint8).numpy().data


def hashed(parts: Iterable[bytes | memoryview], into: Any) -> Iterator[bytes | memoryview]:
    """The same parts, each also given to a hash as it passes."""
    for part in parts:
        into.update(part)
        yield part
