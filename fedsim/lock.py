"""One process at a time in a run folder. A process that ends, however it ends, holds nothing any more."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
from pathlib import Path

from fedsim.files import writing

FILE = ".lock"


class Taken(OSError):
    """Somebody else is at work in a folder."""


class Lock:
    """A folder that is one's own until `release`. The system holds the lock, not the file: one that a killed process
    left behind keeps nobody out. Where a file system knows no locks there is none."""

    def __init__(self, folder: Path) -> None:
        """Takes the folder, which must be there. Raises `Taken` where another process has it, OSError where nothing can
        be written."""
        self._path = folder / FILE
        while True:
            with writing(self._path):
                self._file: io.FileIO = open(self._path, "ab+", buffering=0)  # noqa: SIM115  closed in `release`
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._file.seek(0)
                pid = self._file.read().decode(errors="replace").strip()
                self._file.close()
                who = f"process {pid}" if pid.isdigit() else "another process"
                raise Taken(f"{who} is at work in {folder}; wait until it is over, or end it") from None
            except OSError:
                break
            if self._is_there():
                break
            self._file.close()  # whoever had it took the file away between our opening and our taking it
        with contextlib.suppress(OSError):
            self._file.truncate(0)
            self._file.write(f"{os.getpid()}\n".encode())

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._path))
        except OSError:
            return False

    def release(self) -> None:
        """The folder is anybody's, and shows nothing of the lock."""
        if self._file.closed:
            return
        with contextlib.suppress(OSError):
            if self._is_there():
                self._path.unlink()
        self._file.close()
