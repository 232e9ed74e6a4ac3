"""Clips and sounds for tests: small files whose frames say their number by how bright they are."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import OutputContainer
    from av.video.stream import VideoStream
    from numpy.typing import NDArray

_CODECS = {".webm": "libvpx-vp9", ".gif": "gif"}
_PIXELS = {".gif": "rgb8"}
_STEP = 8
"""Brightness between one frame's number and the next: more than any codec changes it."""

_TICK = Fraction(1, 1000)


def write_clip(
    path: Path,
    frames: int | Sequence[int],
    *,
    rate: float = 10,
    size: tuple[int, int] = (48, 64),
    times: Sequence[float] | None = None,
    keyframes: int = 12,
    turned: int = 0,
    sound: NDArray[np.float32] | None = None,
    sound_rate: int = 48000,
) -> Path:
    """A video file whose frames show their numbers: what ``numbers`` reads. The name's extension decides the format.

    frames: how many, or the number that each shows (below 30). size: (height, width) as stored. times: seconds at which
    each frame is shown, in place of a constant rate. keyframes: frames from one keyframe to the next. turned: degrees,
    counterclockwise, by which a player turns the pictures. sound: (channels, samples) of a sound track. The upper left
    quarter is white in every frame, so that it shows which way is up.
    """
    import av

    shown = range(frames) if isinstance(frames, int) else frames
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(_CODECS.get(path.suffix, "libx264"), rate=Fraction(rate).limit_denominator(1001))
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = size
        stream.pix_fmt = _PIXELS.get(path.suffix, "yuv420p")
        stream.gop_size = keyframes
        if turned:
            stream.set_display_rotation(turned)
        if times is not None:
            stream.time_base = stream.codec_context.time_base = _TICK
        # Every stream is there before the first packet, which the container's header waits for.
        layout = "mono" if sound is None or len(sound) == 1 else "stereo"
        heard = None if sound is None else container.add_stream("aac", rate=sound_rate, layout=layout)
        _fill_video(container, stream, list(shown), times)
        if heard is not None and sound is not None:
            _fill_sound(container, heard, sound)
    return path


def _fill_video(
    container: OutputContainer, stream: VideoStream, shown: Sequence[int], times: Sequence[float] | None
) -> None:
    import av

    for place, number in enumerate(shown):
        pixels = np.full((stream.height, stream.width, 3), _STEP * number, np.uint8)
        pixels[: stream.height // 2, : stream.width // 2] = 255
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        if times is not None:
            frame.pts, frame.time_base = round(times[place] / _TICK), _TICK
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def _fill_sound(container: OutputContainer, stream: AudioStream, sound: NDArray[np.float32]) -> None:
    import av

    for start in range(0, sound.shape[1], 1024):
        part = np.ascontiguousarray(sound[:, start : start + 1024], np.float32)
        frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=stream.layout.name)
        frame.sample_rate, frame.pts, frame.time_base = stream.rate, start, Fraction(1, stream.rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def numbers(pixels: NDArray[np.uint8]) -> list[int]:
    """Which frame each of (F, H, W, 3) shows, of those that ``write_clip`` made; the lower right corner tells."""
    corner = pixels[:, pixels.shape[1] * 3 // 4 :, pixels.shape[2] * 3 // 4 :]
    return [int(number) for number in np.rint(corner.mean(axis=(1, 2, 3)) / _STEP)]


def tone(seconds: float, rate: int, hertz: float = 440.0, channels: int = 1, loud: float = 0.5) -> NDArray[np.float32]:
    """A sine, (channels, samples) float32; the second channel is half as loud."""
    times = np.arange(round(seconds * rate)) / rate
    wave = (loud * np.sin(2 * np.pi * hertz * times)).astype(np.float32)
    return np.stack([wave / (channel + 1) for channel in range(channels)]).astype(np.float32)


def write_sound(path: Path, sound: NDArray[np.float32], rate: int) -> Path:
    """A sound file; the name's extension decides the format (wav, flac, mp3, ogg). sound: (channels, samples)."""
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound.T, rate)
    return path
