"""Ctrl-C and SIGTERM: the first is waited for until what is under way can be saved, the second ends it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(BaseException):
    """SIGTERM, which ends a command as Ctrl-C does."""


class Interrupts:
    """While the block runs, signals to end it. `asked` is what to raise once all is saved. Use as a context manager;
    in another thread than the first, and where the shell has a signal ignored, it changes nothing."""

    def __init__(self, tell: Callable[[], None]) -> None:
        """`tell` is called when the first has come and is being waited for."""
        self.asked: type[BaseException] | None = None
        self.patient = False  # whether there is something to wait for
        self._tell = tell
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._come)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _come(self, number: int, frame: FrameType | None) -> None:
        kind = Terminated if number == signal.SIGTERM else KeyboardInterrupt
        if self.asked is not None or not self.patient:
            raise kind
        self.asked = kind
        self._tell()
