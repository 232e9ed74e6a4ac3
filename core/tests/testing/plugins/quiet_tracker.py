"""A tracker in one file."""

from __future__ import annotations

from collections.abc import Mapping

import st


class QuietTracker(st.Tracker):
    """Remember the last metrics."""

    class Options(st.Options):
        name: str = "quiet"
        """What the tracker calls itself."""

    def start(self, run: st.RunInfo) -> None:
        self.last: dict[str, float] = {}

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.last.update(metrics)
