"""The tracker keeps the promises of every tracker, and its own."""

from pathlib import Path

import pytest
import st
from st.testing import TrackerTests

from PACKAGE import CLASS


class TestConformance(TrackerTests):
    plugin = "PLUGIN"

    @pytest.fixture
    def tracker(self) -> CLASS:
        return CLASS(CLASS.Options())


def test_each_metric_is_a_line(tmp_path: Path) -> None:
    tracker = CLASS(CLASS.Options())

    tracker.start(st.RunInfo(name="run", directory=tmp_path, config={}))
    tracker.log(1, {"loss": 0.5, "lr": 0.25})
    tracker.finish(st.Outcome.FINISHED)

    assert (tmp_path / "metrics.csv").read_text() == "1,loss,0.5\n1,lr,0.25\n"


def test_steps_that_are_taken_again_are_written_once(tmp_path: Path) -> None:
    for step in (0, 1):
        tracker = CLASS(CLASS.Options())
        tracker.start(st.RunInfo(name="run", directory=tmp_path, config={}, step=step))
        tracker.log(step + 1, {"loss": 0.5})
        tracker.log(step + 2, {"loss": 0.25})
        tracker.finish(st.Outcome.INTERRUPTED)

    assert (tmp_path / "metrics.csv").read_text() == "1,loss,0.5\n2,loss,0.5\n3,loss,0.25\n"
