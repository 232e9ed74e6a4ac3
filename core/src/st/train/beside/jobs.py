"""Jobs: work beside the loop, such as uploads, which can neither stop nor end a run."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from st.report.fanout import attempt

ATTEMPTS = 3
RETRY_SECONDS = 2.0
"""Before the second attempt; twice as long before each further one."""
DRAIN_SECONDS = 60.0
CAPACITY = 100
"""Jobs of one lane that may wait."""


@dataclass(slots=True, eq=False)
class _Job:
    name: str
    function: Callable[[], object]
    attempts: int
    drain_seconds: float
    done: threading.Event = field(default_factory=threading.Event)


class Jobs:
    """Calls functions on threads of its own, one after another in each lane. Thread-safe.

    A job that raises is tried again, and reported by name with its error when it has failed for good. problem: told of
    everything that goes wrong.
    """

    def __init__(self, problem: Callable[[str], None], retry_seconds: float = RETRY_SECONDS) -> None:
        self._problem, self._retry_seconds = problem, retry_seconds
        self._lock = threading.Lock()
        self._lanes: dict[str, _Lane] = {}

    def submit(
        self,
        name: str,
        function: Callable[[], object],
        *,
        drain_seconds: float = DRAIN_SECONDS,
        attempts: int = ATTEMPTS,
        lane: str = "",
    ) -> None:
        """Call ``function`` soon, on another thread; returns at once.

        name: what reports call it ("upload of step 500"). drain_seconds: how long the end of the run waits for it.
        attempts: calls before it has failed. lane: jobs of one lane keep their order and wait for each other; lanes do
        not. The function must not touch the device or weights, which train meanwhile; what it reads may be pruned.
        """
        job = _Job(name, function, attempts, drain_seconds)
        with self._lock:
            if lane not in self._lanes:
                self._lanes[lane] = _Lane(lane, self._problem, self._retry_seconds)
                self._lanes[lane].start()
            taken = self._lanes[lane].put(job)
        if not taken:
            self._problem(f"{name} was not begun: {CAPACITY} others wait for the one before them")

    def drain(self) -> None:
        """Wait for every job, each at most as long as it may take after the run; name those that are left behind."""
        started = time.monotonic()
        with self._lock:
            lanes = list(self._lanes.values())
        for job in [job for lane in lanes for job in lane.unfinished()]:
            if not job.done.wait(max(started + job.drain_seconds - time.monotonic(), 0.0)):
                self._problem(f"{job.name} was not done {job.drain_seconds:g} seconds after the run; left behind")
        for lane in lanes:
            lane.close()


class _Lane(threading.Thread):
    """One thread and the jobs that wait for it. A daemon: a job that hangs does not keep the process."""

    def __init__(self, name: str, problem: Callable[[str], None], retry_seconds: float) -> None:
        super().__init__(name=f"jobs {name}".rstrip(), daemon=True)
        self._problem, self._retry_seconds = problem, retry_seconds
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, job: _Job) -> bool:
        """Queue a job; False where too many wait."""
        with self._changed:
            if len(self._jobs) >= CAPACITY:
                return False
            self._jobs.append(job)
            self._changed.notify_all()
        return True

    def unfinished(self) -> list[_Job]:
        """The job under way and those that wait."""
        with self._changed:
            return list(self._jobs)

    def close(self) -> None:
        """Begin nothing more, and say nothing more: nobody listens."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._jobs)
                if self._closed:
                    return
                job = self._jobs[0]
            self._try(job)
            with self._changed:
                self._jobs.popleft()
            job.done.set()

    def _try(self, job: _Job) -> None:
        for number in range(1, job.attempts + 1):
            _, error = attempt(job.function)
            if error is None or self._closed:
                return
            said = f"{job.name} failed: {type(error).__name__}: {error}"
            if number == job.attempts:
                self._problem(said if number == 1 else f"{said}; given up after {number} attempts")
                return
            wait = self._retry_seconds * 2 ** (number - 1)
            self._problem(f"{said}; tried again in {wait:g} s")
            with self._changed:
                self._changed.wait_for(lambda: self._closed, timeout=wait)
