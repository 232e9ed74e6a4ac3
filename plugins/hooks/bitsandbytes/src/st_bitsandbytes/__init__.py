"""Quantizers of bitsandbytes for st."""

from st_bitsandbytes.plugin import BitsAndBytes as BitsAndBytes

__all__ = ["BitsAndBytes"]
