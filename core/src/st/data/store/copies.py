"""LocalCopies: what was read from far away, kept on this machine's disk up to a number of bytes."""

from __future__ import annotations

import os
from contextlib import suppress
from hashlib import blake2b
from threading import Lock
from typing import TYPE_CHECKING

from st.data.store.store import Store
from st.errors import OutputUnwritable, StoreUnreadable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CHECKSUM_BYTES = 16


class LocalCopies:
    """Copies of objects in a folder of this machine, the least recently read of which make room for new ones.

    A copy is whole or not there, begins with the checksum of its bytes, and is used only where that still holds.
    Several processes may share a folder, each with a budget that is the same. Thread-safe. What goes wrong with the
    folder (a full disk, a damaged file) costs time and changes no answer.
    """

    def __init__(self, folder: Path, budget_bytes: int) -> None:
        self.folder, self.budget_bytes = folder, budget_bytes
        self._store = Store.at(str(folder))
        self._lock = Lock()
        self._room = -1
        """Bytes that may be written before the folder has to be looked at again; others write to it too."""

    def read(self, name: str, version: str, fetch: Callable[[], bytes]) -> bytes:
        """The bytes of ``name``, from the copy of this version or else from ``fetch``, which leaves a copy."""
        key = self._key(name, version)
        data = self._kept(key)
        if data is None:
            data = fetch()
            self._keep(key, data)
        return data

    def _key(self, name: str, version: str) -> str:
        digest = blake2b(f"{name}\0{version}".encode(), digest_size=16).hexdigest()
        return f"{digest[:2]}/{digest}"

    def _kept(self, key: str) -> bytes | None:
        try:
            data = self._store.read(key)
        except (FileNotFoundError, StoreUnreadable):
            return None
        if data[:CHECKSUM_BYTES] != _checksum(data[CHECKSUM_BYTES:]):
            with suppress(OutputUnwritable):
                self._store.delete(key)
            return None
        with suppress(OSError):
            os.utime(self.folder / key)
        return data[CHECKSUM_BYTES:]

    def _keep(self, key: str, data: bytes) -> None:
        size_bytes = len(data) + CHECKSUM_BYTES
        if size_bytes > self.budget_bytes:
            return
        with self._lock, suppress(OutputUnwritable):
            if self._room < size_bytes:
                self._room = self._make_room(size_bytes)
            self._store.write(key, _checksum(data) + data)
            self._room -= size_bytes

    def _make_room(self, size_bytes: int) -> int:
        """Delete what was read longest ago until ``size_bytes`` fit; how much may now be written.

        A tenth of the budget is freed at a time, so that a full folder is not listed again for every copy, and a
        sixteenth of what is free is given out, because other processes write there as well.
        """
        copies = sorted(self._store.list(), key=lambda entry: entry.modified)
        free = self.budget_bytes - sum(entry.size_bytes for entry in copies)
        wanted = max(size_bytes, self.budget_bytes // 10)
        for entry in copies:
            if free >= wanted:
                break
            self._store.delete(entry.key)
            free += entry.size_bytes
        return max(free // 16, size_bytes)


def _checksum(data: bytes) -> bytes:
    return blake2b(data, digest_size=CHECKSUM_BYTES).digest()
