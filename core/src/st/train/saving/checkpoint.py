"""Checkpoints: written whole or not at all, verified when read, kept by count and by a metric."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from st.options import Options


class CheckpointOptions(Options):
    """When a run is saved, and what is kept."""

    every: int = Field(500, ge=0)
    """Optimizer steps between checkpoints; 0 saves only at the end."""
    keep: int = Field(3, ge=1)
    """How many of the newest checkpoints are kept."""
    best: str = ""
    """Name of a metric, such as "eval/photos"; the checkpoint where it was best is kept besides, and saved if none was
    due."""
    best_is: Literal["lowest", "highest"] = "lowest"
    """Which end of the metric is best."""
    grace_seconds: float = Field(60.0, gt=0)
    """How long a run that a signal has told to stop may get nowhere before it is ended; a save that gets on takes its
    time."""
