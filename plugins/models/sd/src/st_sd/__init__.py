"""Stable Diffusion 1 and 2 for st."""

from st_sd.family import Sd as Sd
from st_sd.flavours import SdOptions as SdOptions

__all__ = ["Sd", "SdOptions"]
