"""A small diffusion model for st that needs no download and learns on a CPU."""

from st_pocket.family import Pocket as Pocket
from st_pocket.family import PocketOptions as PocketOptions

__all__ = ["Pocket", "PocketOptions"]
