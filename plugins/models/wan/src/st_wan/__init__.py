"""Wan for st: 2.1 and 2.2, from text, from a first frame, and VACE."""

from st_wan.family import Wan as Wan
from st_wan.flavours import WanOptions as WanOptions

__all__ = ["Wan", "WanOptions"]
