"""Notes: what any part of a run may say of itself, and how the parts that read no report say it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


class Stage(Protocol):
    """A part of a run with a known amount of work."""

    def advance(self, n: int = 1) -> None:
        """So many more pieces of it are done. May be called from any thread."""


class Notes(Protocol):
    """Where a part of a run says what it does and what it found: the run's report, or a command's own."""

    def note(self, text: str, kind: str = "note", **facts: object) -> None:
        """Say one sentence, with what a program may want of it as facts."""

    def warn(self, text: str) -> None:
        """Note something that may not be what was meant."""

    def dropped(self, dataset: str, key: str, reason: str) -> None:
        """Count a sample that is not used. ``reason`` up to its first colon is what samples are counted by."""

    def stage(self, name: str, total: int) -> AbstractContextManager[Stage]:
        """Show the progress of ``total`` pieces of work, for the length of a ``with``."""
        ...
