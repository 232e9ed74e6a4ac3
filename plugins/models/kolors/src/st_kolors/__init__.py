"""Kwai Kolors for st."""

from st_kolors.family import Kolors as Kolors
from st_kolors.settings import KolorsOptions as KolorsOptions

__all__ = ["Kolors", "KolorsOptions"]
