"""Flux.1 for st: dev, Krea, schnell, Kontext and their relatives."""

from st_flux.family import Flux as Flux
from st_flux.flavours import FluxOptions as FluxOptions

__all__ = ["Flux", "FluxOptions"]
