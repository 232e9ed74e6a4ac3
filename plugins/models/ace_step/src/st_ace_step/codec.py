"""SoundCodec: the autoencoder of waveforms as a codec."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from st.model.pipelines.pipeline_codec import PipelineCodec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from st import Geometry
    from st.model.checkpoint.checkpoint_folder import CheckpointFolder


class SoundCodec(PipelineCodec):
    """Waveforms (channels, samples) in [-1, 1] to latents (C, S), which have no statistics: they are what it gives.

    A remainder at the end that makes no whole latent is heard, and not given back.
    """

    reads = ("audio",)

    def __init__(
        self,
        folder: CheckpointFolder,
        component: str,
        dtype: str,
        latents: Literal["mode", "sample"] = "sample",
        *,
        tiling: bool = False,
    ) -> None:
        super().__init__(folder, component, dtype, latents)
        self.tiling = tiling
        config = folder.config(component)
        self.sample_rate, self.channels = int(config["sampling_rate"]), int(config["audio_channels"])
        self.samples_per_latent = math.prod(config["downsampling_ratios"])
        self.latent_channels = int(config["decoder_input_channels"])

    @property
    def fingerprint(self) -> str:
        return f"{super().fingerprint}-tiled" if self.tiling else super().fingerprint

    def load(self, device: torch.device) -> Any:
        autoencoder = super().load(device)
        if self.tiling:
            autoencoder.enable_tiling()
        return autoencoder

    def latent_shape(self, geometry: Geometry) -> tuple[int, ...]:
        return self.latent_channels, round(geometry.seconds * self.sample_rate) // self.samples_per_latent

    def enter(self, media: Tensor) -> Tensor:
        return media

    def leave(self, decoded: Tensor) -> Tensor:
        return decoded.clamp(-1, 1)
