"""Packages hear of a run what its event log has, while it happens, and none can harm it."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from st.progress import Outcome
from st.report.log.events import read_events
from st.report.report import Report, ReportOptions
from st.report.tracker import RunInfo
from st.testing import TinyRunner

COURIER = Path(__file__).parents[1] / "testing" / "plugins" / "courier.py"


@pytest.fixture
def report(tmp_path: Path) -> Report:
    options = ReportOptions(console="off", tracker_seconds=0.2)
    return Report.open(RunInfo("run", tmp_path, {}), options, {})


def test_a_listener_hears_what_is_logged_and_the_progress_that_is_not(report: Report, tmp_path: Path) -> None:
    heard: list[dict[str, object]] = []
    report.listen("one", lambda event: heard.append(dict(event)))

    report.note("hello", path="here")
    with report.stage("encoding", 2) as stage:
        stage.advance(2)
    report.metrics(3, {"score": 0.5})
    report.finish(Outcome.FINISHED)

    logged = [event for event in read_events(tmp_path / "events.jsonl") if event["event"] != "open"]
    assert [event for event in heard if event["event"] != "progress"] == logged
    progress = [event for event in heard if event["event"] == "progress"]
    assert [(event["name"], event["done"], event["total"]) for event in progress] == [("encoding", 2, 2)]


def test_a_listener_that_raises_is_off_and_named_and_one_that_hangs_is_left_behind(
    report: Report, tmp_path: Path
) -> None:
    go = threading.Event()

    def fails(event: object) -> None:
        raise ConnectionError("no route")

    report.listen("broken", fails)
    report.listen("stuck", lambda event: go.wait())
    report.note("hello")
    report.finish(Outcome.FINISHED)
    go.set()

    said = [str(event["text"]) for event in read_events(tmp_path / "events.jsonl") if event.get("kind") == "warning"]
    assert said == [
        "listener 'broken' is off from here: ConnectionError: no route",
        "listener 'stuck' was not done 0.2 seconds after the run; left behind",
    ]


def test_a_package_hears_a_run_from_its_first_stage_and_delivers_its_files(tiny_run: TinyRunner) -> None:
    run = tiny_run([f"{COURIER}:Courier"], "[checkpoint]\nevery = 2")

    heard = [json.loads(line) for line in (run.directory / "heard.jsonl").read_text().splitlines()]
    kinds = [(event["event"], event.get("kind")) for event in heard]
    assert {("stage", None), ("train", None), ("step", None), ("note", "checkpoint"), ("note", "export")} <= {*kinds}
    assert kinds.index(("note", "dataset")) < kinds.index(("train", None))
    assert [path.name for path in (run.directory / "delivered").iterdir()] == ["adapter.safetensors"]
    delivered = (run.directory / "delivered" / "adapter.safetensors").read_bytes()
    assert delivered == (run.directory / "adapter.safetensors").read_bytes()


def test_a_package_that_fails_at_what_it_hears_harms_no_run(tiny_run: TinyRunner) -> None:
    run = tiny_run([f"{COURIER}:Courier"], "[courier]\nraises = true")

    assert run.outcome == "finished"
    assert run.warnings("courier") == ["listener 'courier' is off from here: ConnectionError: no route"]
