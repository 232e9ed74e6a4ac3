"""What a report shows while work is under way: the progress of a stage, and the page, written anew now and then."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from st.report.fanout import attempt

if TYPE_CHECKING:
    from pathlib import Path

    from st.report.console import Console
    from st.report.page.page import RunPage

PAGE_SECONDS, PAGE_SHARE = 20.0, 0.02
"""Seconds between two writings of the page beside a run, and how much of the run's time they may take."""
PROGRESS_SECONDS = 0.2
"""Between two events of the progress of one stage, to those who listen."""


class Stage:
    """A part of a run with a known amount of work, inside ``Report.stage``. Thread-safe. advanced: told of the work."""

    def __init__(self, name: str, total: int, advanced: Callable[[Stage], None]) -> None:
        self.name, self.total, self.done = name, total, 0
        self.shown: float = 0
        self.told = 0.0
        self._advanced, self._lock = advanced, threading.Lock()

    def advance(self, n: int = 1) -> None:
        with self._lock:
            self.done += n
            self.shown = max(self.shown, self.done)
        self._advanced(self)

    def at(self, done: float) -> None:
        """Show that so many pieces are done, a part of one included, before they are counted."""
        with self._lock:
            self.shown = max(self.shown, done)
        self._advanced(self)


class Pages:
    """``report.html`` of one run: when it is written, and that a failure to write it ends nothing. Thread-safe."""

    def __init__(self, directory: Path, console: Console) -> None:
        self._directory, self._console = directory, console
        self._lock = threading.Lock()
        self._page: RunPage | None = None
        self._after = 0.0
        self._due, self._every = monotonic(), PAGE_SECONDS

    @property
    def may(self) -> bool:
        """Whether writing it takes no more than its share of the time, as far as the last one told."""
        return monotonic() >= self._after

    @property
    def due(self) -> bool:
        """Whether it is time to write it for those who look at a run."""
        return monotonic() >= self._due

    def write(self) -> Path | None:
        """Write the page from the event log; its path, or None where that failed, which the console says."""
        from st.report.page.page import RunPage

        with self._lock:
            self._page = self._page or RunPage(self._directory)
            started = monotonic()
            page, error = attempt(partial(self._page.write, self._every))
            ended = monotonic()
            spare = (ended - started) / PAGE_SHARE
            self._after, self._every = ended + spare, max(PAGE_SECONDS, spare)
            self._due = ended + self._every
        if error is not None:
            self._console.line(f"report.html could not be written: {type(error).__name__}: {error}", "warning")
        return page
