"""The control file: lines of JSON in a run's folder that ask it for something; its event log answers."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from st.errors import StError
from st.report.log.events import FILE as EVENTS
from st.report.log.events import read_events
from st.train.beside.requests import Request

if TYPE_CHECKING:
    from st.train.beside.requests import Do

FILE, LOCK = "control.jsonl", ".lock"
ANSWER = "request"
"""Kind of the notes that answer requests; they carry the request's ``id``."""
LOOK_SECONDS = 0.1
UNHEARD_SECONDS = 2.0
"""After so long without an answer it is asked whether anybody is there."""


class ControlFile:
    """A run's side: reads what was appended since it was opened. Lines from before were for another run."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE
        self._read = self._size()

    def lines(self) -> list[str]:
        """Whole lines that are new. One stat where there are none."""
        size = self._size()
        if size < self._read:
            self._read = 0  # somebody made a new file of it
        if size == self._read:
            return []
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                data = file.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        return [line for line in whole.decode(errors="replace").splitlines() if line.strip()]

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except OSError:
            return 0


def ask(directory: Path, do: Do, name: str = "", value: str = "") -> str:
    """Append a request to the control file of the run in ``directory``; its id. Raises StError."""
    request = Request(do, "st ctl", secrets.token_hex(8), name, value)
    try:
        # One write to a file that is open for appending: lines of two that ask at once do not mix.
        descriptor = os.open(directory / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, request.line().encode() + b"\n")
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StError(f"{str(directory / FILE)!r} cannot be written: {error.strerror}") from error
    return request.id


def answer(directory: Path, asked: str, wait_seconds: float) -> dict[str, Any]:
    """The note that answers the request of this id. Raises StError where none comes in time, or nobody is there."""
    started = time.monotonic()
    while (waited := time.monotonic() - started) < wait_seconds:
        for event in read_events(directory / EVENTS):
            if event.get("kind") == ANSWER and event.get("id") == asked:
                return event
        if waited > UNHEARD_SECONDS and not is_running(directory):
            raise StError(f"no run is writing to {str(directory)!r}", fix="start it, or go on with it: --resume")
        time.sleep(LOOK_SECONDS)
    raise StError(
        f"the run in {str(directory)!r} has not answered in {wait_seconds:g} s",
        why="it does what it is asked between two steps, and will do it then",
        fix="wait longer with --wait",
    )


def is_running(directory: Path) -> bool:
    """Whether a run holds the folder."""
    if not (directory / LOCK).exists():
        return False
    try:
        with FileLock(directory / LOCK, timeout=0):
            return False
    except Timeout:
        return True
