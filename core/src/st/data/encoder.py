"""Encoder: a frozen network (or a formula) whose outputs are computed once and cached."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    import torch
    from torch import Tensor

    from st.data.geometry import Geometry

    Encode = Callable[[Sequence["Input"]], list[Mapping[str, Tensor]]]


@dataclass(frozen=True, slots=True)
class Input:
    """What an encoder is given of one sample: the field that its ``reads`` names; the others are None.

    pixels: (3, H, W) or (3, F, H, W), float32 in [0, 1], at exactly ``geometry``. audio: (channels, samples), float32.
    All inputs of one call share one geometry.
    """

    key: str
    geometry: Geometry | None = None
    caption: str | None = None
    pixels: Tensor | None = None
    audio: Tensor | None = None


class Encoder(ABC):
    """A frozen network whose outputs are computed once and cached: an autoencoder, a text encoder, a feature extractor.

    name: unique within the family ("vae", "t5"). fingerprint: changes exactly when outputs would: class, weights, token
    budget, precision.
    """

    name: str
    reads: Literal["pixels", "caption", "audio"]

    @property
    @abstractmethod
    def fingerprint(self) -> str: ...

    @abstractmethod
    def open(self, device: torch.device) -> AbstractContextManager[Encode]:
        """Load the network for the length of a ``with``; one encoder is in memory at a time.

        The callable returns one mapping per input, on the CPU, without a batch dimension and without padding, so that a
        caption's entry is the same whatever it was batched with.
        """

    def count_tokens(self, caption: str) -> tuple[int, int] | None:
        """(tokens in the caption, tokens that this encoder reads of it), or None where nothing is ever cut off."""
        return None


class LatentCodec(Encoder):
    """An Encoder of pixels or sound that can also decode.

    Its entries hold ``latents`` (C, H, W), (C, F, H, W) or (C, S) exactly as the denoiser expects them: a codec applies
    its own scale, shift and statistics; nothing else knows them.
    """

    @abstractmethod
    def decoder(self, device: torch.device) -> AbstractContextManager[Callable[[Tensor], Tensor]]:
        """Load the decoder for the length of a ``with``: latents (B, ...) to pixels in [0, 1], (B, 3, [F,] H, W)."""
