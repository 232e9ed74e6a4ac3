"""How far a run is, how it ended, and what it has saved."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path


class Outcome(Enum):
    """How a run ended."""

    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


@dataclass(slots=True)
class Progress:
    """How far the run is; the one mutable part of it, and only the loop advances it.

    step: optimizer steps taken. samples: samples drawn over all ranks, which is the next draw index. epoch: completed
    passes.
    """

    step: int = 0
    samples: int = 0
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint on disk: the adapter's weights, ``state/`` and ``manifest.json``."""

    directory: Path
    step: int
