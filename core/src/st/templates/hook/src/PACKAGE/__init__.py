"""A training technique for st: keep a prediction's mean where it belongs."""

from PACKAGE.technique import CLASS

__all__ = ["CLASS"]
