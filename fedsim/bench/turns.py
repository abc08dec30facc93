"""Processes that take turns: each plays a round when told to, so that other work on the machine meets all alike."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CHILD = Path(__file__).parent / "drivers" / "child.py"


class Gone(RuntimeError):
    """A contender that does not answer any more, and what it said last."""


class Player:
    """A contender in a process of its own, and in a process group of its own, so that what it starts ends with it."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], patience: float = 600.0) -> None:
        self.patience = patience
        self.began = time.perf_counter()
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (`close` does)
        self._process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            env=dict(environment), start_new_session=True,
        )  # fmt: skip
        self._said: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._said.put(line)
        self._said.put(None)

    def answer(self) -> dict[str, Any]:
        """The next one. Raises Gone, with the end of what it said, if it ended or is silent for `patience` seconds."""
        try:
            line = self._said.get(timeout=self.patience)
        except queue.Empty:
            raise Gone(f"no answer in {self.patience:g} s") from None
        if line is None:
            self._said.put(None)  # it stays gone
            code = self._process.wait()
            self._log.seek(0)
            said = [text.strip() for text in self._log.read().splitlines() if text.strip()] or ["it said nothing"]
            raise Gone(f"exit {code}: {_telling(said)}")
        found: dict[str, Any] = json.loads(line)
        return found

    def tell(self, order: str) -> dict[str, Any]:
        """Has it do something."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # gone: `answer` says so
            self._process.stdin.write(order + "\n")
            self._process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """Ends it and all that it started."""
        with contextlib.suppress(subprocess.TimeoutExpired, BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(timeout=10 if self._process.poll() is None else 0)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(timeout=5)
        assert self._process.stdout is not None
        if not self._reader.is_alive():  # else something has left the group and holds on to it
            self._process.stdout.close()
        self._log.close()


def _telling(said: Sequence[str]) -> str:
    """The line that says most about an end: the last that names an error, else the last."""
    errors = [line for line in said if "Error" in line.partition(":")[0].rpartition(".")[2]]
    return (errors or list(said))[-1][:300]
