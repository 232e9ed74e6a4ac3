"""Report: everything that is said about a run, to its event log, the terminal, the trackers and ``report.html``."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from time import monotonic, time
from typing import TYPE_CHECKING

from pydantic import Field

from st.errors import OutputUnwritable, RunFailed
from st.options import Options
from st.report.console import Console, ConsoleKind, NoConsole, open_console
from st.report.fanout import Audience, Fanout, attempt
from st.report.log.events import FILE, EventLog
from st.report.readings import Readings, Spoiled
from st.report.slowdown import SlowDown

if TYPE_CHECKING:
    from st.progress import Outcome, Progress
    from st.report.page.page_samples import Thumbnails
    from st.report.readings import Mean
    from st.report.stats import StepStats
    from st.report.tracker import Picture, RunInfo, Tracker

KEYS_LOGGED = 1000
"""Dropped samples whose keys are logged, per data set and reason; further ones are counted."""

QUIET = frozenset({"caption", "checkpoint_removed"})
"""Kinds of notes that are for the page and the log, not for the terminal."""


class ReportOptions(Options):
    """What is shown of a run, and how often."""

    every: int = Field(default=10, ge=1)
    """Steps between two readings of losses from the device. Reading stops the device, so smaller is slower."""
    console: ConsoleKind = "auto"
    """Live progress on a terminal and plain lines elsewhere (auto), always plain lines (plain), or nothing (off)."""
    line_seconds: float = Field(default=30.0, gt=0)
    """Seconds between two plain lines of progress."""
    tracker_seconds: float = Field(default=30.0, ge=0)
    """Seconds that trackers get to finish after the run; one that hangs is then left behind."""


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


class Report:
    """Everything that is said about a run. Thread-safe; on rank 0 it writes, on the others it only watches the loss.

    Losses are means over microbatches and, with ``mean``, over ranks. In the order of a run: ``open``,
    then notes and stages, ``start``, ``step`` after each one, ``finish``.
    """

    def __init__(
        self, options: ReportOptions, log: EventLog | None, console: Console, mean: Mean | None = None
    ) -> None:
        self.options = options
        self._log, self._console = log, console
        self._fanout = Fanout({}, self.warn)
        self._audience = Audience(self.warn)
        self.advanced = 0
        """Pieces of work that stages have done so far."""
        self._info: RunInfo | None = None
        self._mean = mean
        self._readings = Readings(mean=mean)
        self._slow_down = SlowDown()
        self._step = 0
        self._failure: RunFailed | None = None
        self._checkpoints: dict[int, str] = {}
        self._dropped: Counter[tuple[str, str]] = Counter()
        self._clock = _LoopClock()
        self._lock, self._page_lock = threading.Lock(), threading.Lock()
        self._log_broken = False
        self._thumbnails: Thumbnails | None = None
        self._doing: Callable[[str], AbstractContextManager[object]] = nullcontext

    @classmethod
    def open(
        cls,
        info: RunInfo,
        options: ReportOptions,
        versions: Mapping[str, str],
        *,
        rank: int = 0,
        mean: Mean | None = None,
        doing: Callable[[str], AbstractContextManager[object]] = nullcontext,
    ) -> Report:
        """The report of a run that begins or goes on in ``info.directory``. Raises OutputUnwritable.

        versions: what the page lists, by name: st, torch, each active plugin. mean: over ranks, of a small tensor;
        every rank reports its steps then. doing: entered with the name of each stage.
        """
        if rank:
            report = cls(options, None, NoConsole(), mean)
            report._doing = doing
            return report
        console = open_console(options.console, options.line_seconds)
        report = cls(options, EventLog(info.directory / FILE), console, mean)
        report._doing = doing
        report._info = info
        report._write(
            "open", name=info.name, directory=str(info.directory), config=dict(info.config), versions=dict(versions)
        )
        return report

    @classmethod
    def silent(cls) -> Report:
        """A report that nobody sees, for tests and commands."""
        return cls(ReportOptions(), None, NoConsole())

    @property
    def failure(self) -> RunFailed | None:
        """Why training cannot go on, once a reading met a loss that is not finite; the loop raises it."""
        return self._failure

    def note(self, text: str, kind: str = "note", **facts: object) -> None:
        """Say one sentence, with what a program may want of it as facts.

        kind: ``note``, ``warning`` and ``error`` are listed on the page. ``checkpoint`` (step, directory) also rewrites
        the page. ``dataset`` (dataset, role, url, samples, buckets: samples by geometry) and ``caption`` (dataset, key,
        caption, tokens, read; not printed) fill the page's data section. Any other kind is printed, logged and listed.
        """
        self._write("note", kind=kind, text=text, **{"step": self._step, **facts})
        if kind not in QUIET:
            self._console.line(text, kind)
        if kind == "checkpoint":
            step, directory = facts.get("step"), facts.get("directory")
            if isinstance(step, int):
                with self._lock:
                    self._checkpoints[step] = str(directory)
            self.page()

    def warn(self, text: str) -> None:
        """Note something that may not be what was meant."""
        self.note(text, kind="warning")

    def listen(self, name: str, listener: Callable[[Mapping[str, object]], object]) -> None:
        """Have ``listener`` called with every event from here on, on a thread of its own, in their order; rank 0 only.

        An event is what the event log has, a mapping with ``time`` and ``event``: ``note`` (kind, text, facts; among
        the kinds are checkpoint, export and request), ``stage``, ``train``, ``step`` and ``metrics`` (numbers),
        ``pictures``, ``finish``; and, not in the log, ``progress`` (name, done, total) of the stage under way. A
        listener that raises is off from there, one that is slow misses numbers and progress; neither touches the run.
        name: what reports call it.
        """
        if self._log is not None:
            self._audience.add(name, listener)

    def dropped(self, dataset: str, key: str, reason: str) -> None:
        """Count a sample that is not used. ``reason`` up to its first colon is what samples are counted by."""
        group = (dataset, reason.partition(":")[0])
        with self._lock:
            self._dropped[group] += 1
            logged = self._dropped[group] <= KEYS_LOGGED
        if logged:
            self._write("dropped", dataset=dataset, key=key, reason=reason)

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Stage]:
        """Show the progress of ``total`` pieces of work: ``with report.stage("encoding latents", 480) as stage``."""
        stage = Stage(name, total, self._advanced)
        started = monotonic()
        with self.pause(name), self._doing(name):
            try:
                yield stage
            finally:
                seconds = monotonic() - started
                self._console.stage_over(name, stage.done, seconds)
                self._write(
                    "stage", step=self._step, name=name, total=total, done=stage.done, seconds=round(seconds, 3)
                )

    @contextmanager
    def pause(self, name: str) -> Iterator[None]:
        """Time that the loop spends on something else (``save``, ``validation``); kept out of seconds per step."""
        with self._clock.pause(name):
            yield

    def start(self, trackers: Mapping[str, Tracker], *, step: int, total: int, ranks: int = 1) -> None:
        """Training begins after ``step`` (0, or the restored checkpoint's) of ``total`` steps, on so many ranks."""
        self._readings = Readings(ranks, self._mean)
        self._step = step
        self._write_dropped()
        self._write("train", step=step, total=total, trackers=list(trackers))
        if self._info is not None:
            self._fanout = Fanout(trackers, self.warn)
            self._fanout.start(self._info)
            self._console.begin(step, total)
        self._clock.start()

    def step(self, progress: Progress, stats: StepStats) -> None:
        """An optimizer step was taken; ``progress`` counts it. Reads the device every ``[report] every`` steps only."""
        self._step = progress.step
        self._readings.add(progress, stats)
        self._console.advance(progress.step)
        if len(self._readings) >= self.options.every:
            self.read()

    def read(self, *, alone: bool = False) -> None:
        """Read the steps since the last reading now: before a checkpoint, so that no spoiled weights are saved.

        alone: without the other ranks, which may have ended.
        """
        if not len(self._readings):
            return
        count = len(self._readings)
        seconds, paused = self._clock.lap()
        reading = self._readings.read(seconds, alone=alone)
        self._write(
            "step", step=reading.step, steps=count, metrics=reading.metrics, losses=reading.losses, paused=paused
        )
        self._fanout.log(reading.step, reading.metrics)
        self._console.show(reading.step, reading.metrics)
        slow = self._slow_down.see(reading.metrics) if self._info is not None else None
        if slow is not None:
            self.warn(slow)
        if reading.spoiled is not None and self._failure is None:
            self._failure = self._failed(reading.spoiled)

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log further numbers of a step: evaluation losses, scores."""
        self._write("metrics", step=step, metrics=metrics)
        self._fanout.log(step, metrics)

    def pictures(self, step: int, pictures: Sequence[Picture]) -> None:
        """Show validation outputs; rewrites the page."""
        shown = [{"path": str(p.path), "prompt": p.prompt, "label": p.label} for p in pictures]
        self._write("pictures", step=step, pictures=shown)
        self._fanout.show(step, pictures)
        self.page()

    def page(self) -> Path | None:
        """Rewrite ``report.html`` from the event log; its path, or None where nothing is written."""
        if self._info is None:
            return None
        from st.report.page.page import write_page
        from st.report.page.page_samples import Thumbnails

        with self._page_lock:
            self._thumbnails = self._thumbnails or Thumbnails()
            page, error = attempt(partial(write_page, self._info.directory, self._thumbnails))
        if error is not None:
            self._console.line(f"report.html could not be written: {type(error).__name__}: {error}", "warning")
        return page

    def finish(self, outcome: Outcome, why: str = "") -> None:
        """The run is over: read what is left, let trackers finish, write the page. why: the error that ended it."""
        self.read(alone=True)
        self._write_dropped()
        self._fanout.finish(outcome, self.options.tracker_seconds)
        self._write("finish", step=self._step, outcome=outcome.value, why=why)
        self._audience.finish(self.options.tracker_seconds)
        self.page()
        self._console.close()
        if self._log is not None:
            self._log.close()

    def abandon(self, outcome: Outcome, why: str) -> None:
        """The process ends where it is: the last event, without waiting for anybody."""
        self._write("finish", step=self._step, outcome=outcome.value, why=why)

    def _advanced(self, stage: Stage) -> None:
        self.advanced += 1
        self._console.stage(stage.name, stage.shown, stage.total)
        now = monotonic()
        if self._audience and (now - stage.told >= PROGRESS_SECONDS or stage.done >= stage.total):
            stage.told = now
            facts = {"name": stage.name, "done": stage.done, "total": stage.total}
            self._audience.tell({"time": time(), "event": "progress", **facts}, droppable=True)

    def _write(self, event: str, **facts: object) -> None:
        if self._log is None:
            return
        try:
            written = self._log.write(event, **facts)
            self._audience.tell(written, droppable=event in ("step", "metrics"))
        except OutputUnwritable as error:
            if not self._log_broken:
                self._console.line(f"{error}; events are lost until it can", "error")
            self._log_broken = True

    def _write_dropped(self) -> None:
        with self._lock:
            counts = dict(self._dropped)
        for (dataset, reason), count in counts.items():
            self._write("dropped_total", dataset=dataset, reason=reason, count=count)

    def _failed(self, spoiled: Spoiled) -> RunFailed:
        keys = ", ".join(repr(key) for key in spoiled.keys)
        with self._lock:
            good = [step for step in self._checkpoints if step < spoiled.step]
        fix = f"the checkpoint of step {max(good)} is from before it" if good else "no checkpoint is from before it"
        return RunFailed(
            f"the loss of step {spoiled.step} is {spoiled.loss}",
            why=f"it was computed on {keys}",
            fix=f"{fix}; look at these samples, lower optimizer.lr, or set precision to 'bf16' or 'fp32'",
        )


class _LoopClock:
    """How long the loop took since the last lap, and how much of it was paused. Other threads' pauses do not count."""

    def __init__(self) -> None:
        self._thread = 0
        self._lap = monotonic()
        self._paused: dict[str, float] = {}
        self._depth = 0

    def start(self) -> None:
        self._thread = threading.get_ident()
        self._lap, self._paused = monotonic(), {}

    @contextmanager
    def pause(self, name: str) -> Iterator[None]:
        if threading.get_ident() != self._thread or self._depth:
            yield
            return
        started = monotonic()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            self._paused[name] = self._paused.get(name, 0.0) + monotonic() - started

    def lap(self) -> tuple[float, dict[str, float]]:
        """Seconds since the last lap without pauses, and the pauses by name."""
        now = monotonic()
        seconds, paused = now - self._lap, self._paused
        self._lap, self._paused = now, {}
        return max(0.0, seconds - sum(paused.values())), {name: round(spent, 4) for name, spent in paused.items()}
