"""Times: one for each sample, or one for each of its positions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

Grid = tuple[int, int, int]
"""(frames, rows, columns) of tokens."""


def broadcast(times: Tensor, shape: Sequence[int]) -> Tensor:
    """Times, or what belongs to them, with as many dimensions as latents of a shape (B, C, ...positions).

    times: (B,), one for each sample; (B, S), one for each of the S positions; or broadcastable as it is, such as
    (B, 1, F, 1, 1). Raises ValueError for anything else: it would be read as something that was not meant.
    """
    if times.ndim == len(shape):
        if all(own in (1, wanted) for own, wanted in zip(times.shape, shape, strict=True)):
            return times
    elif times.ndim == 1 and len(times) in (1, shape[0]):
        return times.reshape(-1, *[1] * (len(shape) - 1))
    elif times.ndim == 2 and times.shape[1] == math.prod(shape[2:]):
        return times.reshape(-1, 1, *shape[2:])
    raise ValueError(
        f"times {tuple(times.shape)} fit neither the samples nor the positions of latents {tuple(shape)}; "
        "times of tokens are brought to positions by st.diffusion.times.from_tokens"
    )


def from_tokens(times: Tensor, shape: Sequence[int], grid: Grid) -> Tensor:
    """Times of tokens (B, S) as times of positions, (B, 1, ...positions), for latents (B, C, [F,] H, W)."""
    frames, height, width = _positions(shape)
    by_token = times.reshape(-1, 1, *grid)
    for dim, (size, count) in enumerate(zip((frames, height, width), grid, strict=True), start=2):
        by_token = by_token.repeat_interleave(size // count, dim)
    return by_token.reshape(-1, 1, *shape[2:])


def to_tokens(times: Tensor, shape: Sequence[int], grid: Grid) -> Tensor:
    """Times of any shape that ``broadcast`` takes as times of tokens, (B, S): what a denoiser is told.

    A token that covers several positions has the time of the first of them.
    """
    frames, height, width = _positions(shape)
    spread = broadcast(times, shape)
    everywhere = spread.expand(shape[0], spread.shape[1], *shape[2:])[:, 0].reshape(-1, frames, height, width)
    steps = (frames // grid[0], height // grid[1], width // grid[2])
    return everywhere[:, :: steps[0], :: steps[1], :: steps[2]].flatten(1)


def _positions(shape: Sequence[int]) -> Grid:
    """(frames, height, width); a picture has one frame, a sound one row."""
    *before, width = shape[2:]
    frames, height = (*[1] * (2 - len(before)), *before)
    return frames, height, width
