"""A run ends as its exit status says, whoever ends it, and what only looks at it never does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from st.report.log.events import read_events
from st.testing import TinyRun, TinyRunner
from st.train.beside.control import answer, ask

ENDINGS = Path(__file__).with_name("endings.py")
SIGNALS = f"{ENDINGS}:Signals"


def of_signals(**options: object) -> str:
    return "[checkpoint]\nevery = 0\ngrace_seconds = 1.0\n[endings]\n" + "".join(
        f"{name} = {json.dumps(value)}\n" for name, value in options.items()
    )


def saved(run: TinyRun) -> list[str]:
    return sorted(path.name for path in (run.directory / "checkpoints").glob("step-*"))


def train(file: Path, **keywords: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "st.cli", "train", str(file)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, text=True, **keywords)  # type: ignore[call-overload, no-any-return]


def outcome(directory: Path) -> str:
    return str(list(read_events(directory / "events.jsonl"))[-1].get("outcome"))


def test_a_signal_before_training_ends_with_its_number_and_a_last_event(tiny_run: TinyRunner) -> None:
    run = tiny_run.ended([SIGNALS], of_signals(step=0))

    assert run.result.code == 128 + signal.SIGTERM
    assert run.outcome == "interrupted"
    assert "ended by SIGTERM before training" in run.result.err
    assert "saving after this step" not in run.result.err
    assert saved(run) == []


def test_a_hang_up_saves_and_ends_with_4(tiny_run: TinyRunner) -> None:
    run = tiny_run.ended([SIGNALS], of_signals(name="SIGHUP"))

    assert run.result.code == 4
    assert saved(run) == ["step-00000002"]


def test_a_hang_up_that_is_ignored_is_ignored(tiny_run: TinyRunner) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run = tiny_run([SIGNALS], of_signals(name="SIGHUP"))
    finally:
        signal.signal(signal.SIGHUP, before)

    assert run.outcome == "finished"


def test_sigusr1_saves_and_training_goes_on(tiny_run: TinyRunner) -> None:
    run = tiny_run([SIGNALS], of_signals(name="SIGUSR1", hang_seconds=0.1))

    assert saved(run) == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize(("stop", "exported"), [(False, True), (True, False)])
def test_a_last_checkpoint_that_cannot_be_written_ends_with_1(tiny_run: TinyRunner, stop: bool, exported: bool) -> None:
    text = f"[checkpoint]\nevery = 0\n[endings]\nstop = {str(stop).lower()}"

    run = tiny_run.ended([f"{ENDINGS}:Unwritable"], text)

    assert run.result.code == 1
    assert "could not be written" in run.result.err
    assert run.outcome == "failed"
    assert (run.directory / "adapter.safetensors").exists() is exported


def test_an_error_of_a_plugin_between_steps_loses_none_of_them(tiny_run: TinyRunner) -> None:
    run = tiny_run.ended([f"{ENDINGS}:Fails"], "[checkpoint]\nevery = 0")

    assert run.result.code == 1
    assert "ZeroDivisionError: after the step" in run.result.err
    assert run.outcome == "failed"
    assert saved(run) == ["step-00000002"]


def test_a_step_that_is_half_taken_is_not_saved(tiny_run: TinyRunner) -> None:
    run = tiny_run.ended([f"{ENDINGS}:Fails"], "[checkpoint]\nevery = 0\n[endings]\ninside = true")

    assert run.result.code == 1
    assert saved(run) == []


def test_a_save_that_gets_on_outlasts_the_grace_time(tiny_run: TinyRunner) -> None:
    file = tiny_run.file([SIGNALS], of_signals(slow_seconds=0.3).replace("1.0", "1.5"))
    directory = file.with_suffix("")

    started = time.monotonic()
    process = train(file, stderr=subprocess.DEVNULL)

    assert process.wait(180) == 4
    assert time.monotonic() - started > 2
    assert [path.name for path in (directory / "checkpoints").glob("*")] == ["step-00000002"]
    assert outcome(directory) == "interrupted"


@pytest.mark.parametrize(
    ("options", "said"),
    [({"hang_seconds": 60.0}, "nothing has moved"), ({"again_after": 2.5, "hang_seconds": 60.0}, "SIGTERM again")],
    ids=["grace", "again"],
)
def test_a_run_that_is_ended_without_a_checkpoint_does_not_say_that_it_saved(
    tiny_run: TinyRunner, options: dict[str, object], said: str
) -> None:
    text = of_signals(**options)
    file = tiny_run.file([SIGNALS], text.replace("1.0", "60.0") if "again_after" in options else text)

    with train(file, stderr=subprocess.PIPE) as process:
        _, errors = process.communicate(timeout=180)

    assert process.returncode == 128 + signal.SIGTERM
    assert f"{said}" in errors and "ending now, with what was saved before" in errors
    assert outcome(file.with_suffix("")) == "interrupted"


@pytest.mark.parametrize("console", ["closed pipe", "no stderr"])
def test_a_dead_console_ends_no_run(tiny_run: TinyRunner, console: str) -> None:
    file = tiny_run.file(steps=3)

    if console == "closed pipe":
        process = train(file, stderr=subprocess.PIPE)
        assert process.stderr is not None
        process.stderr.close()
    else:
        process = train(file, preexec_fn=lambda: os.close(2))

    assert process.wait(180) == 0
    assert outcome(file.with_suffix("")) == "finished"
    lines = (file.with_suffix("") / "events.jsonl").read_text().splitlines()
    assert all(json.loads(line)["event"] for line in lines)


def test_what_only_looks_or_tells_may_fail_and_is_named(tiny_run: TinyRunner) -> None:
    text = '[checkpoint]\nevery = 1\n[[validator]]\nkind = "careless"\nevery = 2'

    run = tiny_run([f"{ENDINGS}:Careless"], text)

    assert run.outcome == "finished"
    said = run.warnings("endings")
    assert [text.partition(" failed")[0] for text in said if "validator" in text] == [
        "validator 'careless' of plugin 'endings' (" + str(ENDINGS) + ")"
    ] * 3
    for what in ("st_checkpoint_saved", "st_exported", "st_run_end"):
        assert any(what in text and "ConnectionError: no route" in text for text in said), what
    assert "report.html could not be written: KeyError" in run.result.err


def test_a_checkpoint_hook_that_hangs_blocks_no_save(tiny_run: TinyRunner, tmp_path: Path) -> None:
    plugin = tmp_path / "hanging.py"
    plugin.write_text(HANGING)

    run = tiny_run([f"{plugin}:Hanging"], "[checkpoint]\nevery = 1\nkeep = 10")

    assert saved(run) == ["step-00000001", "step-00000002", "step-00000003"]
    assert (run.directory / "heard").read_text() == "1 2 3 "


HANGING = '''
import threading
import st


class Hanging:
    """Hear of checkpoints only when the run is over."""

    class Options(st.Options):
        """None."""

    def __init__(self, options):
        self.over = threading.Event()

    @st.hookimpl
    def st_checkpoint_saved(self, run, checkpoint):
        self.over.wait()
        with (run.directory / "heard").open("a") as file:
            file.write(f"{checkpoint.step} ")

    @st.hookimpl
    def st_run_end(self):
        self.over.set()
'''


def test_ranks_agree_on_what_is_asked_and_end_saved_when_their_launcher_is_killed(tiny_run: TinyRunner) -> None:
    """Started in a folder with a ``typer.py`` of the user's, which is none of their business."""
    file = tiny_run.file(steps=100_000, batch=1, text="[checkpoint]\nevery = 0\n[ranks]\nprocesses = 2")
    directory = file.with_suffix("")
    (tiny_run.root / "typer.py").write_text("raise SystemExit('imported')\n")
    command = [sys.executable, "-P", "-m", "st.cli", "train", str(file)]
    launcher = subprocess.Popen(command, cwd=tiny_run.root, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    ask_and_wait = answer(directory, _asked(directory, "save"), 60)
    ranks = psutil.Process(launcher.pid).children()
    launcher.kill()
    _, alive = psutil.wait_procs(ranks, timeout=60)

    assert ask_and_wait["done"], ask_and_wait
    assert len(ranks) == 2 and alive == []
    assert launcher.wait() == -signal.SIGKILL
    assert len(list((directory / "checkpoints").glob("step-*"))) == 2
    assert outcome(directory) == "interrupted"


def _asked(directory: Path, do: str) -> str:
    deadline = time.monotonic() + 60
    while (
        not (directory / "events.jsonl").exists() or '"event": "step"' not in (directory / "events.jsonl").read_text()
    ):
        assert time.monotonic() < deadline, "the run takes no step"
        time.sleep(0.05)
    return ask(directory, do)  # type: ignore[arg-type]
