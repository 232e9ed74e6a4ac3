"""A model family for st: an upstream transformer on patches of pixels, told what to draw by the bytes of a caption."""

from PACKAGE.family import CLASS

__all__ = ["CLASS"]
