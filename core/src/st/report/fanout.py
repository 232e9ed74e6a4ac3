"""The fan-out of a run to trackers, which none of them can break or slow down."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from st.progress import Outcome
    from st.report.tracker import Picture, RunInfo, Tracker

CAPACITY = 1000
"""Calls that may wait for a tracker before its oldest metrics are dropped."""


class Fanout:
    """Passes calls on to trackers, each on a thread of its own.

    No call waits. A tracker that raises is disabled and reported once through ``problem``; one that is slower than
    training loses its oldest metrics, which is said once and counted; one that hangs is left behind at the end.
    """

    def __init__(
        self, trackers: Mapping[str, Tracker], problem: Callable[[str], None], capacity: int = CAPACITY
    ) -> None:
        self._problem = problem
        self._lines = [_Line(name, tracker, problem, capacity) for name, tracker in trackers.items()]

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
        deadline = monotonic() + timeout_seconds
        for line in self._lines:
            line.join(max(0.0, deadline - monotonic()))
            if line.is_alive():
                line.forsake()
                self._problem(
                    f"tracker {line.tracker_name!r} was not done {timeout_seconds:g} seconds after the run; left behind"
                )
            if line.dropped:
                self._problem(f"tracker {line.tracker_name!r} missed {line.dropped} metrics; the event log has them")


class _Line(threading.Thread):
    """One tracker's thread and the calls that wait for it. A daemon: a tracker that hangs does not keep the process."""

    def __init__(self, name: str, tracker: Tracker, problem: Callable[[str], None], capacity: int) -> None:
        super().__init__(name=f"tracker {name}", daemon=True)
        self.tracker_name, self.dropped = name, 0
        self._tracker, self._problem, self._capacity = tracker, problem, capacity
        self._calls: deque[tuple[Callable[[Tracker], None] | None, bool]] = deque()
        self._changed = threading.Condition()
        self._disabled = self._forsaken = False

    def put(self, call: Callable[[Tracker], None] | None, droppable: bool = False) -> None:
        """Queue a call, or None to end the thread. Never waits for the tracker."""
        with self._changed:
            if self._disabled:
                return
            full = droppable and len(self._calls) >= self._capacity and self._drop_oldest()
            self._calls.append((call, droppable))
            self._changed.notify()
        if full and self.dropped == 1:
            self._problem(f"tracker {self.tracker_name!r} is slower than training: its oldest metrics are dropped")

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
            try:
                call(self._tracker)
            except (Exception, SystemExit) as error:  # a tracker may fail in any way; none may end the run
                with self._changed:
                    self._disabled, forsaken = True, self._forsaken
                    self._calls.clear()
                if forsaken:
                    return
                self._problem(f"tracker {self.tracker_name!r} is off from here: {type(error).__name__}: {error}")
                return

    def _drop_oldest(self) -> bool:
        for place, (_, droppable) in enumerate(self._calls):
            if droppable:
                del self._calls[place]
                self.dropped += 1
                return True
        return False
