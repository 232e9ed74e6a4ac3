"""FrameFolder: a folder of numbered pictures as one clip."""

from __future__ import annotations

import io
import re
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from st.data.media.header import read_header
from st.data.media.media_reader import reader_of
from st.data.sample import Media
from st.errors import SampleUnreadable, StoreUnreadable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from PIL import Image

    from st.data.geometry import Fit
    from st.data.media.clip import Film
    from st.data.store.store import Store

_NUMBER = re.compile(r"(\d+)")


class FrameFolder(io.RawIOBase):
    """The pictures of a folder, ordered by the numbers in their names, at ``rate`` frames per second.

    Read as a file it is their rate and their bytes, one behind the other: what stands for all of them in a digest.
    Raises SampleUnreadable where there is none.
    """

    def __init__(self, store: Store, key: str, rate: float) -> None:
        super().__init__()
        self._store, self.key, self._rate = store, key, rate
        endings = tuple(f".{extension}" for extension in reader_of("image").extensions)
        found = [entry.key for entry in store.list(key) if "/" not in entry.key[len(key) :]]
        self.frames = sorted((name for name in found if name.lower().endswith(endings)), key=_by_number)
        if not self.frames:
            raise SampleUnreadable(key, "the folder holds no pictures")
        self._next, self._rest = 0, self._head

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Back to the beginning, which is the only place that anybody goes to."""
        if offset or whence != io.SEEK_SET:
            raise io.UnsupportedOperation("a folder of frames is read from its beginning")
        self._next, self._rest = 0, self._head
        return 0

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        while not self._rest and self._next < len(self.frames):
            self._rest = self._bytes(self.frames[self._next])
            self._next += 1
        count = min(len(view), len(self._rest))
        view[:count], self._rest = self._rest[:count], self._rest[count:]
        return count

    @property
    def _head(self) -> bytes:
        # No file says for how long each picture is shown, as the header of a video file does.
        return f"{self._rate!r} frames per second\n".encode()

    def film(self) -> AbstractContextManager[Film]:
        """The folder as an open clip."""
        return nullcontext(self)

    @property
    def media(self) -> Media:
        """From the first picture's header."""
        width, height = self._size(self.frames[0], self._bytes(self.frames[0]))
        return Media("video", height, width, len(self.frames), self._rate, len(self.frames) / self._rate)

    def resized(self, times: Sequence[float], fit: Fit) -> Iterator[Image.Image]:
        """See ``Film``. Only the pictures that are shown are read."""
        from st.data.media.clip import SLACK
        from st.data.media.picture import resized

        size, last, picture = None, -1, None
        for time in times:
            number = int(time * self._rate + SLACK)
            if number >= len(self.frames):
                raise SampleUnreadable(self.key, f"it has {len(self.frames)} frames; {number + 1} are needed")
            if picture is None or number != last:
                name = self.frames[number]
                data = self._bytes(name)
                size = size or self._size(name, data)
                if self._size(name, data) != size:
                    raise SampleUnreadable(self.key, f"{name!r} has another size than the frames before it")
                picture, last = resized(name, data, fit), number
            yield picture

    def _size(self, name: str, data: bytes) -> tuple[int, int]:
        header = read_header(name, data)
        assert header is not None
        return header.upright

    def _bytes(self, name: str) -> bytes:
        try:
            return self._store.read(name)
        except FileNotFoundError as error:
            raise SampleUnreadable(self.key, f"{name!r} is gone") from error
        except StoreUnreadable as error:
            raise SampleUnreadable(self.key, f"{name!r}: {error.why}") from error


def _by_number(name: str) -> list[tuple[int, str]]:
    """Where a name comes: 2 before 10, whether or not numbers are padded with zeros."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in _NUMBER.split(name)]
