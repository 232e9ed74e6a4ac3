"""Which checkpoint was the best is known whenever a run is stopped, and only what was measured counts."""

from __future__ import annotations

import json

import pytest

from st.testing.runs import TinyRun, TinyRunner

TEXT = """
[[dataset]]
url = "{photos}"
name = "held"
role = "evaluation"
resolution = 64
align = 8
[evaluation]
every = 4
samples = 2
times = 4
[validation]
every = {validate}
prompts = ["a cat"]
resolutions = ["64"]
steps = 1
guidance = 1
at_start = false
compare_base = false
[checkpoint]
every = 1
keep = 10
best = "eval/held"
"""


def text(runner: TinyRunner, validate: int = 1) -> str:
    return TEXT.format(photos=runner._photos(), validate=validate)


def evaluated(run: TinyRun) -> dict[int, float]:
    events = [event for event in run.events() if event["event"] == "metrics" and "eval/held" in event["metrics"]]
    return {event["step"]: event["metrics"]["eval/held"] for event in events}


def best(run: TinyRun) -> tuple[int, float]:
    stored = json.loads((run.directory / "checkpoints" / "best.json").read_text())
    return stored["step"], stored["value"]


def test_a_run_goes_on_between_two_evaluations(tiny_run):
    first = tiny_run(text=text(tiny_run), steps=3)

    again = tiny_run(text=text(tiny_run), steps=5, resume=first)

    losses = evaluated(again)
    assert sorted(losses) == [0, 3, 4, 5]
    assert best(again) == min(((step, loss) for step, loss in losses.items() if step), key=lambda one: one[1])


def test_only_a_step_that_was_evaluated_is_marked(tiny_run):
    run = tiny_run(text=text(tiny_run, validate=2), steps=5)

    losses = evaluated(run)
    assert sorted(losses) == [0, 4, 5]
    assert best(run)[1] == losses[best(run)[0]]


@pytest.mark.parametrize("validate", [1, 2, 5])
def test_the_last_step_is_evaluated_whatever_else_is_due(tiny_run, validate):
    run = tiny_run(text=text(tiny_run, validate=validate), steps=5)

    assert 5 in evaluated(run)


def test_validations_that_a_kill_cut_off_are_made_up_for(tiny_run):
    first = tiny_run(text=text(tiny_run, validate=2), steps=4)
    for name in ("best.json", "measured.json"):
        (first.directory / "checkpoints" / name).unlink()

    again = tiny_run(text=text(tiny_run, validate=2), steps=5, resume=first)

    steps = [
        event["step"] for event in again.events() if event["event"] == "metrics" and "eval/held" in event["metrics"]
    ]
    assert steps == [0, 4, 4, 5]
    assert best(again)[1] == min(evaluated(again)[step] for step in (4, 5))


def test_a_damaged_mark_of_the_best_stops_a_resumed_run_with_what_to_do(tiny_run):
    first = tiny_run(text=text(tiny_run), steps=2)
    (first.directory / "checkpoints" / "best.json").write_text("{")

    with pytest.raises(AssertionError, match=r"best\.json' is damaged(.|\n)*delete it"):
        tiny_run(text=text(tiny_run), steps=3, resume=first)
