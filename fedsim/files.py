"""Files that are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


class CannotWrite(OSError):
    """A file or folder that cannot be written, in one line."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Whatever goes wrong with the file system inside becomes one line that names the path."""
    try:
        yield
    except CannotWrite:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise CannotWrite(f"cannot write {path}: {reason}; make room or choose another folder with --out") from error


def write_atomically(path: Path, data: bytes | Iterable[bytes | memoryview]) -> None:
    """Replace a file as a whole, by bytes or parts of them: a crash or a full disk leaves what was there before."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            with open(beside, "wb") as file:
                file.writelines([data] if isinstance(data, bytes) else data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def flush_folder(path: Path) -> None:
    """What was renamed in a folder is so after a power cut as well, where the system can promise it."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Replace a text file as a whole."""
    write_atomically(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file as a whole; NaN and infinities become null."""
    write_text(path, json.dumps(_finite(content), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """The same with null for NaN and infinities, which JSON has no word for."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
