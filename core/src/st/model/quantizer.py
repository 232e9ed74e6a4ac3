"""Quantizer: smaller frozen weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn


class Quantizer(Protocol):
    """Replaces a frozen denoiser's weights by smaller ones, layer by layer and deterministically.

    keep: ends of the names of modules to leave as they are. The same weights always give the same quantized weights, so
    a checkpoint never holds them.
    """

    def __call__(self, denoiser: nn.Module, keep: Sequence[str]) -> nn.Module: ...
