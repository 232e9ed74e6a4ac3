"""The event log of a run: one JSON object per line, always on, readable while it grows."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from time import time
from typing import Any

from st.errors import OutputUnwritable

FILE = "events.jsonl"

Event = dict[str, Any]


class EventLog:
    """Appends events to a file. Thread-safe.

    Each line is one write to the operating system, so what was logged survives the death of the process; a line cut
    short by it is ended before the next is written, and ``read_events`` leaves it out.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time) -> None:
        """Open ``path`` for appending. Raises OutputUnwritable."""
        self.path, self._clock, self._lock = path, clock, threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._torn = _ends_inside_a_line(path)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise OutputUnwritable(f"{str(path)!r} cannot be written: {error.strerror}") from error

    def write(self, event: str, **facts: object) -> Event:
        """Append one event with the time; the event. Raises OutputUnwritable (a full disk); the log stays usable.

        Once it is closed nothing is appended: a thread that outlives the run says nothing behind its last event.
        """
        whole = {"time": round(self._clock(), 3), "event": event} | {k: _plain(v) for k, v in facts.items()}
        data = json.dumps(whole).encode() + b"\n"
        with self._lock:
            if self._file.closed:
                return whole
            if self._torn:
                data = b"\n" + data
            self._torn = True
            try:
                written = self._file.write(data)
            except OSError as error:
                raise OutputUnwritable(f"{str(self.path)!r} cannot be written: {error.strerror}") from error
            self._torn = written != len(data)
        return whole

    def close(self) -> None:
        with self._lock:
            self._file.close()


def read_events(path: Path) -> Iterator[Event]:
    """The events of a log in order, without lines that were cut short; nothing where there is no file."""
    if not path.exists():
        return
    with path.open("rb") as lines:
        for line in lines:
            event = _event(line)
            if event is not None:
                yield event


class Tail:
    """The events that are appended to a log, each given once. Not thread-safe."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read, self._file = 0, 0

    def begins_anew(self) -> bool:
        """Whether the file is not the one that was read so far: from here on it is read from its beginning."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return False
        anew = found.st_ino != self._file or found.st_size < self._read
        if anew:
            self._read, self._file = 0, found.st_ino
        return anew

    def fresh(self) -> Iterator[Event]:
        """Events of whole lines that were not read yet, without lines that were cut short; none without a file."""
        if not self._path.exists():
            return
        with self._path.open("rb") as lines:
            lines.seek(self._read)
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                event = _event(line)
                if event is not None:
                    yield event


def _event(line: bytes) -> Event | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and "event" in event else None


def _ends_inside_a_line(path: Path) -> bool:
    if not path.exists() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def _plain(value: object) -> object:
    """As JSON has it. A number that is not finite becomes null, which every reader of JSON takes."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (str, int)):
        return value
    return str(value)
