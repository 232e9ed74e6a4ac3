"""Rendered pictures as files: what was rendered, with what, inside the file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from st.errors import StError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from st.report.prompts import Shot

FRAMES_PER_SECOND = 16


def save_picture(pixels: Tensor, path: Path, facts: Mapping[str, str]) -> Path:
    """Write pixels (3, H, W) in [0, 1] as PNG, or a clip (3, F, H, W) as animated WebP; the file that was written.

    path: without a suffix. facts: text chunks of a PNG. Values that are not finite are black.
    """
    from PIL import Image, PngImagePlugin

    array = (pixels.nan_to_num(0.0).clamp(0, 1) * 255).round().byte().cpu().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    if array.ndim == 3:
        chunks = PngImagePlugin.PngInfo()
        for name, text in facts.items():
            chunks.add_itxt(name, text)
        written = path.with_name(path.name + ".png")
        Image.fromarray(array.transpose(1, 2, 0)).save(written, pnginfo=chunks)
        return written
    if array.ndim == 4:
        first, *others = [Image.fromarray(frame) for frame in array.transpose(1, 2, 3, 0)]
        written = path.with_name(path.name + ".webp")
        first.save(written, save_all=True, append_images=others, duration=1000 // FRAMES_PER_SECOND, loop=0)
        return written
    raise StError(f"pixels of shape {tuple(pixels.shape)} are neither a picture nor a clip")


def recipe(shot: Shot, size: str, sampler: str) -> dict[str, str]:
    """How a picture was made, under the key and in the words that picture viewers of the field read."""
    negative = f"Negative prompt: {shot.negative}\n" if shot.guided and shot.negative else ""
    settings = f"Steps: {shot.steps}, Sampler: {sampler}, CFG scale: {shot.guidance:g}, Seed: {shot.seed}, Size: {size}"
    return {"parameters": f"{shot.prompt}\n{negative}{settings}"}
