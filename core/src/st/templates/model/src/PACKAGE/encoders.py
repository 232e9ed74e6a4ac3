"""The frozen parts: pixels to latents and back, captions to vectors. Formulas here; most families load networks."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import st
import torch
from torch import Tensor, nn

from PACKAGE.family import PATCH, TEXT_WIDTH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from st.data.encoder import Encode

MAX_BYTES = 64


class PatchCodec(st.LatentCodec):
    """Exact: each patch of pixels, scaled to [-1, 1], becomes the channels of one latent pixel."""

    name = "patches"
    reads = ("pixels",)
    fingerprint = f"patches-{PATCH}"

    @contextmanager
    def open(self, device: torch.device) -> Iterator[Encode]:
        def encode(inputs: Sequence[st.Input]) -> list[Mapping[str, Tensor]]:
            pixels = torch.stack([item.pixels for item in inputs if item.pixels is not None])
            latents = nn.functional.pixel_unshuffle(pixels.to(device) * 2 - 1, PATCH)
            return [{"latents": row.clone()} for row in latents.cpu()]

        yield encode

    @contextmanager
    def decoder(self, device: torch.device) -> Iterator[Callable[[Tensor], Tensor]]:
        def decode(latents: Tensor) -> Tensor:
            return (nn.functional.pixel_shuffle(latents.to(device), PATCH) / 2 + 0.5).clamp(0, 1)

        yield decode


class ByteText(st.Encoder):
    """Up to 64 bytes of a caption as vectors: waves of each byte's value, (L, 64), after a row that starts it."""

    name = "bytes"
    reads = ("caption",)
    fingerprint = f"bytes-{TEXT_WIDTH}-{MAX_BYTES}"

    @contextmanager
    def open(self, device: torch.device) -> Iterator[Encode]:
        frequencies = torch.linspace(0.05, 3.0, TEXT_WIDTH // 2)

        def encode(inputs: Sequence[st.Input]) -> list[Mapping[str, Tensor]]:
            rows = [torch.tensor([0, *(item.caption or "").encode()][:MAX_BYTES]) for item in inputs]
            angles = [row[:, None] * frequencies for row in rows]
            return [{"text": torch.cat([angle.sin(), angle.cos()], dim=-1)} for angle in angles]

        yield encode

    def count_tokens(self, caption: str) -> tuple[int, int]:
        length = len(caption.encode()) + 1
        return length, min(length, MAX_BYTES)
