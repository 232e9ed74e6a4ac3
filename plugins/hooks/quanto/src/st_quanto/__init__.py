"""Quantizers of optimum-quanto for st."""

from st_quanto.plugin import Quanto as Quanto

__all__ = ["Quanto"]
