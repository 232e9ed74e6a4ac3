"""PixArt Sigma for st."""

from st_pixart.family import PixArt as PixArt
from st_pixart.flavours import PixArtOptions as PixArtOptions

__all__ = ["PixArt", "PixArtOptions"]
