"""How times lie over latents, one for each sample or for each position, and several latents in one tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
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
        "times of tokens are brought to positions by st.diffusion.layout.from_tokens"
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


@dataclass(frozen=True, slots=True)
class Layout:
    """Which streams lie one after another in a tensor (B, N), and the shape of each without the batch.

    Mixing, sampling and distances are made of single numbers: they need not know that there are several streams.
    """

    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, streams: Mapping[str, Tensor]) -> Self:
        """The layout of these streams, (B, ...) each."""
        return cls({name: tuple(tensor.shape[1:]) for name, tensor in streams.items()})

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of each stream."""
        return tuple(math.prod(shape) for shape in self.shapes.values())

    def join(self, streams: Mapping[str, Tensor]) -> Tensor:
        """All streams as one tensor, (B, N). Raises ValueError where one is missing or has another shape."""
        import torch

        found = {name: tuple(tensor.shape[1:]) for name, tensor in streams.items()}
        if found != dict(self.shapes):
            raise ValueError(f"streams {found} are joined where {dict(self.shapes)} are wanted")
        return torch.cat([streams[name].flatten(1) for name in self.shapes], dim=1)

    def split(self, joined: Tensor) -> dict[str, Tensor]:
        """The streams of a tensor (B, N), each (B, ...). Raises ValueError for a tensor of another size."""
        import torch

        if joined.ndim != 2 or joined.shape[1] != sum(self.sizes):
            raise ValueError(f"a tensor {tuple(joined.shape)} does not hold the streams {dict(self.shapes)}")
        parts = zip(self.shapes.items(), torch.split(joined, list(self.sizes), dim=1), strict=True)
        return {name: part.reshape(-1, *shape) for (name, shape), part in parts}

    def join_times(self, times: Mapping[str, Tensor]) -> Tensor:
        """Times of each stream's samples or positions, as ``broadcast`` reads them, as one tensor, (B, N)."""
        spread = {name: broadcast(times[name], (len(times[name]), *shape)) for name, shape in self.shapes.items()}
        return self.join({name: one.expand(len(one), *self.shapes[name]) for name, one in spread.items()})

    def split_times(self, times: Tensor) -> dict[str, Tensor]:
        """Times by stream: those of samples, (B,), as they are, those of positions like the stream."""
        return dict.fromkeys(self.shapes, times) if times.ndim == 1 else self.split(times)


def _positions(shape: Sequence[int]) -> Grid:
    """(frames, height, width); a picture has one frame, a sound one row."""
    *before, width = shape[2:]
    frames, height = (*[1] * (2 - len(before)), *before)
    return frames, height, width
