"""Listening: signals and the control file, heard on a thread of its own from the start of a run to its end."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import threading
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from st.errors import Interrupted, StError
from st.progress import Outcome
from st.train.beside.control import ANSWER, ControlFile
from st.train.beside.requests import Request, Requests

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import FrameType, TracebackType

    from st.report.report import Report

SAVED = 4
"""Exit status of a run that was told to stop and has saved what it learned."""
ECHO_SECONDS = 2.0
"""A launcher may pass on a signal that the terminal has sent to every process already; so soon, it is the same one."""
LOOK_SECONDS = 0.2
"""Between two looks at the control file."""
LAST_WORDS_SECONDS = 1.0

STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")
SAVING = "SIGUSR1"


class Listening:
    """Inside of a ``with``, turns signals and the lines of the control file into requests.

    Before training, being told to stop raises Interrupted in the main thread. From ``defer`` on the loop ends after its
    step, with everything saved; a second signal ends the process at once, and so does the grace time where nothing has
    moved for so long. Off the main thread signals are not heard.
    """

    def __init__(self, grace_seconds: float) -> None:
        self.requests = Requests()
        self._grace = grace_seconds
        self._previous: dict[int, object] = {}
        self._wakeup = -1
        self._near, self._far = socket.socketpair()
        self._over = False
        self._raises = True
        self._training = False
        self._told: tuple[str, int] = ("", 0)
        self._report: Report | None = None
        self._control: ControlFile | None = None
        self._moved: Callable[[], object] = tuple
        self._saved: Callable[[], bool] = bool
        self._deadline = _Deadline(grace_seconds)
        self._thread = threading.Thread(target=self._listen, name="listening", daemon=True)

    def open(self, report: Report, folder: Path | None) -> None:
        """Say what is heard in this report, and listen to the control file of this folder too."""
        self._report = report
        self._control = ControlFile(folder) if folder is not None else None

    def defer(self, moved: Callable[[], object], saved: Callable[[], bool]) -> None:
        """From here on the loop does what is asked. moved: changes while the run gets on. saved: whether a checkpoint
        of this step is on the disk."""
        self._moved, self._saved = moved, saved
        self._training, self._raises = True, False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._near.setblocking(False)
            for name in (*STOPPING, SAVING):
                number = getattr(signal, name, None)
                # What was started to survive a hang-up (nohup) does.
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._caught)
            # Heard even while the main thread waits inside of a library, where no handler runs.
            self._wakeup = signal.set_wakeup_fd(self._near.fileno(), warn_on_full_buffer=False)
            _let_go_in_children(self)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        self.let_go()
        self._thread.join()
        self._near.close()
        self._far.close()

    def let_go(self) -> None:
        """Give signals back to whom they belonged."""
        if self._previous:
            signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous = {}

    def _caught(self, number: int, frame: FrameType | None) -> None:
        """In the main thread; everything that can be done elsewhere is."""
        name = signal.Signals(number).name
        if self._raises and name != SAVING:
            self._raises = False
            raise Interrupted(self._told[0] or name, number)

    def _listen(self) -> None:
        while not self._over:
            ready, _, _ = select.select([self._far], [], [], LOOK_SECONDS)
            for number in self._far.recv(64) if ready else b"":
                self._heard(signal.Signals(number))
            for line in self._control.lines() if self._control is not None else ():
                self._read(line)
            if self._deadline.is_over(self._moved):
                self._end(f"nothing has moved for checkpoint.grace_seconds = {self._grace:g}")

    def _heard(self, number: signal.Signals) -> None:
        if number.name == SAVING:
            self.requests.ask(Request("save", SAVING))
        if number.name not in STOPPING:
            return
        name, first = self._told[0], self._deadline.began
        if name and time.monotonic() - first < ECHO_SECONDS:
            return
        self._told = (number.name, number.value)
        if name:
            self._end(f"{number.name} again")
        self._deadline.begin()
        self.requests.stop(number.name)
        when = "saving after this step; once more ends at once" if self._training else "ending"
        self._say(f"{number.name}: {when}")

    def _read(self, line: str) -> None:
        try:
            request = Request.read(line)
        except StError as error:
            if self._report is not None:
                self._report.note(str(error), kind=ANSWER, id=_id_of(line), done=False)
            return
        main = threading.main_thread().ident
        if request.do == "stop" and self._raises and self._previous and main and hasattr(signal, "pthread_kill"):
            if self._report is not None:
                self._report.note("ending before training", kind=ANSWER, do="stop", id=request.id, done=True)
            self._told = (request.source, signal.SIGTERM.value)
            self._deadline.begin()
            # A real signal: whatever the main thread waits for, it hears it.
            signal.pthread_kill(main, signal.SIGTERM)
            return
        self.requests.ask(request)

    def _end(self, why: str) -> None:
        """End the process, whatever it is in the middle of."""
        saved = self._saved()
        kept = "the checkpoint of this step is whole" if saved else "with what was saved before"
        self._say(f"{why}: ending now, {kept}", last=True)
        os._exit(SAVED if saved else 128 + self._told[1])

    def _say(self, text: str, *, last: bool = False) -> None:
        """On a thread that nobody waits for: the one that holds the console may be what hangs."""

        def say() -> None:
            if self._report is None:
                # A console that is gone must not keep a run from ending.
                with suppress(OSError, ValueError):
                    print(text, file=sys.stderr, flush=True)
                return
            self._report.note(text, kind="signal")
            if last:
                self._report.abandon(Outcome.INTERRUPTED, text)

        saying = threading.Thread(target=say, name="saying", daemon=True)
        saying.start()
        saying.join(LAST_WORDS_SECONDS)


class _Deadline:
    """So many seconds without anything that moves, counted from ``begin``."""

    def __init__(self, seconds: float) -> None:
        self.began = 0.0
        self._seconds = seconds
        self._last = 0.0
        self._seen: object = None

    def begin(self) -> None:
        self.began = self._last = time.monotonic()

    def is_over(self, moved: Callable[[], object]) -> bool:
        if not self.began:
            return False
        now, seen = time.monotonic(), moved()
        if seen != self._seen:
            self._seen, self._last = seen, now
        return now - self._last > self._seconds


def _let_go_in_children(listening: Listening) -> None:
    """A forked process shares the pipe: what it is told would be heard here."""
    known = weakref.ref(listening)

    def let_go() -> None:
        one = known()
        if one is not None:
            one.let_go()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=let_go)


def _id_of(line: str) -> str:
    """The id in a line that may be no request at all."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return ""
    return str(found.get("id", "")) if isinstance(found, dict) else ""
