"""A report reads the device rarely, sees a spoiled loss, and writes on rank 0 only."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from st.options import Options
from st.progress import Outcome, Progress
from st.report.console import PlainConsole, open_console
from st.report.log.events import EventLog, read_events
from st.report.report import Report, ReportOptions
from st.report.stats import StepStats, UpdateStats
from st.report.tracker import Picture, RunInfo, Tracker


class Counts(TorchDispatchMode):
    """Counts the operations that bring values from the device, and what prepares them."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        return func(*args, **(kwargs or {}))


def stats(loss: float, key: str = "a.jpg", terms: dict[str, float] | None = None) -> StepStats:
    """One step of two microbatches of one sample."""
    return StepStats(
        losses=[torch.tensor(loss), torch.tensor(loss + 1)],
        terms={name: [torch.tensor(value)] for name, value in (terms or {}).items()},
        datasets=["cats", "dogs"],
        keys=[key, f"second-{key}"],
        samples=2,
        update=UpdateStats(torch.tensor(3.0), (1e-4,)),
        seconds={"data": 0.1, "compute": 0.5, "update": 0.2},
    )


def opened(directory: Path, every: int = 10) -> Report:
    info = RunInfo("test", directory, {"seed": 42})
    return Report.open(info, ReportOptions(every=every, console="off"), {"st": "1.0.0"})


def events(directory: Path, name: str) -> list[dict[str, Any]]:
    return [event for event in read_events(directory / "events.jsonl") if event["event"] == name]


def test_nothing_is_asked_of_the_device_between_two_readings(tmp_path: Path) -> None:
    report = opened(tmp_path, every=10)
    report.start({}, step=0, total=100)
    steps = [stats(0.5) for _ in range(10)]

    with Counts() as between:
        for number, one in enumerate(steps[:9], start=1):
            report.step(Progress(step=number), one)
    with Counts() as at_reading:
        report.step(Progress(step=10), steps[9])

    assert between.operations == 0
    assert at_reading.operations > 0
    report.finish(Outcome.FINISHED)


def test_a_reading_holds_the_mean_of_each_step_and_of_all_of_them(tmp_path: Path) -> None:
    report = opened(tmp_path, every=2)
    report.start({}, step=0, total=2, ranks=3)

    report.step(Progress(step=1), stats(1.0, terms={"align": 0.25}))
    report.step(Progress(step=2), stats(2.0, terms={"align": 0.75}))
    report.finish(Outcome.FINISHED)

    (event,) = events(tmp_path, "step")
    metrics = event["metrics"]
    assert (event["step"], event["steps"], event["losses"]) == (2, 2, [1.5, 2.5])
    assert (metrics["loss"], metrics["term/align"], metrics["grad_norm"], metrics["lr"]) == (2.0, 0.5, 3.0, 1e-4)
    assert (metrics["dataset/cats"], metrics["dataset/dogs"]) == (1.5, 2.5)
    assert metrics["seconds/step"] == pytest.approx(0.8)
    assert metrics["data_wait"] == pytest.approx(0.125)
    assert metrics["samples_per_second"] == pytest.approx(3 * 4 / 1.6)


def test_steps_left_at_the_end_are_read(tmp_path: Path) -> None:
    report = opened(tmp_path, every=10)
    report.start({}, step=0, total=3)

    for step in (1, 2, 3):
        report.step(Progress(step=step), stats(1.0))
    report.finish(Outcome.FINISHED)

    assert [event["steps"] for event in events(tmp_path, "step")] == [3]


def test_a_loss_that_is_not_finite_is_named_with_its_step_and_samples(tmp_path: Path) -> None:
    report = opened(tmp_path, every=4)
    report.start({}, step=0, total=4)
    report.note("checkpoint of step 2 saved", kind="checkpoint", step=2, directory="runs/x")

    for step, loss in ((1, 1.0), (2, 1.0), (3, float("nan"))):
        report.step(Progress(step=step), stats(loss, key=f"{step}.jpg"))
    assert report.failure is None
    report.step(Progress(step=4), stats(float("inf"), key="4.jpg"))

    assert report.failure is not None
    text = str(report.failure)
    assert "step 3 is nan" in text
    assert "'3.jpg'" in text
    assert "4.jpg" not in text
    assert "second-3.jpg" not in text
    assert "checkpoint of step 2" in text
    report.finish(Outcome.FAILED, text)


