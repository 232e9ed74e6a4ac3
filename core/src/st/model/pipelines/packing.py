"""Packing: latents as a denoiser's tokens, squares of 2 x 2 places, for the families whose pipelines pack so."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

EDGE = 2
"""Places along the edge of a token's square."""


def pack(latents: Tensor) -> Tensor:
    """(B, C, H, W) as tokens (B, H/2 * W/2, 4 C), row by row; a token holds channel by channel its square.

    So do the pipelines of diffusers that have a ``_pack_latents`` for pictures.
    """
    batch, channels, height, width = latents.shape
    squares = latents.reshape(batch, channels, height // EDGE, EDGE, width // EDGE, EDGE)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * EDGE**2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of ``pack``; height and width are the latents'."""
    squares = tokens.reshape(len(tokens), height // EDGE, width // EDGE, -1, EDGE, EDGE)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, height, width)


def token_count(latents: Tensor) -> int:
    """Tokens of one sample of these latents (..., H, W)."""
    return latents.shape[-2] // EDGE * (latents.shape[-1] // EDGE)
