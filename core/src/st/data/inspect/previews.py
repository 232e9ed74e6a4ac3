"""Previews of clips and sounds for a page: what a window holds, playing in the page itself."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from st.data.media.media_reader import reader_of
from st.importing import needing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from st.data.geometry import Fit
    from st.data.sets.prepare import PreparedSet

EDGE = 320
"""Longest edge of a clip's pictures, in pixels."""

MOST_FRAMES = 48
"""Pictures of one clip; of a longer one every second, third, ... is shown, at the speed of the whole."""

MOST_SECONDS = 15.0
"""How much of a sound is in the page."""

_RATE = 44100
_COLUMNS = 300


def clip_preview(one: PreparedSet, row: int) -> str:
    """The window as an animation, with the times of its frames. Raises SampleUnreadable."""
    key, fit = one.index.key(row), one.index.fit(row)
    with one.open(row) as file:
        frames = reader_of(one.index.kind(row)).pixels(key, file, fit)
    step = -(-len(frames) // MOST_FRAMES)
    shown = [_small(frame) for frame in frames[::step]]
    buffer = io.BytesIO()
    rate = fit.rate or 25.0
    milliseconds = max(1, round(1000 * step / rate))
    shown[0].save(
        buffer, "WEBP", save_all=True, append_images=shown[1:], duration=milliseconds, loop=0, quality=70, method=0
    )
    times = [f"{fit.start + number / rate:.2f}" for number in range(len(frames))]
    listed = ", ".join(times if len(times) < 8 else (*times[:6], "...", times[-1]))
    size = f"{fit.resized[1]}x{fit.resized[0]}, crop at {fit.crop[1]},{fit.crop[0]}"
    return (
        f'<img loading=lazy alt="" width={shown[0].width} height={shown[0].height} '
        f'src="data:image/webp;base64,{_text(buffer)}">'
        f"<small>{len(frames)} frames at {rate:g}/s, shown at {listed} s; {size}</small>"
    )


def sound_preview(one: PreparedSet, row: int) -> str:
    """The beginning of the window as a waveform and a player. Raises SampleUnreadable."""
    with needing("soundfile", "sounds are played with soundfile", "sounds"):
        import soundfile

    key, fit = one.index.key(row), one.index.fit(row)
    with one.open(row) as file:
        heard = reader_of(one.index.kind(row)).audio(key, file, _beginning(fit), _RATE, 2)
    buffer = io.BytesIO()
    soundfile.write(buffer, heard.T, _RATE, format="MP3")
    cut = f", the first {MOST_SECONDS:g} s" if fit.duration > MOST_SECONDS else ""
    where = f"{fit.start:.2f} s to {fit.start + fit.duration:.2f} s{cut}"
    return (
        f'{_wave(heard)}<audio controls preload=none src="data:audio/mpeg;base64,{_text(buffer)}"></audio>'
        f"<small>{escape(where)}</small>"
    )


def _beginning(fit: Fit) -> Fit:
    if fit.rate:
        frames = min(fit.geometry.frames, int(MOST_SECONDS * fit.rate))
        return replace(fit, geometry=replace(fit.geometry, frames=frames))
    return replace(fit, geometry=replace(fit.geometry, seconds=min(fit.geometry.seconds, MOST_SECONDS)))


def _wave(heard: NDArray[np.float32]) -> str:
    """The peaks of a sound, (channels, samples), as a drawing."""
    parts = np.array_split(np.abs(heard).max(axis=0), _COLUMNS)
    peaks = [min(1.0, float(part.max(initial=0.0))) for part in parts]
    lines = " ".join(f"M{place} {50 - 50 * peak:.1f}V{50 + 50 * peak:.1f}" for place, peak in enumerate(peaks))
    return (
        f'<svg viewBox="0 0 {_COLUMNS} 100" width="100%" height=80 preserveAspectRatio=none>'
        f'<path d="{lines}" stroke="#4a7dff" fill=none /></svg>'
    )


def _small(frame: NDArray[np.uint8]) -> Image.Image:
    picture = Image.fromarray(frame)
    picture.thumbnail((EDGE, EDGE))
    return picture


def _text(buffer: io.BytesIO) -> str:
    return base64.b64encode(buffer.getvalue()).decode()
