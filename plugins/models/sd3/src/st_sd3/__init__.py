"""Stable Diffusion 3 for st: 3 medium and 3.5 medium, large and large turbo."""

from st_sd3.family import Sd3 as Sd3
from st_sd3.flavours import Sd3Options as Sd3Options

__all__ = ["Sd3", "Sd3Options"]
