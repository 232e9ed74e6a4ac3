"""No tracker can stop or slow a run."""

import threading
from collections.abc import Mapping
from pathlib import Path

from st.options import Options
from st.progress import Outcome
from st.report.fanout import Fanout
from st.report.tracker import RunInfo, Tracker

INFO = RunInfo("run", Path("."), {})


class Remembers(Tracker):
    def __init__(self) -> None:
        super().__init__(Options())
        self.logged: list[tuple[int, Mapping[str, float]]] = []
        self.ended: Outcome | None = None

    def start(self, run: RunInfo) -> None: ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.logged.append((step, metrics))

    def finish(self, outcome: Outcome) -> None:
        self.ended = outcome


class Raises(Remembers):
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        super().log(step, metrics)
        raise ConnectionError("no route to host")


class Exits(Remembers):
    def start(self, run: RunInfo) -> None:
        raise SystemExit(1)


class Waits(Remembers):
    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.waiting = threading.Event()

    def start(self, run: RunInfo) -> None:
        self.waiting.set()
        self.go.wait()


def test_a_tracker_gets_every_call_in_order() -> None:
    tracker, said = Remembers(), []
    fanout = Fanout({"one": tracker}, said.append)
    fanout.start(INFO)

    for step in range(5):
        fanout.log(step, {"loss": step / 2})
    fanout.finish(Outcome.FINISHED, timeout_seconds=60)

    assert tracker.logged == [(step, {"loss": step / 2}) for step in range(5)]
    assert tracker.ended is Outcome.FINISHED
    assert said == []


def test_a_tracker_that_raises_is_off_and_reported_once_while_others_go_on() -> None:
    broken, whole, said = Raises(), Remembers(), []
    fanout = Fanout({"broken": broken, "whole": whole}, said.append)
    fanout.start(INFO)

    for step in range(3):
        fanout.log(step, {"loss": 1.0})
    fanout.finish(Outcome.FINISHED, timeout_seconds=60)

    assert len(broken.logged) == 1
    assert [step for step, _ in whole.logged] == [0, 1, 2]
    assert said == ["tracker 'broken' is off from here: ConnectionError: no route to host"]


def test_a_tracker_that_ends_the_process_only_ends_itself() -> None:
    said: list[str] = []
    fanout = Fanout({"quits": Exits()}, said.append)

    fanout.start(INFO)
    fanout.finish(Outcome.FINISHED, timeout_seconds=60)

    assert said == ["tracker 'quits' is off from here: SystemExit: 1"]


def test_a_tracker_that_hangs_is_left_behind() -> None:
    tracker, said = Waits(), []
    fanout = Fanout({"hangs": tracker}, said.append)

    fanout.start(INFO)
    fanout.log(1, {"loss": 1.0})
    fanout.finish(Outcome.FINISHED, timeout_seconds=0.01)
    tracker.go.set()

    assert said == ["tracker 'hangs' was not done 0.01 seconds after the run; left behind"]


def test_a_slow_tracker_loses_its_oldest_metrics_and_that_is_said() -> None:
    tracker, said = Waits(), []
    fanout = Fanout({"slow": tracker}, said.append, capacity=3)
    fanout.start(INFO)
    tracker.waiting.wait()

    for step in range(10):
        fanout.log(step, {"loss": 1.0})
    tracker.go.set()
    fanout.finish(Outcome.FINISHED, timeout_seconds=60)

    assert [step for step, _ in tracker.logged] == [7, 8, 9]
    assert said == [
        "tracker 'slow' is slower than training: its oldest metrics are dropped",
        "tracker 'slow' missed 7 metrics; the event log has them",
    ]


def test_a_tracker_that_was_left_behind_and_fails_later_tells_nobody() -> None:
    class WaitsAndRaises(Waits):
        def start(self, run: RunInfo) -> None:
            super().start(run)
            raise ConnectionError("too late")

    tracker, said = WaitsAndRaises(), []
    fanout = Fanout({"slow": tracker}, said.append)
    fanout.start(INFO)
    fanout.finish(Outcome.FINISHED, timeout_seconds=0.01)
    threads = [thread for thread in threading.enumerate() if thread.name == "tracker 'slow'"]

    tracker.go.set()
    for thread in threads:
        thread.join(60)

    assert len(threads) == 1
    assert [text for text in said if "left behind" not in text] == []
