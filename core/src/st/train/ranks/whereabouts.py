"""Whereabouts: what each rank is doing, where the process that started the ranks can read it."""

from __future__ import annotations

import mmap
import os
import struct
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

LAUNCHED = "ST_LAUNCHED"
"""Set in the environment of ranks that ``st.train.ranks.launch`` has started: the folder that it shares with them."""

FILE, STORE = "whereabouts", "store"

STARTING = "starting"
"""Stage of a rank that has not met the others yet."""

_RECORD = struct.Struct("<d120p120p")
_BYTES = _RECORD.size


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank is. stage: what it does. awaited: what it waits for the others at, '' while it waits for nobody.

    since: when that wait began, by this machine's monotonic clock.
    """

    stage: str
    awaited: str
    since: float


class Whereabouts:
    """This rank's line in the file. A write is a copy of 250 bytes into shared memory, so every collective may do it.

    Without a launcher of ours the line is only in this process.
    """

    def __init__(self, file: Path | None = None, rank: int = 0) -> None:
        self._map = None if file is None else _mapped(file)
        self._offset = rank * _BYTES
        self.place = Place("", "", 0.0)
        self._write(Place(STARTING, "", 0.0))

    def settle(self, stage: str) -> None:
        """From here on this rank is in ``stage`` where it is in no other."""
        self._write(Place(stage, "", 0.0))

    @classmethod
    def of_this_process(cls) -> Whereabouts:
        """The line of this rank, where it was started by us."""
        folder = os.environ.get(LAUNCHED)
        return cls(Path(folder) / FILE, int(os.environ["LOCAL_RANK"])) if folder else cls()

    @contextmanager
    def doing(self, stage: str) -> Iterator[None]:
        """Inside, this rank is in ``stage``. After an error it stays there: that is where it died."""
        before = self.place
        self._write(Place(stage, "", 0.0))
        yield
        self._write(before)

    @contextmanager
    def waiting(self, awaited: str) -> Iterator[None]:
        """Inside, this rank waits for the others."""
        before = self.place
        self._write(Place(before.stage, awaited, time.monotonic()))
        yield
        self._write(before)

    def _write(self, place: Place) -> None:
        self.place = place
        if self._map is not None:
            record = _RECORD.pack(place.since, place.stage.encode()[:119], place.awaited.encode()[:119])
            self._map[self._offset : self._offset + _BYTES] = record


class Watch:
    """The launcher's view of the file."""

    def __init__(self, folder: Path, ranks: int) -> None:
        file = folder / FILE
        file.write_bytes(bytes(_BYTES * ranks))
        self._map, self._ranks = _mapped(file), ranks

    def places(self) -> list[Place]:
        """Where each rank is."""
        return [self._place(rank) for rank in range(self._ranks)]

    def _place(self, rank: int) -> Place:
        since, stage, awaited = _RECORD.unpack_from(self._map, rank * _BYTES)
        return Place(stage.decode(errors="replace") or STARTING, awaited.decode(errors="replace"), since)


def missing(places: list[Place], now: float, patience: float) -> tuple[list[int], str, float] | None:
    """Ranks that others have waited for longer than ``patience`` seconds: who, where they are awaited, and how long.

    None where nobody waits, and where all do: then it is the transfer that takes its time.
    """
    waits = [(now - place.since, place.awaited) for place in places if place.awaited]
    if not waits or len(waits) == len(places):
        return None
    seconds, awaited = max(waits)
    absent = [rank for rank, place in enumerate(places) if not place.awaited]
    return (absent, awaited, seconds) if seconds >= patience else None


def _mapped(file: Path) -> mmap.mmap:
    with file.open("r+b") as opened:
        return mmap.mmap(opened.fileno(), 0)
