"""The event log and its reader."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from st.errors import OutputUnwritable
from st.report.log.events import EventLog, read_events


def test_events_come_back_in_order_with_their_time(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl", clock=lambda: 12.5)

    log.write("step", step=1, metrics={"loss": 0.5})
    log.write("finish", outcome="finished")

    assert list(read_events(log.path)) == [
        {"time": 12.5, "event": "step", "step": 1, "metrics": {"loss": 0.5}},
        {"time": 12.5, "event": "finish", "outcome": "finished"},
    ]
    log.close()


def test_a_line_cut_short_is_left_out_and_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"time": 1, "event": "step", "step": 1}\n{"time": 2, "event": "st')
    before = list(read_events(path))

    log = EventLog(path)
    log.write("step", step=2)
    log.close()

    assert [event["step"] for event in before] == [1]
    assert [event["step"] for event in read_events(path)] == [1, 2]


def test_what_was_written_survives_the_death_of_the_process(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    script = (
        "import os, signal, sys; from pathlib import Path; from st.report.log.events import EventLog\n"
        "log = EventLog(Path(sys.argv[1]))\n"
        "for step in range(5): log.write('step', step=step)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )

    ended = subprocess.run([sys.executable, "-c", script, str(path)], env={**os.environ}, check=False)

    assert ended.returncode == -9
    assert [event["step"] for event in read_events(path)] == [0, 1, 2, 3, 4]


def test_a_number_that_is_not_finite_is_null_as_json_has_it(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")

    log.write("step", losses=[float("nan"), 1.0], metrics={"loss": float("inf")})
    log.close()

    (event,) = read_events(log.path)
    assert event["losses"] == [None, 1.0]
    assert event["metrics"] == {"loss": None}


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")

    with pytest.raises(OutputUnwritable, match="taken"):
        EventLog(tmp_path / "taken" / "events.jsonl")


def test_a_log_that_does_not_exist_has_no_events(tmp_path: Path) -> None:
    assert list(read_events(tmp_path / "events.jsonl")) == []


def test_nothing_is_written_behind_the_last_event_of_a_closed_log(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.write("finish", outcome="interrupted")
    log.close()

    log.write("note", text="SIGTERM: ending")

    assert [event["event"] for event in read_events(log.path)] == ["finish"]
