"""Lumina-Image 2.0 for st, and Neta Lumina."""

from st_lumina2.family import Lumina2 as Lumina2
from st_lumina2.flavours import Lumina2Options as Lumina2Options

__all__ = ["Lumina2", "Lumina2Options"]
