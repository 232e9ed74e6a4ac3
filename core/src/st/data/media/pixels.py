"""Pixels: pictures as they are, for what reads them without an autoencoder."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from st.data.encoder import Encoder, Input

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch
    from torch import Tensor

    from st.data.encoder import Encode


class Pixels(Encoder):
    """A picture's own pixels, cropped as training sees it: ``latents`` (3, H, W) uint8 in [0, 255]."""

    name = "pixels"
    reads = ("pixels",)
    fingerprint = "1"

    @contextmanager
    def open(self, device: torch.device) -> Iterator[Encode]:
        import torch

        def encode(inputs: Sequence[Input]) -> list[Mapping[str, Tensor]]:
            given = [one.pixels for one in inputs if one.pixels is not None]
            assert len(given) == len(inputs), "this encoder reads pixels"
            return [{"latents": (pixels * 255).round().to(torch.uint8)} for pixels in given]

        yield encode
