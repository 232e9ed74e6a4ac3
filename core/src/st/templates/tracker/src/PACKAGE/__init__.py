"""A tracker for st that writes every metric as a line of a table."""

from PACKAGE.tracker import CLASS

__all__ = ["CLASS"]
