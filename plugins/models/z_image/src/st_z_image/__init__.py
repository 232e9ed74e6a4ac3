"""Z-Image for st: base, Turbo with an assistant, De-Turbo, and Omni."""

from st_z_image.family import ZImage as ZImage
from st_z_image.flavours import ZImageOptions as ZImageOptions

__all__ = ["ZImage", "ZImageOptions"]
