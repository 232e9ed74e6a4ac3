"""Being told to stop: the first Ctrl-C or SIGTERM ends the loop after the step, the second ends the process."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import FrameType, TracebackType

EXIT_STATUS = 4
ECHO_SECONDS = 2.0
"""A launcher may pass on a signal that the terminal has sent to every process already; so soon, it is the same one."""


class Stop:
    """Listens for SIGINT and SIGTERM inside a ``with``; off the main thread it only holds the flag.

    grace_seconds: a process that has not ended so long after the first signal ends at once, with the checkpoints it
    has.
    """

    def __init__(self, grace_seconds: float) -> None:
        self.grace_seconds = grace_seconds
        self.requested = False
        self.reason = ""
        self._previous: dict[int, object] = {}
        self._timer: threading.Timer | None = None
        self._first = 0.0

    def request(self, reason: str) -> None:
        """Ask the loop to end after the step it is in."""
        self.requested, self.reason = True, reason

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._caught)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _caught(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        now = time.monotonic()
        if self.requested and now - self._first < ECHO_SECONDS:
            return
        if self.requested:
            sys.stderr.write(f"{name} again: ending now, without saving\n")
            os._exit(EXIT_STATUS)
        self._first = now
        self.request(name)
        sys.stderr.write(f"{name}: saving after this step; once more ends at once\n")
        self._timer = threading.Timer(self.grace_seconds, _out_of_time, (self.grace_seconds,))
        self._timer.daemon = True
        self._timer.start()


def _out_of_time(grace_seconds: float) -> None:
    sys.stderr.write(
        f"not saved within checkpoint.grace_seconds = {grace_seconds:g}: ending with the last checkpoint\n"
    )
    os._exit(EXIT_STATUS)
