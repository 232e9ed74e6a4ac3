"""TREAD for st: the middle of a denoiser trains on a part of the tokens."""

from st_tread.options import Route as Route
from st_tread.options import TreadOptions as TreadOptions
from st_tread.technique import Tread as Tread

__all__ = ["Route", "Tread", "TreadOptions"]
