"""CLASS: every metric of a run as a line of one table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import st

if TYPE_CHECKING:
    from collections.abc import Mapping
    from io import TextIOWrapper


class CLASS(st.Tracker):
    """Write metrics to a table of comma-separated values."""

    class Options(st.Options):
        file: str = "metrics.csv"
        """Name of the table in the run's folder."""

    options: Options

    def start(self, run: st.RunInfo) -> None:
        self.table: TextIOWrapper = (run.directory / self.options.file).open("a", encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.table.write(f"{step},{name},{value}\n")

    def finish(self, outcome: st.Outcome) -> None:
        self.table.close()
