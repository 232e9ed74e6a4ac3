"""Encoder: a frozen network (or a formula) whose outputs are computed once and cached."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    import torch
    from torch import Tensor

    from st.data.geometry import Geometry

    Encode = Callable[[Sequence["Input"]], list[Mapping[str, Tensor]]]

Role = Literal["caption", "negative", "dropped"]
"""What a text is used for: a sample's caption or a prompt, what guidance leads away from, or nothing, in place of a
caption that was dropped."""
Reads = Literal["caption", "role", "pixels", "audio", "references"]
"""Something that an encoder is given of a sample."""


@dataclass(frozen=True, slots=True)
class Input:
    """What an encoder is given of one sample: the fields that its ``reads`` names; the others are as they are here.

    pixels: (3, H, W) of a picture, (3, F, H, W) of a clip, float32 in [0, 1], at exactly ``geometry``. audio:
    (channels, samples), float32, at the encoder's ``sample_rate`` and ``channels``, as loud as it is stored. fps:
    frames per second of a clip. facts: those of the sample that the encoder's ``facts`` name, beside the caption; those
    it lacks are absent. role: what the caption is used for. references: pixels of the pictures that the model is shown
    beside the noise, in their order. All inputs of one call share one geometry.
    """

    key: str
    geometry: Geometry | None = None
    caption: str | None = None
    pixels: Tensor | None = None
    audio: Tensor | None = None
    fps: float = 0.0
    facts: Mapping[str, str] = field(default_factory=dict)
    role: Role = "caption"
    references: tuple[Tensor, ...] = ()


class Encoder(ABC):
    """A frozen network whose outputs are computed once and cached: an autoencoder, a text encoder, a feature extractor.

    name: unique within the family ("vae", "t5"). reads: everything of a sample that outputs depend on, in any order; an
    entry of the cache is named after all of it. fingerprint: changes exactly when outputs would: class, weights, token
    budget, precision. sample_rate, channels: what an encoder of audio is given, in Hz and 1 or 2. facts: names of what
    an encoder of captions reads of a sample beside its caption, such as ``lyrics``. All are known without the network.
    """

    name: str
    reads: tuple[Reads, ...]
    sample_rate: int = 0
    channels: int = 0
    facts: tuple[str, ...] = ()

    @property
    @abstractmethod
    def fingerprint(self) -> str: ...

    @property
    def reads_captions(self) -> bool:
        """Whether what it gives depends on a text."""
        return "caption" in self.reads

    @property
    def reads_samples(self) -> bool:
        """Whether what it gives depends on a sample's own pixels, sound or references."""
        return any(what not in ("caption", "role") for what in self.reads)

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
    """An Encoder of pixels or of sound, and of nothing else, that can also decode.

    Its entries hold ``latents`` (C, H, W), (C, F, H, W) or (C, S) exactly as the denoiser expects them: a codec applies
    its own scale, shift and statistics; nothing else knows them. frames_per_second: that clips are decoded at.
    """

    frames_per_second: float = 16.0

    @abstractmethod
    def decoder(self, device: torch.device) -> AbstractContextManager[Callable[[Tensor], Tensor]]:
        """Load the decoder for the length of a ``with``: latents (B, ...) to pixels in [0, 1], (B, 3, [F,] H, W).

        A codec of audio gives sound in [-1, 1], (B, channels, samples), at its ``sample_rate``.
        """

    def latent_shape(self, geometry: Geometry) -> tuple[int, ...] | None:
        """The shape of one sample's latents at this geometry; None where only encoding one tells."""
        return None
