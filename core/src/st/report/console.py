"""What a run shows on the terminal: a live progress line, or plain lines where there is no terminal."""

from __future__ import annotations

import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Literal, TextIO

from st.report.enduring import enduring
from st.report.log.duration import duration
from st.terminal import printable

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

ConsoleKind = Literal["auto", "plain", "off"]


class Console(ABC):
    """Shows notes, the progress of stages and the progress of training. Thread-safe."""

    @abstractmethod
    def line(self, text: str, kind: str) -> None:
        """One sentence; ``warning`` and ``error`` stand out."""

    @abstractmethod
    def stage(self, name: str, done: float, total: int) -> None:
        """A stage is ``done`` of ``total``; shown until ``stage_over``."""

    @abstractmethod
    def stage_over(self, name: str, done: int, seconds: float) -> None: ...

    @abstractmethod
    def begin(self, step: int, total: int) -> None:
        """Training starts after ``step`` of ``total`` steps."""

    @abstractmethod
    def advance(self, step: int) -> None:
        """A step was taken; called for each one, so it is cheap."""

    @abstractmethod
    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """What was last read of the run."""

    @abstractmethod
    def close(self) -> None: ...


def open_console(kind: ConsoleKind, line_seconds: float, stream: TextIO | None = None) -> Console:
    """The console that suits ``stream`` (the process's standard error). One that goes away ends no run."""
    lasting = enduring(stream or sys.stderr)
    if kind == "off":
        return NoConsole()
    if kind == "auto" and lasting.isatty():
        return RichConsole(lasting)
    return PlainConsole(lasting, line_seconds)


def summary(metrics: Mapping[str, float], steps_left: int) -> str:
    """``loss 0.1234  lr 1.0e-04  0.52 s/step  data 3%  17 min left``, of what is known."""
    parts = []
    if "loss" in metrics:
        parts.append(f"loss {metrics['loss']:.4f}")
    rate = metrics.get("lr", metrics.get("lr/0"))
    if rate is not None:
        parts.append(f"lr {rate:.2e}")
    if "seconds/step" in metrics:
        parts.append(f"{metrics['seconds/step']:.3g} s/step")
        parts.append(f"data {metrics.get('data_wait', 0):.0%}")
        parts.append(f"{duration(metrics['seconds/step'] * steps_left)} left")
    return "  ".join(parts)


class NoConsole(Console):
    """Shows nothing."""

    def line(self, text: str, kind: str) -> None: ...

    def stage(self, name: str, done: float, total: int) -> None: ...

    def stage_over(self, name: str, done: int, seconds: float) -> None: ...

    def begin(self, step: int, total: int) -> None: ...

    def advance(self, step: int) -> None: ...

    def show(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class PlainConsole(Console):
    """Lines without control codes, of progress at most one every ``line_seconds``: for logs and pipes."""

    def __init__(self, stream: TextIO, line_seconds: float, clock: Callable[[], float] = monotonic) -> None:
        self._stream, self._every, self._clock = stream, line_seconds, clock
        self._lock = threading.Lock()
        self._said: dict[str, float] = {}
        self._total = 0

    def line(self, text: str, kind: str) -> None:
        self._print(f"{kind}: {text}" if kind in ("warning", "error") else text)

    def stage(self, name: str, done: float, total: int) -> None:
        # A stage that is over soon needs no line but its last.
        with self._lock:
            self._said.setdefault(name, self._clock())
        if self._is_due(name):
            self._print(f"{name} {round(done, 1):g}/{total}" if done % 1 else f"{name} {int(done)}/{total}")

    def stage_over(self, name: str, done: int, seconds: float) -> None:
        self._said.pop(name, None)
        self._print(f"{name}: {done} in {duration(seconds)}")

    def begin(self, step: int, total: int) -> None:
        self._total = total
        if step < total:
            self._print(f"training from step {step} to {total}")

    def advance(self, step: int) -> None: ...

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._is_due("") or step >= self._total:
            self._print(f"step {step}/{self._total}  {summary(metrics, max(0, self._total - step))}")

    def close(self) -> None: ...

    def _is_due(self, name: str) -> bool:
        now = self._clock()
        with self._lock:
            due = name not in self._said or now - self._said[name] >= self._every
            if due:
                self._said[name] = now
        return due

    def _print(self, text: str) -> None:
        with self._lock:
            print(printable(text), file=self._stream, flush=True)


class RichConsole(Console):
    """A live line per stage and one for training; notes scroll above them."""

    def __init__(self, stream: TextIO) -> None:
        from rich import progress
        from rich.console import Console as Terminal

        self._progress: RichProgress = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=24),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[facts]}", style="bright_black"),
            console=Terminal(file=stream, highlight=False),
            refresh_per_second=5,
        )
        self._tasks: dict[str, TaskID] = {}
        self._training: TaskID | None = None
        self._total = 0
        self._lock = threading.Lock()
        self._progress.start()

    def line(self, text: str, kind: str) -> None:
        style = {"warning": "yellow", "error": "bold red"}.get(kind)
        self._progress.console.print(printable(text), style=style, markup=False)

    def stage(self, name: str, done: float, total: int) -> None:
        with self._lock:
            if name not in self._tasks:
                self._tasks[name] = self._progress.add_task(name, total=total, facts="")
            self._progress.update(self._tasks[name], completed=done, total=total)

    def stage_over(self, name: str, done: int, seconds: float) -> None:
        with self._lock:
            task = self._tasks.pop(name, None)
        if task is not None:
            self._progress.remove_task(task)
        self.line(f"{name}: {done} in {duration(seconds)}", "note")

    def begin(self, step: int, total: int) -> None:
        self._total = total
        self._training = self._progress.add_task("training", total=total, completed=step, facts="")

    def advance(self, step: int) -> None:
        if self._training is not None:
            self._progress.update(self._training, completed=step)

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._training is not None:
            left = max(0, self._total - step)
            self._progress.update(self._training, facts=summary(metrics, left))

    def close(self) -> None:
        self._progress.stop()
