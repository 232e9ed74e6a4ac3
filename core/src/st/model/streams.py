"""What a family says of its latents where one tensor at one time is not all: further streams, and given positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from st.data.encoder import LatentCodec
    from st.diffusion.objective import Batch
    from st.model.family import ModelFamily
    from st.randomness import Draws


@runtime_checkable
class MakesStreams(Protocol):
    """A family whose samples have several latents: a clip and its sound.

    They arrive by name in ``Batch.streams``, and joined in ``Noised`` and predictions: ``batch.layout`` takes them
    apart and joins them.
    """

    def streams(self) -> Mapping[str, LatentCodec]:
        """The codec of each stream by name; the first is ``codec()``, whose latents decide tokens and geometry.

        The others say their ``latent_shape`` at every geometry. A sample of which one of them can make nothing (a clip
        without sound) is named and trains the other streams.
        """
        ...


@runtime_checkable
class PlacesTimes(Protocol):
    """A family whose positions have times of their own: the first frame of a clip at time zero, say."""

    def times(self, t: Tensor, batch: Batch, draws: Draws | None) -> Tensor:
        """From the times of samples, (B,), to those of positions, as ``st.diffusion.layout.broadcast`` reads them.

        Positions at time 0 are given: they are shown clean, and neither scored nor sampled. The answer may be t.
        draws: None in sampling and evaluation, where nothing is drawn.
        """
        ...

    def start(self, noise: Tensor, batch: Batch) -> Tensor:
        """What sampling starts from: ``noise``, like ``Noised.x``, with what is given in its place."""
        ...


def streams_of(family: ModelFamily[Any]) -> Mapping[str, LatentCodec]:
    """The codec of each of a family's streams by name; {} of a family with one."""
    return family.streams() if isinstance(family, MakesStreams) else {}
