"""TensorBoard: a run as event files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import st

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch.utils.tensorboard import SummaryWriter


class TensorBoard(st.Tracker):
    """Write metrics, settings, pictures, clips and sounds for TensorBoard.

    What was logged is on disk when the call returns. A run that goes on after a checkpoint writes a further file, which
    tells TensorBoard to forget what the steps that are done again had logged.
    """

    class Options(st.Options):
        """Where event files go."""

        folder: str = "tensorboard"
        """Folder of the event files, in the run's folder unless it is absolute."""

    options: Options

    def start(self, run: st.RunInfo) -> None:
        self._run = run
        self._opened: SummaryWriter | None = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        writer = self._writer(step)
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    def show(self, step: int, pictures: Sequence[st.Picture]) -> None:
        from st_tensorboard.summaries import summary_of

        writer = self._writer(step)
        for picture in pictures:
            # The writer's own add_image decodes, add_video needs moviepy: the files hold what TensorBoard shows.
            writer.file_writer.add_summary(summary_of(picture), step)  # type: ignore[attr-defined]
        writer.flush()

    def finish(self, outcome: st.Outcome) -> None:
        self._writer(None).close()

    def _writer(self, step: int | None) -> SummaryWriter:
        """The writer, opened by the first call: only the first step that is logged says where a run goes on."""
        if self._opened is None:
            from torch.utils.tensorboard import SummaryWriter

            folder = str(self._run.directory / self.options.folder)
            self._opened = SummaryWriter(folder, purge_step=step)
            self._opened.add_text("settings", _as_code(self._run.config), 0)
        return self._opened


def _as_code(config: Mapping[str, object]) -> str:
    """Settings as Markdown that is shown as it stands."""
    lines = json.dumps(config, indent=2, ensure_ascii=False, default=str).splitlines()
    return "\n".join(f"    {line}" for line in lines)
