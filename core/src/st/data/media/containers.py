"""Containers: video and sound files that PyAV opens, and what it says when it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import av

from st.errors import SampleUnreadable

if TYPE_CHECKING:
    from typing import BinaryIO

    from av.container import InputContainer


FORMATS = (
    *(
        "mov",
        "matroska",
        "avi",
        "mpegts",
        "mpeg",
        "mpegvideo",
        "asf",
        "flv",
        "gif",
        "nut",
        "mxf",
        "h264",
        "hevc",
        "m4v",
    ),
    *("ogg", "wav", "w64", "flac", "mp3", "aac", "aiff", "caf", "amr", "ac3", "eac3", "au"),
)
"""Containers that are opened, whatever a file is called. Lists and descriptions of other places (SDP, HLS) are not
among them: they make FFmpeg open sockets and other files."""

_SAFE = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "data"}


def opened(key: str, file: BinaryIO, noun: str) -> InputContainer:
    """The container in a file, to be closed. Raises SampleUnreadable."""
    file.seek(0)
    if not (begins := file.read(8)):
        raise SampleUnreadable(key, "the file is empty")
    file.seek(0)
    try:
        # Metadata in whatever encoding must not keep a file from being read.
        return av.open(file, "r", metadata_errors="ignore", options=_SAFE)
    except (av.FFmpegError, IndexError) as error:
        reason = f"it cannot be opened: not a {noun}, or cut short (it begins with {begins!r})"
        raise SampleUnreadable(key, reason) from error


@contextmanager
def readable(key: str) -> Iterator[None]:
    """What PyAV raises inside becomes SampleUnreadable. The end of a file that comes too early is no error to it."""
    try:
        yield
    except av.EOFError:
        return
    except (av.FFmpegError, OSError) as error:
        raise SampleUnreadable(key, f"it cannot be decoded: {error.strerror}") from error
