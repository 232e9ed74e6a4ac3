"""Clips: from a video file, or a folder of numbered pictures, to the frames that are trained on.

Frames are picked by their timestamps, so that a variable frame rate, another rate and a start in the middle are one and
the same thing. They are resized one by one: what is in memory at a time is one whole frame and the window at its final
size, however long the clip is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

import av
import numpy as np
from PIL import Image

from st.data.media.containers import opened, readable
from st.data.media.frame_folder import FrameFolder
from st.data.media.media_reader import Header, MediaReader
from st.data.sample import Media
from st.errors import SampleUnreadable

if TYPE_CHECKING:
    from typing import BinaryIO

    from numpy.typing import NDArray

    from st.data.geometry import Fit
    from st.data.media.media_reader import StoredFiles

SLACK = 0.15
"""How much of a frame's duration a time may lie before the frame and still show it.

Containers round timestamps to a millisecond, and a time that falls on a frame must not show the one before it. No ratio
of two usual rates has a fraction of 0.85, which would make this a coin's edge."""

OVERHANG = 1.5
"""For how many frame durations the last frame is shown: headers without a number of frames give only a duration."""

_WHITE = (255, 255, 255, 255)
_UNSPECIFIED = 2
_HIGH_DEFINITION = 720
_UPRIGHT = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


class Film(Protocol):
    """An open clip."""

    @property
    def media(self) -> Media:
        """Its size as it is shown, its length and its rate."""

    def resized(self, times: Sequence[float], fit: Fit) -> Iterator[Image.Image]:
        """The frame that is shown at each of these ascending times (seconds), at ``fit.resized``, upright, in RGB.

        Raises SampleUnreadable.
        """


class ClipReader(MediaReader):
    """Clips, from video files and folders of frames."""

    kind, noun = "video", "clip"
    extensions = ("mp4", "m4v", "mov", "webm", "mkv", "gif")

    def header(self, backend: StoredFiles, key: str) -> Header:
        with backend.open(key) as file, _film(key, file) as film:
            return Header(film.media)

    def pixels(self, key: str, file: BinaryIO, fit: Fit) -> NDArray[np.uint8]:
        """(F, H, W, 3) RGB."""
        geometry, (top, left) = fit.geometry, fit.crop
        box = (left, top, left + geometry.width, top + geometry.height)
        frames = np.empty((geometry.frames, geometry.height, geometry.width, 3), np.uint8)
        with _film(key, file) as film:
            rate = fit.rate or film.media.fps
            times = [fit.start + number / rate for number in range(geometry.frames)]
            # One time may show the frame of the time before it: the picture is then cut once.
            last: Image.Image | None = None
            for place, picture in enumerate(film.resized(times, fit)):
                frames[place] = frames[place - 1] if picture is last else np.asarray(picture.crop(box))
                last = picture
        return frames

    def audio(self, key: str, file: BinaryIO, fit: Fit, rate: int, channels: int) -> NDArray[np.float32]:
        """The sound track of the window."""
        from st.data.media.sound import SoundReader

        if isinstance(file, FrameFolder):
            raise SampleUnreadable(key, "it is a folder of frames, which has no sound")
        return SoundReader().audio(key, file, fit, rate, channels)


def _film(key: str, file: BinaryIO) -> AbstractContextManager[Film]:
    return file.film() if isinstance(file, FrameFolder) else VideoFile(key, file)


