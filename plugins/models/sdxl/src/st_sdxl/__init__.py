"""Stable Diffusion XL for st."""

from st_sdxl.family import Sdxl as Sdxl
from st_sdxl.settings import SdxlOptions as SdxlOptions

__all__ = ["Sdxl", "SdxlOptions"]
