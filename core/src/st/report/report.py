"""Report: everything that is said about a run, to its event log, the terminal, the trackers and ``report.html``."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from time import monotonic, time
from typing import TYPE_CHECKING

from pydantic import Field

from st.errors import OutputUnwritable, RunFailed
from st.options import Options
from st.redaction import PLAIN, Redaction
from st.report.console import Console, ConsoleKind, NoConsole, open_console
from st.report.fanout import Audience, Fanout
from st.report.log.duration import duration
from st.report.log.events import FILE, EventLog
from st.report.pages import PROGRESS_SECONDS, Pages, Stage
from st.report.readings import Readings, Spoiled
from st.report.slowdown import SlowDown
from st.report.stillness import FIRST_STEPS, Stillness

if TYPE_CHECKING:
    from st.progress import Outcome, Progress
    from st.report.readings import Mean
    from st.report.stats import StepStats
    from st.report.stillness import Reason
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
        self._stillness = Stillness(_no_reason)
        self._due = 0
        self._step = 0
        self._spoiled: Spoiled | None = None
        self._checkpoints: set[int] = set()
        self._skipped = 0
        self._dropped: Counter[tuple[str, str]] = Counter()
        self._clock = _LoopClock()
        self._lock = threading.Lock()
        self._opened = monotonic()
        self._pages: Pages | None = None
        self._log_broken = False
        self._redaction = PLAIN
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
        redaction: Redaction = PLAIN,
    ) -> Report:
        """The report of a run that begins or goes on in ``info.directory``. Raises OutputUnwritable.

        versions: what the page lists, by name: st, torch, each active plugin. mean: over ranks, of a small tensor;
        every rank reports its steps then. doing: entered with the name of each stage. redaction: of all that is
        written, printed and shown.
        """
        if rank:
            report = cls(options, None, NoConsole(), mean)
            report._doing, report._redaction = doing, redaction
            return report
        console = open_console(options.console, options.line_seconds)
        report = cls(options, EventLog(info.directory / FILE), console, mean)
        report._doing, report._redaction = doing, redaction
        report._info, report._pages = info, Pages(info.directory, console)
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
        """Why training cannot go on, once a reading met a loss or a gradient that is not finite; the loop raises it.

        It names the newest checkpoint from before: asked when the last one is written, it knows of that too.
        """
        return None if self._spoiled is None else self._failed(self._spoiled)

    def note(self, text: str, kind: str = "note", **facts: object) -> None:
        """Say one sentence, with what a program may want of it as facts.

        kind: ``note``, ``warning`` and ``error`` are listed on the page. ``checkpoint`` (step, directory) also rewrites
        the page. ``dataset`` (dataset, role, url, samples, buckets: samples by geometry) and ``caption`` (dataset, key,
        caption, tokens, read; not printed) fill the page's data section. Any other kind is printed, logged and listed.
        """
        self._write("note", kind=kind, text=text, **{"step": self._step, **facts})
        if kind not in QUIET:
            self._console.line(self._redaction.text(text), kind)
        step = facts.get("step")
        if kind in ("checkpoint", "resumed") and isinstance(step, int):
            with self._lock:
                self._checkpoints.add(step)
        if kind == "checkpoint":
            self.page()
        else:
            self._refresh()

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

    def start(
        self,
        trackers: Mapping[str, Tracker],
        *,
        step: int,
        total: int,
        ranks: int = 1,
        reason: Reason | None = None,
    ) -> None:
        """Training begins after ``step`` (0, or the restored checkpoint's) of ``total`` steps, on so many ranks.

        reason: asked, on every rank at once, why all gradients of some steps are zero; given their mean loss.
        """
        self._readings = Readings(ranks, self._mean)
        self._stillness = Stillness(reason or _no_reason)
        self._due = min(self.options.every, FIRST_STEPS)
        self._step = step
        self._write_dropped()
        if step >= total:
            self.note(f"at step {step} of {total}: nothing is left to train; to train on, set steps above {step}")
        self._write("train", step=step, total=total, trackers=list(trackers))
        if self._info is not None:
            self._fanout = Fanout(trackers, self.warn)
            self._fanout.start(replace(self._info, step=step))
            self._console.begin(step, total)
        self._clock.start()

    def step(self, progress: Progress, stats: StepStats) -> None:
        """An optimizer step was taken. Reads the device every ``[report] every`` steps only, first after ten."""
        self._step = progress.step
        self._readings.add(progress, stats)
        self._console.advance(progress.step)
        if len(self._readings) >= self._due:
            self.read()

    def read(self, *, alone: bool = False) -> None:
        """Read the steps since the last reading now: before a checkpoint, so that no spoiled weights are saved.

        alone: without the other ranks, which may have ended.
        """
        if not len(self._readings):
            return
        count, self._due = len(self._readings), self.options.every
        seconds, paused = self._clock.lap()
        reading = self._readings.read(seconds, alone=alone)
        self._write(
            "step", step=reading.step, steps=count, metrics=reading.metrics, losses=reading.losses, paused=paused
        )
        self._fanout.log(reading.step, reading.metrics)
        self._console.show(reading.step, reading.metrics)
        slow = self._slow_down.see(reading.metrics) if self._info is not None else None
        # Ranks that are gone cannot be asked together.
        still = None if alone and self._mean is not None else self._stillness.see(reading)
        for sentence in filter(None, (slow, still)):
            self.warn(sentence)
        self._skipped += int(reading.metrics.get("skipped_steps", 0))
        self._spoiled = self._spoiled or reading.spoiled
        self._refresh()

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log further numbers of a step: evaluation losses, scores."""
        self._write("metrics", step=step, metrics=metrics)
        self._fanout.log(step, metrics)

    def pictures(self, step: int, pictures: Sequence[Picture]) -> None:
        """Show validation outputs; rewrites the page."""
        pictures = [
            replace(p, prompt=self._redaction.text(p.prompt), label=self._redaction.text(p.label)) for p in pictures
        ]
        shown = [{"path": str(p.path), "prompt": p.prompt, "label": p.label} for p in pictures]
        self._write("pictures", step=step, pictures=shown)
        self._fanout.show(step, pictures)
        self.page()

    def page(self, *, whole: bool = False) -> Path | None:
        """Rewrite ``report.html`` from the event log; its path, or None where nothing is written.

        It takes longer as the log grows, so it is left out as long as it would take too much of the time. whole: not
        even then.
        """
        if self._pages is None or not (whole or self._pages.may):
            return None
        with self.pause("report"):
            return self._pages.write()

    def _refresh(self) -> None:
        """Rewrite the page where that is due; a run is so seen from its first seconds on."""
        if self._pages is not None and self._pages.due:
            self.page()

    def finish(self, outcome: Outcome, why: str = "") -> None:
        """The run is over: read what is left, let trackers finish, write the page. why: the error that ended it."""
        self.read(alone=True)
        if (still := self._stillness.end()) is not None:
            self.warn(still)
        if self._skipped:
            sentence = (
                f"{self._skipped} steps were left out: their gradients overflowed fp16, and the scale was lowered"
            )
            self.note(sentence, kind="skipped", steps=self._skipped)
        self._write_dropped()
        self._fanout.finish(outcome, self.options.tracker_seconds)
        self._write("finish", step=self._step, outcome=outcome.value, why=why)
        self._audience.finish(self.options.tracker_seconds)
        page = self.page(whole=True)
        self._console.close()
        if page is not None:
            self._console.line(self._ending(outcome, page), "end")
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
        self._refresh()

    def _write(self, event: str, **facts: object) -> None:
        if self._log is None:
            return
        try:
            written = self._log.write(event, **self._redaction.data(facts))
            self._audience.tell(written, droppable=event in ("step", "metrics"))
        except OutputUnwritable as error:
            if not self._log_broken:
                self._console.line(f"{error}; events are lost until it can", "error")
            self._log_broken = True

    def _ending(self, outcome: Outcome, page: Path) -> str:
        """How long this start of the run took, where its report is, and how to go on."""
        with self._lock:
            saved = bool(self._checkpoints)
        more = {"finished": "; to train on: --resume with more steps", "interrupted": "; to go on: --resume"}
        on = more.get(outcome.value, "; to go on from the last checkpoint: --resume") if saved else ""
        return f"{outcome.value} after {duration(monotonic() - self._opened)}; report: {page}{on}"

    def _write_dropped(self) -> None:
        with self._lock:
            counts = dict(self._dropped)
        for (dataset, reason), count in counts.items():
            self._write("dropped_total", dataset=dataset, reason=reason, count=count)

    def _failed(self, spoiled: Spoiled) -> RunFailed:
        keys = ", ".join(repr(key) for key in spoiled.keys)
        where = ""
        if spoiled.weights:
            first, others = spoiled.weights[0], len(spoiled.weights) - 1
            where = f" in {first!r}" + (f" and {others} more weights" if others else "")
        with self._lock:
            good = [step for step in self._checkpoints if step < spoiled.step]
        fix = f"the checkpoint of step {max(good)} is from before it" if good else "no checkpoint is from before it"
        return RunFailed(
            f"{spoiled.what}{where}",
            why=f"it was computed on {keys}",
            fix=f"{fix}; look at these samples, lower optimizer.lr, or set precision to 'bf16' or 'fp32'",
        )


def _no_reason(loss: float) -> str:
    return "it is not known why"


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
