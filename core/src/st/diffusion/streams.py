"""Several latents of one sample, such as a clip and its sound, as one tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from st.diffusion.times import broadcast

if TYPE_CHECKING:
    from torch import Tensor


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