class VideoFile:
    """A video file that is read through PyAV. packets: how many the decoder was given so far."""

    def __init__(self, key: str, file: BinaryIO) -> None:
        self.key, self.packets = key, 0
        self._container = opened(key, file, "clip")
        if not self._container.streams.video:
            self._container.close()
            raise SampleUnreadable(key, "it has no video stream")
        self._stream = self._container.streams.video[0]
        # PyAV declares that there always is one.
        if getattr(self._stream, "codec_context", None) is None:
            self._container.close()
            raise SampleUnreadable(key, "its pictures are in an encoding that is not known")

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, *raised: object) -> None:
        self._container.close()

    @property
    def media(self) -> Media:
        """From the header and the first frame, which is what says how the camera was held."""
        rate, frames, seconds = self._rate, self._stream.frames, self._seconds()
        if not frames and not (seconds and rate):
            frames, seconds = self._counted()
        rate = rate or (frames / seconds if seconds else 0.0)
        if not rate:
            raise SampleUnreadable(self.key, "it does not say for how long its frames are shown")
        first = next(self._frames(0.0, 0.0), None)
        if first is None:
            raise SampleUnreadable(self.key, "it has no frame that can be decoded")
        width, height = round(first[0].width * self._squeeze), first[0].height
        if _turn(first[0]) in (90, 270):
            width, height = height, width
        frames = frames or max(1, round(seconds * rate))
        return Media("video", height, width, frames, rate, frames / rate)

    def resized(self, times: Sequence[float], fit: Fit) -> Iterator[Image.Image]:
        """See ``Film``. Decoding starts at the keyframe before the first time and ends with the last one's frame."""
        duration = 1 / (self._rate or fit.rate or 1.0)
        place, shown, at = 0, None, 0.0
        for frame, now in self._frames(times[0], SLACK * duration):
            after = _first_after(times, place, now - SLACK * duration)
            if after > place:
                # Where the file begins later than the first time, its first frame stands in.
                yield from [self._picture(shown or frame, fit)] * (after - place)
            if (place := after) == len(times):
                return
            shown, at = frame, now
        after = _first_after(times, place, at + OVERHANG * duration)
        if shown is not None and after > place:
            yield from [self._picture(shown, fit)] * (after - place)
        if shown is None or after < len(times):
            raise SampleUnreadable(self.key, f"it ends after {at:.2f} s; {times[-1]:.2f} s are needed")

    def _frames(self, start: float, slack: float) -> Iterator[tuple[av.VideoFrame, float]]:
        """Frames with their times, from the keyframe before ``start`` on.

        An index that goes by the order of decoding may lead to a keyframe that is shown a little too late.
        """
        for earlier in (0.0, 1.0, 10.0, start):
            if start or self.packets:
                self._seek(max(start - earlier, 0.0))
            frames = self._decoded()
            first = next(frames, None)
            if first is not None and (first[1] <= start + slack or earlier >= start):
                yield first
                yield from frames
                return

    def _seek(self, seconds: float) -> None:
        assert self._stream.time_base is not None
        place = int((seconds + self._begins) / self._stream.time_base)
        with readable(self.key):
            self._container.seek(place, stream=self._stream, backward=True)

    def _decoded(self) -> Iterator[tuple[av.VideoFrame, float]]:
        with readable(self.key):
            for packet in self._container.demux(self._stream):
                self.packets += 1
                for frame in self._stream.decode(packet):
                    if frame.time is None:
                        raise SampleUnreadable(self.key, "its frames do not say when they are shown")
                    yield frame, frame.time - self._begins

    def _picture(self, frame: av.VideoFrame, fit: Fit) -> Image.Image:
        if frame.is_corrupt:
            raise SampleUnreadable(self.key, f"its frame at {frame.time:.2f} s is damaged")
        turn = _turn(frame)
        height, width = fit.resized
        stored = (height, width) if turn in (90, 270) else (width, height)
        picture = _plain(frame)
        if picture.size != stored:
            picture = picture.resize(stored, Image.Resampling.LANCZOS)
        return picture.transpose(_UPRIGHT[turn]) if turn else picture

    @property
    def _rate(self) -> float:
        return float(self._stream.average_rate or self._stream.guessed_rate or 0)

    @property
    def _begins(self) -> float:
        """The time of the file's first frame, which need not be 0."""
        assert self._stream.time_base is not None
        return float((self._stream.start_time or 0) * self._stream.time_base)

    @property
    def _squeeze(self) -> float:
        """Width of a stored pixel, relative to its height."""
        return float(self._stream.sample_aspect_ratio or 1)

    def _seconds(self) -> float:
        stream = self._stream
        if stream.duration and stream.time_base:
            return float(stream.duration * stream.time_base)
        return (self._container.duration or 0) / 1e6

    def _counted(self) -> tuple[int, float]:
        """Frames and seconds of a file whose header has neither (a recording that was streamed): nothing is decoded."""
        count, last = 0, 0.0
        with readable(self.key):
            for packet in self._container.demux(self._stream):
                if packet.pts is not None:
                    self.packets += 1
                    count, last = count + 1, max(last, float(packet.pts * packet.time_base) - self._begins)
        return count, last * count / (count - 1) if count > 1 else 0.0


def _first_after(times: Sequence[float], place: int, now: float) -> int:
    """The first place from ``place`` on whose time is not before ``now``."""
    while place < len(times) and times[place] < now:
        place += 1
    return place


def _turn(frame: av.VideoFrame) -> int:
    """By how many degrees, counterclockwise, a frame is turned to be shown: 0, 90, 180 or 270."""
    degrees = frame.rotation
    return round(degrees / 90) * 90 % 360 if abs(degrees) <= 360 else 0


def _plain(frame: av.VideoFrame) -> Image.Image:
    """The frame in RGB with eight bits per channel; transparent parts on white.

    Colours that a file does not describe are taken as players take them: ITU 709 from 720 lines on, else ITU 601.
    """
    space = "ITU709" if frame.colorspace == _UNSPECIFIED and frame.height >= _HIGH_DEFINITION else None
    if not any(component.is_alpha for component in frame.format.components):
        return Image.fromarray(frame.reformat(format="rgb24", src_colorspace=space).to_ndarray())
    over = Image.fromarray(frame.reformat(format="rgba", src_colorspace=space).to_ndarray())
    return Image.alpha_composite(Image.new("RGBA", over.size, _WHITE), over).convert("RGB")
