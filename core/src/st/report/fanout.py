"""The fan-out of a run to trackers and listeners, which none of them can break or slow down."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from st.progress import Outcome
    from st.report.tracker import Picture, RunInfo, Tracker

T = TypeVar("T")

CAPACITY = 1000
"""Calls that may wait for a tracker before its oldest metrics are dropped."""


def attempt(call: Callable[[], T]) -> tuple[T | None, Exception | SystemExit | None]:
    """What a call into code that must not end a run returns, or what it raises."""
    try:
        return call(), None
    except (Exception, SystemExit) as error:  # trackers, listeners, validators and jobs may fail in any way
        return None, error


class Fanout:
    """Passes calls on to trackers, each on a thread of its own.

    No call waits. A tracker that raises is disabled and reported once through ``problem``; one that is slower than
    training loses its oldest metrics, which is said once and counted; one that hangs is left behind at the end.
    """

    def __init__(
        self, trackers: Mapping[str, Tracker], problem: Callable[[str], None], capacity: int = CAPACITY
    ) -> None:
        self._problem = problem
        self._lines = [_Line(f"tracker {name!r}", one, problem, capacity) for name, one in trackers.items()]

    def start(self, info: RunInfo) -> None:
        for line in self._lines:
            line.start()
            line.put(lambda tracker: tracker.start(info))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        metrics = dict(metrics)
        for line in self._lines:
            line.put(lambda tracker: tracker.log(step, metrics), droppable=True)

    def show(self, step: int, pictures: Sequence[Picture]) -> None:
        pictures = tuple(pictures)
        for line in self._lines:
            line.put(lambda tracker: tracker.show(step, pictures))

    def finish(self, outcome: Outcome, timeout_seconds: float) -> None:
        """Tell every tracker that the run is over and wait, all of them together, at most so long."""
        for line in self._lines:
            line.put(lambda tracker: tracker.finish(outcome))
            line.put(None)
        _join(self._lines, timeout_seconds, self._problem)


class Audience:
    """Passes events on to listeners, each on a thread of its own, under the same rules."""

    def __init__(self, problem: Callable[[str], None], capacity: int = CAPACITY) -> None:
        self._problem, self._capacity = problem, capacity
        self._lines: list[_Line[Callable[[Mapping[str, object]], object]]] = []

    def __bool__(self) -> bool:
        return bool(self._lines)

    def add(self, name: str, listener: Callable[[Mapping[str, object]], object]) -> None:
        line = _Line(f"listener {name!r}", listener, self._problem, self._capacity)
        line.start()
        self._lines = [*self._lines, line]

    def tell(self, event: Mapping[str, object], droppable: bool) -> None:
        for line in self._lines:
            line.put(lambda listener: listener(event), droppable)

    def finish(self, timeout_seconds: float) -> None:
        """Wait until all have heard everything, at most so long."""
        for line in self._lines:
            line.put(None)
        _join(self._lines, timeout_seconds, self._problem)


def _join(lines: Sequence[_Line[T]], timeout_seconds: float, problem: Callable[[str], None]) -> None:
    deadline = monotonic() + timeout_seconds
    for line in lines:
        line.join(max(0.0, deadline - monotonic()))
        if line.is_alive():
            line.forsake()
            problem(f"{line.name} was not done {timeout_seconds:g} seconds after the run; left behind")
        if line.dropped:
            problem(f"{line.name} missed {line.dropped} metrics; the event log has them")


class _Line(threading.Thread, Generic[T]):
    """One subject's thread and the calls that wait for it. A daemon: one that hangs does not keep the process."""

    def __init__(self, name: str, subject: T, problem: Callable[[str], None], capacity: int) -> None:
        super().__init__(name=name, daemon=True)
        self.dropped = 0
        self._subject, self._problem, self._capacity = subject, problem, capacity
        self._calls: deque[tuple[Callable[[T], object] | None, bool]] = deque()
        self._changed = threading.Condition()
        self._disabled = self._forsaken = False

    def put(self, call: Callable[[T], object] | None, droppable: bool = False) -> None:
        """Queue a call, or None to end the thread. Never waits for the subject."""
        with self._changed:
            if self._disabled:
                return
            full = droppable and len(self._calls) >= self._capacity and self._drop_oldest()
            self._calls.append((call, droppable))
            self._changed.notify()
        if full and self.dropped == 1:
            self._problem(f"{self.name} is slower than training: its oldest metrics are dropped")

    def forsake(self) -> None:
        """Hear nothing of it any more: whoever would be told may be gone when it fails after all."""
        with self._changed:
            self._forsaken = True

    def run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: len(self._calls) > 0)
                call, _ = self._calls.popleft()
            if call is None:
                return
            _, error = attempt(partial(call, self._subject))
            if error is not None:
                with self._changed:
                    self._disabled, forsaken = True, self._forsaken
                    self._calls.clear()
                if not forsaken:
                    self._problem(f"{self.name} is off from here: {type(error).__name__}: {error}")
                return

    def _drop_oldest(self) -> bool:
        for place, (_, droppable) in enumerate(self._calls):
            if droppable:
                del self._calls[place]
                self.dropped += 1
                return True
        return False
