"""REPA and CREPA for st: a denoiser's tokens learn to agree with features of a vision encoder."""

from st_crepa.options import CrepaOptions as CrepaOptions
from st_crepa.technique import Crepa as Crepa

__all__ = ["Crepa", "CrepaOptions"]
