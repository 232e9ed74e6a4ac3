"""RangedFile: an object of a store as a file to seek in, of which only what is read is fetched."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from st.errors import SampleUnreadable, StoreUnreadable

if TYPE_CHECKING:
    from typing import BinaryIO

    from st.data.store.store import Store

AHEAD_BYTES = 1 << 20
"""How much is fetched at a time."""


class RangedFile(io.RawIOBase):
    """An object of a store. Raises SampleUnreadable where it is refused, and StoreUnreachable."""

    def __init__(self, store: Store, key: str) -> None:
        super().__init__()
        self._store, self._key, self._place = store, key, 0
        self._size_bytes = store.size_bytes(key)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size_bytes}[whence]
        self._place = max(0, start + offset)
        return self._place

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        wanted = min(len(view), self._size_bytes - self._place)
        data = self._fetched(wanted) if wanted > 0 else b""
        view[: len(data)] = data
        self._place += len(data)
        return len(data)

    def _fetched(self, length: int) -> bytes:
        try:
            return self._store.read_range(self._key, self._place, length)
        except FileNotFoundError as error:
            raise SampleUnreadable(self._key, "the file is gone") from error
        except StoreUnreadable as error:
            raise SampleUnreadable(self._key, error.why) from error


def ranged(store: Store, key: str) -> BinaryIO:
    """An object as a file that fetches a piece at a time."""
    return io.BufferedReader(RangedFile(store, key), AHEAD_BYTES)
