"""Flux.2 for st: dev and klein; and its latents, which other families share."""

from st_flux2.codec import Flux2Codec as Flux2Codec
from st_flux2.family import Flux2 as Flux2
from st_flux2.flavours import Flux2Options as Flux2Options

__all__ = ["Flux2", "Flux2Codec", "Flux2Options"]