def test_other_ranks_write_nothing_and_still_watch_their_loss(tmp_path: Path) -> None:
    report = Report.open(RunInfo("test", tmp_path, {}), ReportOptions(every=1), {}, rank=1)
    report.start({}, step=0, total=2)

    report.step(Progress(step=1), stats(float("nan")))
    report.note("hello")
    report.finish(Outcome.FAILED)

    assert report.failure is not None
    assert list(tmp_path.iterdir()) == []


def test_dropped_samples_are_counted_by_reason(tmp_path: Path) -> None:
    report = opened(tmp_path)

    for key in ("a", "b"):
        report.dropped("photos", key, f"too small: {key}")
    report.start({}, step=0, total=1)
    report.finish(Outcome.FINISHED)

    assert [event["key"] for event in events(tmp_path, "dropped")] == ["a", "b"]
    assert events(tmp_path, "dropped_total")[0]["count"] == 2


def test_pauses_are_kept_out_of_the_time_of_steps(tmp_path: Path) -> None:
    report = opened(tmp_path, every=1)
    report.start({}, step=0, total=1)

    with report.pause("save"), report.stage("inside a pause", 1) as stage:
        stage.advance()
    report.step(Progress(step=1), stats(1.0))
    report.finish(Outcome.FINISHED)

    assert list(events(tmp_path, "step")[0]["paused"]) == ["save"]


def test_a_full_disk_is_said_once_and_training_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    log = EventLog(tmp_path / "events.jsonl")
    report = Report(ReportOptions(), log, open_console("plain", 30.0))

    report.note("one")
    report.note("two")
    report.start({}, step=0, total=1)
    log.close()

    assert capsys.readouterr().err.count("cannot be written") == 1


def test_pictures_are_logged_and_put_on_the_page(tmp_path: Path) -> None:
    report = opened(tmp_path)
    report.start({}, step=0, total=1)

    report.pictures(0, [Picture(tmp_path / "x.png", "a cat", "cat 64x64")])

    assert events(tmp_path, "pictures")[0]["pictures"][0]["label"] == "cat 64x64"
    assert "cat 64x64" in (tmp_path / "report.html").read_text()
    report.finish(Outcome.FINISHED)


def test_plain_progress_has_no_control_codes_and_one_line_per_interval() -> None:
    now, stream = [0.0], io.StringIO()
    console = PlainConsole(stream, line_seconds=30, clock=lambda: now[0])
    console.begin(0, 100)

    for step in range(10, 60, 10):
        now[0] = float(step)
        console.show(step, {"loss": 0.5, "lr": 1e-4, "seconds/step": 2.0, "data_wait": 0.25})

    assert stream.getvalue().splitlines() == [
        "training from step 0 to 100",
        "step 10/100  loss 0.5000  lr 1.00e-04  2 s/step  data 25%  3 min 00 s left",
        "step 40/100  loss 0.5000  lr 1.00e-04  2 s/step  data 25%  2 min 00 s left",
    ]


def test_a_stream_that_is_no_terminal_gets_plain_lines() -> None:
    assert isinstance(open_console("auto", 30.0, io.StringIO()), PlainConsole)


def test_a_terminal_shows_notes_stages_and_steps() -> None:
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    console = open_console("auto", 30.0, stream)

    console.stage("encoding", 1, 3)
    console.stage_over("encoding", 3, 4.0)
    console.line("[not markup]", "warning")
    console.begin(0, 10)
    console.advance(5)
    console.show(5, {"loss": 0.25})
    console.close()

    shown = stream.getvalue()
    assert "encoding: 3 in 4 s" in shown
    assert "[not markup]" in shown
    assert "loss 0.2500" in shown


def test_the_page_of_a_long_log_takes_a_small_share_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = opened(tmp_path)
    report.start({}, step=0, total=1)
    now = iter(range(0, 1000, 10))
    monkeypatch.setattr("st.report.pages.monotonic", lambda: float(next(now)))

    written = [report.page() is not None for _ in range(5)]

    # Each look at the clock takes 10 s here, so the page took 10 s and waits for 200.
    assert written == [True, False, False, False, False]
    assert report.page(whole=True) is not None
    report.finish(Outcome.FINISHED)


