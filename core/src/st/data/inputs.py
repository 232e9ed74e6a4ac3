"""Inputs: a sample's bytes as an encoder is given them, read and decoded ahead of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from st.data.encoder import Input
from st.data.picture import decode, decode_mask
from st.errors import SampleUnreadable

if TYPE_CHECKING:
    from st.data.geometry import Geometry
    from st.data.prepare import PreparedSet

T = TypeVar("T")
R = TypeVar("R")

AHEAD_BYTES = 1 << 30
"""Decoded pixels that may wait for the encoder. A long clip fills it alone, and then one is decoded at a time."""


def media_input(one: PreparedSet, row: int, data: bytes) -> Input:
    """A sample for an encoder of pixels. Raises SampleUnreadable."""
    key, fit = one.index.key(row), one.index.fit(row)
    if fit.geometry.frames != 1 or not fit.geometry.height:
        raise SampleUnreadable(key, f"only pictures can be decoded, and this is {fit.geometry}")
    pixels = torch.from_numpy(decode(key, data, fit)).permute(2, 0, 1)
    return Input(key, fit.geometry, pixels=pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255))


def mask_tensor(one: PreparedSet, row: int, data: bytes, height: int, width: int) -> Tensor:
    """A sample's mask, cropped as its picture, averaged over each latent: (H, W) uint8, 255 where the loss counts."""
    whole = torch.from_numpy(decode_mask(one.index.key(row), data, one.index.fit(row)))
    small = torch.nn.functional.interpolate(whole[None, None].float(), size=(height, width), mode="area")
    return small[0, 0].round().to(torch.uint8)


def window(geometry: Geometry, batch: int) -> int:
    """How many samples of a geometry are decoded ahead: two batches, or what fits into AHEAD_BYTES; one at least."""
    size_bytes = max(geometry.height * geometry.width * geometry.frames * 3 * 4, 1)
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
