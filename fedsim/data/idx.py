"""IDX files, the format of MNIST and its successors: a header of sizes, then the bytes.

Two zero bytes, the type (8: uint8), the number of dimensions, one big-endian uint32 for each, then the data. Read
gzipped or plain, whichever the content says.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsim.guarded import unpacked

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def read(path: Path) -> NDArray[np.uint8]:
    """The array in an IDX file. Raises ValueError, one line, when it is damaged or something else."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    if content[:2] == b"\x1f\x8b":
        try:
            content = unpacked(content)
        except ValueError as error:
            raise ValueError(f"{path} is damaged: gzip says {error}; fetch it again") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[3] == 0:
        raise ValueError(
            f"{path} is not an IDX file: it begins with {content[:4].hex(' ') or 'nothing'}; fetch it again"
        )
    if content[2] != 8:
        raise ValueError(f"{path} holds IDX type 0x{content[2]:02x}; only unsigned bytes (0x08) are read")
    begin = 4 + 4 * content[3]
    if len(content) < begin:
        raise ValueError(f"{path} is truncated: it ends within its header; fetch it again")
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, begin, 4))
    if len(content) - begin != math.prod(shape):
        what = "is truncated" if len(content) - begin < math.prod(shape) else "has bytes left over"
        raise ValueError(
            f"{path} {what}: its header promises {math.prod(shape)} bytes {list(shape)}, it has {len(content) - begin};"
            " fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=begin).reshape(shape)


def find(folder: Path) -> dict[str, Path]:
    """Those of the four files that are in the folder: {name: path}; plain before gzipped, `-idx` before `.idx`."""
    found = {}
    for name in FILES:
        for spelling in (name, name.replace("-idx", ".idx")):
            for candidate in (folder / spelling, folder / f"{spelling}.gz"):
                if name not in found and candidate.is_file():
                    found[name] = candidate
    return found


def pair(images: Path, labels: Path, side: int, classes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images [N, 1, side, side] and labels [N] that belong together, checked against each other."""
    x, y = read(images), read(labels)
    if x.ndim != 3 or x.shape[1:] != (side, side):
        raise ValueError(f"{images} holds an array {list(x.shape)}; images [N, {side}, {side}] were expected")
    if y.ndim != 1:
        raise ValueError(f"{labels} holds an array {list(y.shape)}; labels [N] were expected")
    if len(x) != len(y):
        raise ValueError(
            f"{images} has {len(x)} images but {labels.name} has {len(y)} labels; they do not belong together"
        )
    if len(x) == 0:
        raise ValueError(f"{images} has no images")
    if y.max() >= classes:
        raise ValueError(f"{labels} holds the label {y.max()} at {int(y.argmax())}; labels are 0 to {classes - 1}")
    return x[:, None].copy(), y.astype(np.int64)