def still(loss: float = 0.5) -> StepStats:
    """A step whose gradients are all zero."""
    return StepStats(losses=[torch.tensor(loss)], datasets=["cats"], update=UpdateStats(torch.tensor(0.0), (1e-4,)))


def warnings(directory: Path) -> list[str]:
    return [event["text"] for event in events(directory, "note") if event["kind"] == "warning"]


def test_gradients_that_are_all_zero_are_said_within_ten_steps_and_at_the_end(tmp_path: Path) -> None:
    report = opened(tmp_path, every=100)
    report.start({}, step=0, total=25, reason=lambda loss: f"asked with {loss}")

    for step in range(1, 11):
        report.step(Progress(step=step), still())
    early = warnings(tmp_path)
    for step in range(11, 26):
        report.step(Progress(step=step), still())
    report.finish(Outcome.FINISHED)

    assert early == ["every gradient of steps 1 to 10 is zero, so nothing is learned: asked with 0.5"]
    assert warnings(tmp_path)[1:] == ["no step of this run had a gradient, so nothing was learned: asked with 0.5"]


def test_one_step_with_a_gradient_is_enough_to_say_nothing(tmp_path: Path) -> None:
    report = opened(tmp_path, every=2)
    report.start({}, step=0, total=2)

    report.step(Progress(step=1), still())
    report.step(Progress(step=2), stats(1.0))
    report.finish(Outcome.FINISHED)

    assert warnings(tmp_path) == []


def test_the_page_is_there_from_the_first_word_on_and_says_when_the_run_was_last_heard_of(tmp_path: Path) -> None:
    report = opened(tmp_path)
    report.note("running on a test")
    early = (tmp_path / "report.html").read_text()
    report.finish(Outcome.FINISHED)
    late = (tmp_path / "report.html").read_text()

    assert "last heard of 20" in early
    assert 'data-alive="' in early and 'data-every="20"' in early
    assert "last heard of" not in late
    assert "data-alive" not in late.partition("<script")[0]


def test_between_two_readings_the_page_is_written_every_twenty_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("st.report.pages.monotonic", lambda: now[0])
    report = opened(tmp_path)
    written = []

    for _ in range(50):
        report.note("so it goes")
        written.append((tmp_path / "report.html").stat().st_mtime_ns)
        now[0] += 1.0
    report.finish(Outcome.FINISHED)

    assert [second for second in range(1, 50) if written[second] != written[second - 1]] == [20, 40]


def test_trackers_are_told_the_step_that_a_run_goes_on_from(tmp_path: Path) -> None:
    class Listening(Tracker):
        def start(self, run: RunInfo) -> None:
            (tmp_path / "told").write_text(f"{run.name} {run.step}")

        def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    report = opened(tmp_path)
    report.start({"listening": Listening(Options())}, step=7, total=9)
    report.finish(Outcome.FINISHED)

    assert (tmp_path / "told").read_text() == "test 7"


@pytest.mark.parametrize("step", [3, 15])
def test_a_run_that_is_past_its_end_says_so_and_what_to_set(
    step: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report.open(RunInfo("test", tmp_path, {}), ReportOptions(console="plain"), {})

    report.start({}, step=step, total=3)
    report.finish(Outcome.FINISHED)

    said = capsys.readouterr().err
    assert f"at step {step} of 3: nothing is left to train; to train on, set steps above {step}" in said
    assert "training from" not in said


@pytest.mark.parametrize(
    ("outcome", "saved", "end"),
    [
        (Outcome.FINISHED, True, "; to train on: --resume with more steps"),
        (Outcome.INTERRUPTED, True, "; to go on: --resume"),
        (Outcome.FAILED, True, "; to go on from the last checkpoint: --resume"),
        (Outcome.FAILED, False, ""),
    ],
)
def test_the_last_line_of_a_run_says_where_its_report_is_and_how_to_go_on(
    outcome: Outcome, saved: bool, end: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report.open(RunInfo("test", tmp_path, {}), ReportOptions(console="plain"), {})
    if saved:
        report.note("checkpoint of step 2 saved", kind="checkpoint", step=2, directory="x")

    report.finish(outcome)

    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"{outcome.value} after ")
    assert last.endswith(f"; report: {tmp_path / 'report.html'}{end}")
