"""A command for st that says how far a run is."""

from PACKAGE.command import CLASS

__all__ = ["CLASS"]
