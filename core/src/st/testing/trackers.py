"""TrackerTests: what every tracker promises."""

from __future__ import annotations

from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, ClassVar

import pytest

from st.report.tracker import Picture, RunInfo
from st.testing.plugins import PluginTests

if TYPE_CHECKING:
    from st.report.tracker import Tracker
    from st.testing.runs import TinyRunner


class TrackerTests(PluginTests):
    """Subclass it beside a ``tracker`` fixture. settings: the tracker's section of a run file, where it needs one."""

    settings: ClassVar[str] = ""

    @pytest.fixture
    def tracker(self) -> Tracker:
        """The tracker under test; every subclass gives its own."""
        raise NotImplementedError("give the test class a `tracker` fixture")

    def test_a_whole_run_is_shown(self, tracker: Tracker, tmp_path: Path) -> None:
        self.show(tracker, tmp_path)

    def test_it_works_on_a_thread_of_its_own(self, tracker: Tracker, tmp_path: Path) -> None:
        raised: list[BaseException] = []

        def work() -> None:
            try:
                self.show(tracker, tmp_path)
            except BaseException as error:
                raised.append(error)
                raise

        thread = Thread(target=work)
        thread.start()
        thread.join()

        assert raised == []

    def test_a_run_without_steps_can_be_finished(self, tracker: Tracker, tmp_path: Path) -> None:
        from st.progress import Outcome

        tracker.start(RunInfo(name="empty", directory=tmp_path, config={}))
        tracker.finish(Outcome.FAILED)

    def test_it_takes_part_in_a_run(self, tiny_run: TinyRunner) -> None:
        run = tiny_run(plugins=[self.plugin], text=self.settings)

        assert run.outcome == "finished"
        assert run.warnings("tracker") == []

    def show(self, tracker: Tracker, directory: Path) -> None:
        """A run of two steps with a picture."""
        from PIL import Image

        from st.progress import Outcome

        Image.new("RGB", (8, 8), "teal").save(directory / "picture.png")
        tracker.start(RunInfo(name="run", directory=directory, config={"steps": 2, "model": {"checkpoint": ""}}))
        tracker.log(1, {"loss": 0.5, "lr": 1e-4})
        tracker.log(2, {"loss": 0.25, "lr": 1e-4, "loss/photos": 0.25})
        tracker.show(2, [Picture(directory / "picture.png", prompt="a teal square", label="square 8x8")])
        tracker.finish(Outcome.FINISHED)
