"""MediaReader: how one kind of media is listed and decoded. What differs between kinds is asked of these alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple, Protocol

from st.errors import SampleUnreadable
from st.importing import needing

if TYPE_CHECKING:
    from typing import BinaryIO

    import numpy as np
    from numpy.typing import NDArray

    from st.data.backend import DataBackend
    from st.data.geometry import Fit
    from st.data.sample import Kind, Media
    from st.data.store.store import Store

DECODERS: Mapping[Kind, str] = {"image": "picture 2", "video": "clip 1", "audio": "sound 1"}
"""The version of each kind's decoder: it changes when the same part of the same bytes would give other pixels or
another sound, and is part of cache keys."""

WINDOWED: frozenset[Kind] = frozenset(("video", "audio"))
"""Kinds of which a window is used."""


class Header(NamedTuple):
    """What a file says of itself. mislabelled: whether its name promises another format."""

    media: Media
    mislabelled: bool = False


class StoredFiles(Protocol):
    """Files of which a reader may ask a part before it opens them: a folder's."""

    @property
    def store(self) -> Store: ...

    def open(self, key: str) -> BinaryIO:
        """A file to read and seek in, to be closed. Raises SampleUnreadable."""
        ...


class MediaReader(ABC):
    """Reads one kind of media. Has no state, so that several threads may use one.

    noun: what people call one such file. extensions: of the files that are taken for it where nothing else is said.
    """

    kind: Kind
    noun: str
    extensions: tuple[str, ...]

    @abstractmethod
    def header(self, backend: StoredFiles, key: str) -> Header:
        """What a file of a folder is, from as little of it as says so. Raises SampleUnreadable."""

    def open(self, backend: DataBackend, key: str) -> BinaryIO:
        """A sample's bytes as a file to read and seek in, to be closed. Raises SampleUnreadable."""
        return backend.open(key)

    def pixels(self, key: str, file: BinaryIO, fit: Fit) -> NDArray[np.uint8]:
        """What an encoder of pixels sees: (H, W, 3) or (F, H, W, 3) RGB in [0, 255]. Raises SampleUnreadable."""
        raise SampleUnreadable(key, f"it is a {self.noun}, and the model reads pixels")

    def audio(self, key: str, file: BinaryIO, fit: Fit, rate: int, channels: int) -> NDArray[np.float32]:
        """What an encoder of sound hears: (channels, samples), at ``rate`` in Hz. Raises SampleUnreadable.

        As loud as it is stored. rate or channels 0: as stored.
        """
        raise SampleUnreadable(key, f"it is a {self.noun}, and the model reads sound")


_READERS: Mapping[Kind, tuple[str, str]] = {
    "image": ("st.data.media.picture", "PictureReader"),
    "video": ("st.data.media.clip", "ClipReader"),
    "audio": ("st.data.media.sound", "SoundReader"),
}
"""By module and name: who trains on pictures loads no library for clips."""


_NEEDED: Mapping[Kind, tuple[tuple[str, str, str], ...]] = {
    "video": (("av", "clips are read with PyAV", "clips"),),
    "audio": (
        ("av", "sounds are read with PyAV", "sounds"),
        ("soundfile", "sounds are read with soundfile", "sounds"),
        ("soxr", "sounds are resampled with soxr", "sounds"),
    ),
}
"""Libraries that only runs on such media need: their names, and the extra of the core that brings them."""


def reader_of(kind: Kind) -> MediaReader:
    """The reader of a kind of media. Raises StError where a library that it reads with is not installed."""
    module, name = _READERS[kind]
    with ExitStack() as stack:
        for library, what, extra in _NEEDED.get(kind, ()):
            stack.enter_context(needing(library, what, extra))
        reader: MediaReader = getattr(import_module(module), name)()
    return reader
