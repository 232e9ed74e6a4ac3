"""A place where samples for st come from: one zip file."""

from PACKAGE.backend import CLASS

__all__ = ["CLASS"]
