"""Sounds: from a sound file, or the sound track of a video file, to the samples that are trained on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import av
import numpy as np
import soundfile
import soxr

from st.data.media.containers import opened, readable
from st.data.media.media_reader import Header, MediaReader
from st.data.sample import Media
from st.errors import SampleUnreadable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import BinaryIO

    from numpy.typing import NDArray

    from st.data.geometry import Fit
    from st.data.media.media_reader import StoredFiles

MARGIN_SECONDS = 0.1
"""What is read before and after a window, so that the resampler's filter meets sound at its edges and not zeros."""

TOLERANCE_SECONDS = 0.1
"""By how much a file may be shorter than its header says; lossy formats round to whole packets."""

_HALF = math.sqrt(0.5)
_DOWN: Mapping[int, NDArray[np.float32]] = {
    6: np.array([[1, 0, _HALF, 0, _HALF, 0], [0, 1, _HALF, 0, 0, _HALF]], np.float32),
    8: np.array([[1, 0, _HALF, 0, _HALF, 0, _HALF, 0], [0, 1, _HALF, 0, 0, _HALF, 0, _HALF]], np.float32),
}
"""5.1 and 7.1 channels to two (ITU-R BS.775): the centre and the surrounds 3 dB lower, the low frequencies left out."""


class Track(Protocol):
    """An open sound. rate in Hz; channels; seconds as the header says."""

    rate: int
    channels: int
    seconds: float

    def read(self, start: int, count: int) -> NDArray[np.float32]:
        """``count`` samples from number ``start`` on, (channels, n) float32; n is less where the sound ends."""

    def close(self) -> None: ...


class SoundReader(MediaReader):
    """Sounds, from sound files and from whatever else has a sound track."""

    kind, noun = "audio", "sound"
    extensions = ("wav", "flac", "mp3", "ogg", "oga", "opus", "m4a", "aac", "aif", "aiff")

    def header(self, backend: StoredFiles, key: str) -> Header:
        with backend.open(key) as file:
            track = open_track(key, file)
            seconds = track.seconds
            track.close()
        if seconds <= 0:
            raise SampleUnreadable(key, "it has no samples")
        return Header(Media("audio", frames=0, seconds=seconds))

    def audio(self, key: str, file: BinaryIO, fit: Fit, rate: int, channels: int) -> NDArray[np.float32]:
        track = open_track(key, file)
        try:
            rate, channels = rate or track.rate, channels or track.channels
            first = max(0, math.floor((fit.start - MARGIN_SECONDS) * track.rate))
            last = math.ceil((fit.start + fit.duration + MARGIN_SECONDS) * track.rate)
            heard = mixed(key, track.read(first, last - first), channels)
            begins = first / track.rate
        finally:
            track.close()
        if rate != track.rate:
            heard = np.ascontiguousarray(soxr.resample(heard.T, track.rate, rate).T)
        skipped, wanted = round((fit.start - begins) * rate), round(fit.duration * rate)
        heard = heard[:, skipped : skipped + wanted]
        lacking = wanted - heard.shape[1]
        if lacking > TOLERANCE_SECONDS * rate:
            ends = fit.start + heard.shape[1] / rate
            raise SampleUnreadable(key, f"it ends after {ends:.2f} s; {fit.start + fit.duration:.2f} s are needed")
        return np.ascontiguousarray(np.pad(heard, ((0, 0), (0, lacking))), np.float32)


def mixed(key: str, heard: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    """(channels, n) out of any usual layout: mono from stereo is the mean, stereo from mono is the same twice."""
    have = len(heard)
    if have == channels:
        return heard
    if have == 1:
        return np.repeat(heard, channels, axis=0)
    if channels > 2 or (have > 2 and have not in _DOWN):
        raise SampleUnreadable(key, f"it has {have} channels, of which {channels} cannot be made")
    stereo = heard if have == 2 else _DOWN[have] @ heard
    return stereo if channels == 2 else stereo.mean(axis=0, keepdims=True, dtype=np.float32)


def open_track(key: str, file: BinaryIO) -> Track:
    """The sound in a file, to be closed. Raises SampleUnreadable."""
    file.seek(0)
    try:
        return _SoundFile(key, soundfile.SoundFile(file))
    except soundfile.LibsndfileError:
        return _Stream(key, file)


class _SoundFile:
    """wav, flac, mp3, ogg: what libsndfile reads."""

    def __init__(self, key: str, sound: soundfile.SoundFile) -> None:
        self._key, self._sound = key, sound
        self.rate, self.channels, self.seconds = sound.samplerate, sound.channels, sound.frames / sound.samplerate

    def read(self, start: int, count: int) -> NDArray[np.float32]:
        try:
            self._sound.seek(min(start, self._sound.frames))
            heard = self._sound.read(count, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise SampleUnreadable(self._key, f"it cannot be decoded: {error.error_string}") from error
        return np.ascontiguousarray(heard.T)

    def close(self) -> None:
        self._sound.close()


class _Stream:
    """The first sound track of what PyAV opens."""

    def __init__(self, key: str, file: BinaryIO) -> None:
        self._key = key
        self._container = opened(key, file, "sound")
        if not self._container.streams.audio:
            self.close()
            raise SampleUnreadable(key, "it has no sound track")
        self._stream = stream = self._container.streams.audio[0]
        # PyAV declares that there always is one.
        if getattr(stream, "codec_context", None) is None:
            self.close()
            raise SampleUnreadable(key, "its sound is in an encoding that is not known")
        assert stream.time_base is not None
        self._begins = float((stream.start_time or 0) * stream.time_base)
        self.rate, self.channels = stream.rate, stream.channels
        if stream.duration:
            self.seconds = float(stream.duration * stream.time_base)
        else:
            self.seconds = (self._container.duration or 0) / 1e6

    def read(self, start: int, count: int) -> NDArray[np.float32]:
        heard, ends = np.zeros((self.channels, count), np.float32), 0
        assert self._stream.time_base is not None
        resampler = av.AudioResampler(format="fltp")
        with readable(self._key):
            if start:
                place = int((start / self.rate + self._begins) / self._stream.time_base)
                self._container.seek(place, stream=self._stream, backward=True)
            for frame in self._container.decode(self._stream):
                for plain in resampler.resample(frame):
                    assert plain.time is not None
                    begins = round((plain.time - self._begins) * self.rate) - start
                    part = plain.to_ndarray()
                    low, high = max(begins, 0), min(begins + part.shape[1], count)
                    if low < high:
                        heard[:, low:high], ends = part[:, low - begins : high - begins], high
                if ends == count:
                    break
        return heard[:, :ends]

    def close(self) -> None:
        self._container.close()
