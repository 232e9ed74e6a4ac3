"""FLUX.3 Image Klein for st, base and distilled."""

from st_flux3.family import Flux3 as Flux3
from st_flux3.flavours import Flux3Options as Flux3Options

__all__ = ["Flux3", "Flux3Options"]
