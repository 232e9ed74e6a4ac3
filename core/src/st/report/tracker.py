"""Tracker: shows a run to people, and cannot break it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import st.options
from st.registrar import StrategyKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from st.progress import Outcome


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What a tracker is told of a run: its name, its folder, and every setting as plain data.

    step: the step that the run goes on from, 0 for one that begins. What was logged of later steps is logged again.
    """

    name: str
    directory: Path
    config: Mapping[str, Any]
    step: int = 0


@dataclass(frozen=True, slots=True)
class Picture:
    """One validation output: a picture, clip or sound on disk with what it shows.

    prompt: the text it was rendered from. label: which prompt, size and weights ("cat 64x64", "cat 64x64 base").
    frames, frames_per_second: of a clip; 1 and 0 for what is none.
    """

    path: Path
    prompt: str
    label: str
    frames: int = 1
    frames_per_second: float = 0.0


TRACKER: StrategyKind[Callable[..., Tracker]] = StrategyKind("tracker")
"""A tracker made at run time, named in ``plugins``."""


class Tracker(ABC):
    """Shows a run to people, on rank 0 and on a thread of its own; an exception disables it and is reported once.

    One that also has ``state_dict() -> dict`` and ``load_state_dict(state)`` keeps what the first returns in every
    checkpoint, and is given it back before ``start``. Both are called from the thread that trains.
    """

    Options: ClassVar[type[st.options.Options]] = st.options.Options

    def __init__(self, options: st.options.Options) -> None:
        self.options = options

    @abstractmethod
    def start(self, run: RunInfo) -> None: ...

    @abstractmethod
    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def show(self, step: int, pictures: Sequence[Picture]) -> None:
        """Show validation outputs; the default shows none."""

    def finish(self, outcome: Outcome) -> None:
        """The run is over; nothing is logged after this."""
