"""Space to depth: a codec that is a change of shape, so that latents are the picture itself."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from st import LatentCodec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch
    from torch import Tensor

    from st import Geometry, Input
    from st.data.encoder import Encode, Reads


class SpaceToDepth(LatentCodec):
    """Every square of ``edge`` x ``edge`` pixels becomes one place with 3 * edge**2 channels in [-1, 1].

    Latents are (3 * edge**2, H / edge, W / edge), float32. Every 8-bit picture comes back as it was.
    """

    name = "pixels"
    reads: tuple[Reads, ...] = ("pixels",)

    def __init__(self, edge: int) -> None:
        self.edge = edge

    @property
    def depth(self) -> int:
        """C of the latents."""
        return 3 * self.edge**2

    @property
    def fingerprint(self) -> str:
        return f"pocket-space-to-depth-1-{self.edge}"

    @contextmanager
    def open(self, device: torch.device) -> Iterator[Encode]:
        yield self._encode

    @contextmanager
    def decoder(self, device: torch.device) -> Iterator[Callable[[Tensor], Tensor]]:
        yield self._decode

    def latent_shape(self, geometry: Geometry) -> tuple[int, ...]:
        return self.depth, geometry.height // self.edge, geometry.width // self.edge

    def _encode(self, inputs: Sequence[Input]) -> list[Mapping[str, Tensor]]:
        from torch.nn.functional import pixel_unshuffle

        pixels = [given.pixels for given in inputs if given.pixels is not None]
        return [{"latents": pixel_unshuffle(each * 2 - 1, self.edge)} for each in pixels]

    def _decode(self, latents: Tensor) -> Tensor:
        from torch.nn.functional import pixel_shuffle

        return ((pixel_shuffle(latents, self.edge) + 1) / 2).clamp(0, 1)
