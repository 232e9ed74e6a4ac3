"""Courier: hears every event of a run while it happens, and takes what was exported somewhere else, beside the loop."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import st

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from st.report.report import Report


class Courier:
    """Writes down what it hears, and delivers files into another folder."""

    class Options(st.Options):
        to: str = "delivered"
        """Folder for the files, in the run's."""
        raises: bool = False
        """Whether it fails at the first thing that it hears."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.heard: list[Mapping[str, object]] = []

    @st.hookimpl
    def st_report_opened(self, report: Report) -> None:
        report.listen("courier", self.hear)

    @st.hookimpl
    def st_exported(self, run: st.Run, files: Sequence[Path]) -> None:
        folder = run.directory / self.options.to
        folder.mkdir(exist_ok=True)
        for file in files:
            run.jobs.submit(f"delivery of {file.name}", lambda file=file: shutil.copy(file, folder), drain_seconds=30)

    @st.hookimpl
    def st_run_end(self, run: st.Run) -> None:
        run.jobs.submit("the diary", lambda: self._write(run.directory / "heard.jsonl"))

    def hear(self, event: Mapping[str, Any]) -> None:
        if self.options.raises:
            raise ConnectionError("no route")
        self.heard.append(event)

    def _write(self, file: Path) -> None:
        file.write_text("".join(json.dumps(event) + "\n" for event in list(self.heard)), encoding="utf-8")
