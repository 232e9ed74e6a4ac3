"""Inputs: a sample's bytes as an encoder is given them, read and decoded ahead of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from st.data.encoder import Input
from st.data.media.media_reader import reader_of
from st.data.media.picture import decode_mask
from st.errors import SampleUnreadable

if TYPE_CHECKING:
    from typing import BinaryIO

    from st.data.encoder import Encoder
    from st.data.geometry import Geometry
    from st.data.sets.prepare import PreparedSet

_MOST_SAMPLES = 96_000
"""Numbers per second of sound that are reckoned with: two channels at 48 kHz."""

T = TypeVar("T")
R = TypeVar("R")

SILENCE = 1e-4
"""Peak, of 1, below which nothing is heard: -80 dB, three times the dither of 16 bits."""

AHEAD_BYTES = 1 << 30
"""Decoded pixels that may wait for the encoder. A long clip fills it alone, and then one is decoded at a time."""


def media_input(one: PreparedSet, row: int, file: BinaryIO, encoder: Encoder) -> Input:
    """A sample for an encoder of pixels or sound. file: what ``one.open(row)`` gave. Raises SampleUnreadable."""
    key, fit = one.index.key(row), one.index.fit(row)
    shown = pixels_of(one, row, file) if "pixels" in encoder.reads else None
    heard = _sound(one, row, file, encoder) if "audio" in encoder.reads else None
    return Input(key, fit.geometry, pixels=shown, audio=heard, fps=fit.rate)


def pixels_of(one: PreparedSet, row: int, file: BinaryIO) -> Tensor:
    """(3, [F,] H, W) float32 in [0, 1]."""
    key, fit, reader = one.index.key(row), one.index.fit(row), reader_of(one.index.kind(row))
    pixels = torch.from_numpy(reader.pixels(key, file, fit)).movedim(-1, 0)
    return pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def _sound(one: PreparedSet, row: int, file: BinaryIO, encoder: Encoder) -> Tensor:
    key, fit, reader = one.index.key(row), one.index.fit(row), reader_of(one.index.kind(row))
    rate, channels = encoder.sample_rate, encoder.channels
    assert rate and channels, f"encoder {encoder.name!r} reads sound and says neither its rate nor its channels"
    heard = reader.audio(key, file, fit, rate, channels)
    if not one.config.options.keep_silence and float(abs(heard).max(initial=0.0)) < SILENCE:
        raise SampleUnreadable(key, f"it is silent from {fit.start:.2f} s to {fit.start + fit.duration:.2f} s")
    return torch.from_numpy(heard)


def mask_tensor(one: PreparedSet, row: int, data: bytes, height: int, width: int) -> Tensor:
    """A sample's mask, cropped as its picture, averaged over each latent: (H, W) uint8, 255 where the loss counts."""
    whole = torch.from_numpy(decode_mask(one.index.key(row), data, one.index.fit(row)))
    small = torch.nn.functional.interpolate(whole[None, None].float(), size=(height, width), mode="area")
    return small[0, 0].round().to(torch.uint8)


def window(geometry: Geometry, batch: int) -> int:
    """How many samples of a geometry are decoded ahead: two batches, or what fits into AHEAD_BYTES; one at least."""
    pixels = geometry.height * geometry.width * geometry.frames * 3
    samples = int(geometry.seconds * _MOST_SAMPLES)
    size_bytes = max((pixels + samples) * 4, 1)
    return max(1, min(2 * batch, AHEAD_BYTES // size_bytes))


def ahead(
    pool: ThreadPoolExecutor, work: Iterable[T], do: Callable[[T], R], limit: Callable[[T], int]
) -> Iterator[tuple[T, Future[R]]]:
    """Each piece of work with its finished future, in order, while the pool does at most ``limit`` further ones."""
    waiting: deque[tuple[T, Future[R]]] = deque()
    for one in work:
        while len(waiting) >= limit(one):
            yield waiting.popleft()
        waiting.append((one, pool.submit(do, one)))
    yield from waiting
