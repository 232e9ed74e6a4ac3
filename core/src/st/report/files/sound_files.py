"""Rendered sounds as files, and what a sound in a file looks like."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from st.importing import needing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

SOUNDS = frozenset({".wav", ".flac", ".mp3", ".ogg", ".opus"})
"""Endings of files that browsers play as sounds."""
COLUMNS, HEIGHT, COLOUR = 240, 64, "#6b8cae"
COMMENT_BYTES = 2045
"""The most that libsndfile writes into a WAV; it leaves out the whole of a longer comment, such as a song's lyrics."""


@dataclass(frozen=True, slots=True)
class Sound:
    """A sound (channels, samples) in [-1, 1], with its rate in Hz."""

    samples: Tensor
    sample_rate: int

    @property
    def layout(self) -> Literal["mono", "stereo"]:
        """Of its channels, as PyAV names it."""
        return "mono" if len(self.samples) == 1 else "stereo"


def save_sound(sound: Tensor, path: Path, facts: Mapping[str, str], rate: int) -> Path:
    """Write a sound (channels, samples) in [-1, 1] as WAV of 16 bits, which every browser plays; the written file.

    path: without a suffix. facts: comments in the file. Values that are not finite are silence.
    """
    with needing("soundfile", "sounds are written with soundfile", "sounds"):
        import soundfile

    array = sound.float().nan_to_num(0.0, 0.0, 0.0).clamp(-1, 1).cpu().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(path.name + ".wav")
    with soundfile.SoundFile(written, "w", rate, len(array), "PCM_16") as file:
        if facts:
            # Before the sound: readers of streams stop looking where it begins.
            file.comment = _at_most(COMMENT_BYTES, "\n".join(facts.values()))
        file.write(array.T)
    return written


def waveform(path: Path) -> str:
    """How loud the sound of a file is from moment to moment, as SVG; '' where it cannot be read."""
    import numpy as np
    import soundfile

    try:
        array, _ = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, soundfile.LibsndfileError):
        return ""
    edges = np.linspace(0, len(array), COLUMNS + 1).astype(int)
    peaks = [float(np.abs(array[low:high]).max(initial=0.0)) for low, high in pairwise(edges)]
    middle = HEIGHT / 2
    bars = "".join(
        f"M{column + 0.5} {middle - peak * middle:.1f}V{middle + peak * middle:.1f}"
        for column, peak in enumerate(max(one, 0.02) for one in peaks)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {COLUMNS} {HEIGHT}" width="{COLUMNS}" height="{HEIGHT}">'
        f'<path d="{bars}" stroke="{COLOUR}" stroke-width="0.8"/></svg>'
    )


def _at_most(size_bytes: int, text: str) -> str:
    whole = text.encode()
    return text if len(whole) <= size_bytes else whole[: size_bytes - 3].decode(errors="ignore") + "..."
