"""Files that somebody else wrote, read within bounds: nothing unpacks to much more than it is, no header is believed.

An archive may unpack to `ROOM` bytes, or to `TIMES` its own size where that is more. Real data stay far below; a bomb,
which is a few kilobytes that unpack to gigabytes, is refused before its bytes are made.
"""

from __future__ import annotations

import gzip
import io
import lzma
import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

ROOM = 2**28
TIMES = 200


def room(size: int) -> int:
    """How many bytes a file of that size may unpack to."""
    return max(ROOM, TIMES * size)


def unpacked(content: bytes) -> bytes:
    """What a gzip (.gz) or LZMA (.xz) file holds. Raises ValueError, one line, for damage and for bombs."""
    opened = gzip.open if content[:2] == b"\x1f\x8b" else lzma.open
    most = room(len(content))
    try:
        with opened(io.BytesIO(content)) as stream:
            found: bytes = stream.read(most + 1)
    except (EOFError, OSError, lzma.LZMAError, ValueError, ArithmeticError) as error:
        raise ValueError(" ".join(str(error).split()) or "it ends too early") from error
    except Exception as error:  # zlib's own error is no class of Python's
        raise ValueError(" ".join(str(error).split())) from error
    if len(found) > most:
        raise ValueError(f"its {len(content)} bytes unpack to more than {most}, as no data set does")
    return found


def arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a .npz by name, or that of a .npy under the name "". Nothing is unpickled.

    Raises ValueError, one line, for damage, for objects, and for more than the file can hold; OSError.
    """
    with open(path, "rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        zipped = file.read(2) == b"PK"
        file.seek(0)
        try:
            return _members(file, size) if zipped else {"": _array(file, size)}
        except ValueError:
            raise
        except Exception as error:  # zipfile and numpy let through whatever damage makes them stumble
            raise ValueError(" ".join(f"it is damaged ({type(error).__name__}: {error})".split())) from error


def _members(file: IO[bytes], size: int) -> dict[str, NDArray[Any]]:
    found = {}
    with zipfile.ZipFile(file) as archive:
        total = sum(member.file_size for member in archive.infolist())
        if total > room(size):
            raise ValueError(f"its {size} bytes unpack to {total}, as no recorded presence does")
        for member in archive.infolist():
            with archive.open(member) as stream:
                found[member.filename.removesuffix(".npy")] = _array(stream, member.file_size)
    return found


def _array(stream: IO[bytes], size: int) -> NDArray[Any]:
    """The array in a stream of `size` bytes in numpy's format."""
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its format is version {version[0]}.{version[1]}, which plain numbers do not need")
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, kind = header(stream)
    if kind.hasobject or kind.fields is not None or not kind.itemsize:
        raise ValueError(f"it holds {kind}, which are no plain numbers")
    wanted, there = math.prod(shape) * kind.itemsize, size - stream.tell()
    if any(length < 0 for length in shape) or wanted != there:
        raise ValueError(f"its header promises {wanted} bytes {list(shape)}, it has {there}")
    content = stream.read()
    if len(content) != wanted:
        raise ValueError(f"it has {len(content)} bytes of the {wanted} that its header promises")
    return np.frombuffer(content, kind).reshape(shape, order="F" if fortran else "C")
