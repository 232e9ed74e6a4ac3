"""Pictures to measure with: made from seeded random numbers, with about the detail and file size of photographs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

SMALL = tuple((16 * width, 16 * height) for width in range(4, 14, 2) for height in range(4, 20, 2))
"""Forty sizes of a few kilobytes each, (width, height): scanning reads headers, whatever follows them."""

WORDS = ("a", "photo", "of", "an", "old", "red", "boat", "on", "the", "quiet", "lake", "at", "dusk", "with", "trees")


def jpeg(size: tuple[int, int], seed: int) -> bytes:
    """A JPEG file: smooth colours with grain on top."""
    import numpy as np
    from PIL import Image

    width, height = size
    draws = np.random.default_rng(seed)
    coarse = draws.integers(0, 255, (max(height // 32, 2), max(width // 32, 2), 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), np.int16)
    grain = draws.integers(-12, 13, (height, width, 1), dtype=np.int16)
    buffer = BytesIO()
    Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def caption(number: int) -> str:
    """A caption of 16 to 60 words, another one for each number."""
    length = 15 + number * 17 % 45
    words = [WORDS[(number * 3 + place * 5) % len(WORDS)] for place in range(length)]
    return f"{' '.join(words)} {number}"


def write_folder(folder: Path, files: Iterator[bytes] | Sequence[bytes]) -> Path:
    """``files`` as 0000000.jpg and so on, each beside its caption in a text file."""
    folder.mkdir(parents=True)
    for number, data in enumerate(files):
        (folder / f"{number:07d}.jpg").write_bytes(data)
        (folder / f"{number:07d}.txt").write_text(caption(number), encoding="utf-8")
    return folder


def write_small(folder: Path, count: int) -> Path:
    """Many small pictures of forty sizes."""
    kinds = [jpeg(size, seed) for seed, size in enumerate(SMALL)]
    return write_folder(folder, (kinds[number * 17 % len(kinds)] for number in range(count)))


def write_photos(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """Pictures that all differ, of one size."""
    return write_folder(folder, (jpeg(size, seed) for seed in range(count)))
