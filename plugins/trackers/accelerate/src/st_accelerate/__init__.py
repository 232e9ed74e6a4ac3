"""Trackers that were written for accelerate, by their import path."""

from st_accelerate.tracker import Accelerate

__all__ = ["Accelerate"]
