"""A run does what it is asked, between two steps, and answers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from st.errors import StError
from st.report.log.events import read_events
from st.testing import CliResult, TinyRun, TinyRunner
from st.testing.runs import call_cli
from st.train.beside.control import FILE, ControlFile, answer, ask
from st.train.beside.requests import Request, Requests

ASKING = Path(__file__).with_name("asking.py")


def answers(run: TinyRun) -> list[str]:
    return [event["text"] for event in run.events() if event.get("kind") == "request"]


def test_a_plugin_asks_and_all_of_it_is_done_once_and_answered(tiny_run: TinyRunner) -> None:
    run = tiny_run([f"{ASKING}:Asking"], "[checkpoint]\nevery = 0", steps=4)

    assert run.metrics()["lr"] == [1e-4, 1e-4, 5e-5, 5e-5]
    assert sorted(path.name for path in (run.directory / "checkpoints").glob("*")) == ["step-00000003", "step-00000004"]
    assert answers(run) == [
        "optimizer.lr is 5e-05 from step 3, as a plugin asked",
        "saved at step 3, as a plugin asked",
    ]


def test_a_changed_rate_survives_a_resume_exactly(tiny_run: TinyRunner) -> None:
    straight = tiny_run([f"{ASKING}:Asking"], "[checkpoint]\nevery = 0", steps=6)
    cut = tiny_run.ended([f"{ASKING}:Asking"], "[checkpoint]\nevery = 0\n[asking]\nstop = true", steps=6)
    resumed = tiny_run([f"{ASKING}:Asking"], "[checkpoint]\nevery = 0\n[asking]\nstop = true", steps=6, resume=cut)

    assert cut.result.code == 4
    assert resumed.metrics()["lr"][-3:] == [5e-5] * 3
    assert resumed.weights() == straight.weights()


def test_st_ctl_steers_a_run_through_its_folder(tiny_run: TinyRunner) -> None:
    said: list[CliResult] = []
    steps: list[int] = []
    directory = tiny_run.root / "run-1"

    def steps_taken() -> int:
        return len([event for event in read_events(directory / "events.jsonl") if event["event"] == "step"])

    def steer() -> None:
        wait_until(lambda: steps_taken() > 0)
        said.append(call_cli("ctl", directory, "pause"))
        steps.append(steps_taken())
        time.sleep(0.5)
        steps.append(steps_taken())
        for arguments in (
            ["save"],
            ["validate"],
            ["set", "seed=3"],
            ["set", "optimizer.lr=1e-5", "--json"],
            ["resume"],
        ):
            said.append(call_cli("ctl", directory, *arguments))
        wait_until(lambda: steps_taken() > steps[1])
        said.append(call_cli("ctl", directory, "stop"))

    thread = threading.Thread(target=steer)
    thread.start()
    run = tiny_run.ended(steps=100_000, text="[checkpoint]\nevery = 0")
    thread.join()

    assert run.result.code == 4
    assert [one.code for one in said] == [0, 0, 1, 1, 0, 0, 0], said
    assert steps[0] == steps[1]
    assert "this run measures nothing" in said[2].out
    assert "what can: optimizer.lr" in said[3].out
    assert '"kind": "request"' in said[4].out and "optimizer.lr is 1e-05" in said[4].out
    assert run.metrics()["lr"][-1] == 1e-5


def test_a_stop_that_is_asked_for_before_training_does_not_wait_for_it(tiny_run: TinyRunner) -> None:
    run = tiny_run.ended([f"{ASKING}:Early"])

    assert run.result.code == 143
    assert run.outcome == "interrupted"
    assert answers(run) == ["ending before training"]


def test_nobody_answers_in_a_folder_without_a_run(tiny_run: TinyRunner) -> None:
    run = tiny_run()

    with pytest.raises(StError, match="no run is writing to"):
        answer(run.directory, ask(run.directory, "save"), 20)
    assert call_cli("ctl", run.directory.parent, "save").err.startswith("Error: ")
    assert "what is to be set?" in call_cli("ctl", run.directory, "set").err


def test_lines_are_read_once_whole_and_only_those_that_are_new(tmp_path: Path) -> None:
    file = tmp_path / FILE
    file.write_text('{"do": "stop"}\n')
    control = ControlFile(tmp_path)

    with file.open("a") as appended:
        appended.write('{"do": "save"}\n{"do": "pau')
    first = control.lines()
    with file.open("a") as appended:
        appended.write('se"}\n')

    assert first == ['{"do": "save"}']
    assert control.lines() == ['{"do": "pause"}']
    assert control.lines() == []


@pytest.mark.parametrize("line", ["save", "[]", '{"do": "dance"}', "{}", "[" * 100_000])
def test_what_is_no_request_is_refused_with_what_is(line: str) -> None:
    with pytest.raises(StError, match="the request"):
        Request.read(line)


def test_asked_by_several_ranks_it_is_done_once_and_the_order_is_theirs() -> None:
    requests, ranks = Requests(), Two()
    requests.save()
    requests.set("optimizer.lr", 0.5)
    ranks.other = [Request("save").line(), Request("pause").line()]

    found = requests.agreed(ranks)

    assert [request.do for request in found] == ["save", "set", "pause"]
    assert requests.agreed(ranks) == ()


class Two:
    """Two ranks, of which the other says ``other`` once."""

    def __init__(self) -> None:
        self.other: list[str] = []

    def any(self, flag: bool) -> bool:
        return flag or bool(self.other)

    def everyone(self, said: str) -> list[str]:
        other, self.other = self.other, []
        return [said, json.dumps(other)]


def wait_until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)
