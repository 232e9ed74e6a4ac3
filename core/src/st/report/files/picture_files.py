"""What was rendered as files: pictures, clips and sounds, with what they were made of inside the file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from st.errors import StError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from st.report.files.sound_files import Sound

ENDINGS = (".png", ".mp4", ".wav")
"""Of the files that are written."""


def save_picture(
    pixels: Tensor,
    path: Path,
    facts: Mapping[str, str],
    sample_rate: int = 0,
    *,
    frames_per_second: float = 0.0,
    sound: Sound | None = None,
) -> Path:
    """Write pixels (3, H, W) in [0, 1] as PNG, a clip (3, F, H, W) as MP4, or a sound (channels, samples) in [-1, 1] as
    WAV; the file that was written.

    A clip of one frame is a picture. path: without a suffix. facts: text chunks of a PNG, the comment of an MP4 or WAV.
    sample_rate: of a sound, in Hz. frames_per_second: of a clip. sound: what is heard with a clip. Values that are not
    finite are black, or silence.
    """
    from PIL import Image, PngImagePlugin

    from st.report.files.clip_files import save_clip
    from st.report.files.sound_files import save_sound

    if pixels.ndim == 2:
        assert sample_rate > 0, "a sound has a sample rate"
        return save_sound(pixels, path, facts, sample_rate)
    if pixels.ndim == 4 and pixels.shape[1] == 1:
        pixels = pixels[:, 0]
    if pixels.ndim == 4:
        assert frames_per_second > 0, "a clip has a number of frames per second"
        return save_clip(pixels, path, facts, frames_per_second, sound)
    array = (pixels.nan_to_num(0.0).clamp(0, 1) * 255).round().byte().cpu().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    if array.ndim == 3:
        chunks = PngImagePlugin.PngInfo()
        for name, text in facts.items():
            chunks.add_itxt(name, text)
        written = path.with_name(path.name + ".png")
        Image.fromarray(array.transpose(1, 2, 0)).save(written, pnginfo=chunks)
        return written
    raise StError(f"pixels of shape {tuple(pixels.shape)} are neither a picture nor a clip nor a sound")
