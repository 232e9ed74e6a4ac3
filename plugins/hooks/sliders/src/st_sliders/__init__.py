"""Concept sliders for st: an adapter that learns one direction from data sets of opposite strengths."""

from st_sliders.technique import Sliders as Sliders
from st_sliders.technique import SlidersOptions as SlidersOptions

__all__ = ["Sliders", "SlidersOptions"]
