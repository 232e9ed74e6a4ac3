"""Codec: the autoencoder of Flux.2, whose latents are squares of 2 x 2 places, normalised one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from st.model.pipelines.packing import EDGE
from st.model.pipelines.pipeline_codec import PipelineCodec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from st import Geometry


class Flux2Codec(PipelineCodec):
    """Latents are (B, 4 C, H/16, W/16): channel by channel a square of 2 x 2 places of the autoencoder's C channels.

    Each of the 4 C is normalised by the mean and variance that the autoencoder's batch norm has counted.
    """

    def latent_shape(self, geometry: Geometry) -> tuple[int, ...]:
        config = self.folder.config(self.component)
        edge = EDGE * 2 ** (len(config["block_out_channels"]) - 1)
        return EDGE**2 * int(config["latent_channels"]), geometry.height // edge, geometry.width // edge

    def normalise(self, autoencoder: nn.Module, z: Tensor) -> Tensor:
        mean, deviation = self.statistics(autoencoder)
        return (squares(z) - mean) / deviation

    def denormalise(self, autoencoder: nn.Module, latents: Tensor) -> Tensor:
        mean, deviation = self.statistics(autoencoder)
        return places_of(latents * deviation + mean)

    def epsilon(self, autoencoder: Any) -> float:
        """What is added to each variance; overridden for a pipeline that does not take the autoencoder's."""
        return float(autoencoder.config.batch_norm_eps)

    def statistics(self, autoencoder: Any) -> tuple[Tensor, Tensor]:
        """Mean and deviation of latents, (1, 4 C, 1, 1) float32 each."""
        norm = autoencoder.bn
        mean, variance = (one.float().view(1, -1, 1, 1) for one in (norm.running_mean, norm.running_var))
        return mean, (variance + self.epsilon(autoencoder)).sqrt()


def squares(z: Tensor) -> Tensor:
    """(B, C, H, W) as (B, 4 C, H/2, W/2): of each channel the four places of a square, row by row."""
    from torch.nn.functional import pixel_unshuffle

    return pixel_unshuffle(z, EDGE)


def places_of(latents: Tensor) -> Tensor:
    """The inverse of ``squares``."""
    from torch.nn.functional import pixel_shuffle

    return pixel_shuffle(latents, EDGE)
