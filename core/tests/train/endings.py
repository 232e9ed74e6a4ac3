"""Plugins that end a run in the ways in which runs end."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from typing import Any

import st


class Signals:
    """Send this process a signal, when it is to be sent."""

    class Options(st.Options):
        name: str = "SIGTERM"
        """Which one."""
        step: int = 2
        """After which step; 0 is before training."""
        again_after: float = 0.0
        """Seconds after which it is sent once more."""
        hang_seconds: float = 0.0
        """How long nothing happens then."""
        slow_seconds: float = 0.0
        """How long it takes to bring a file to the disk."""

    def __init__(self, options: Options) -> None:
        self.options = options

    @st.hookimpl
    def st_denoiser_loaded(self, run: Any) -> None:
        if self.options.slow_seconds:
            quick = os.fsync

            def slow(descriptor: int) -> None:
                time.sleep(self.options.slow_seconds)
                quick(descriptor)

            os.fsync = slow  # type: ignore[assignment]
        if not self.options.step:
            self._send()

    @st.hookimpl
    def st_step_end(self, run: Any) -> None:
        if run.progress.step == self.options.step:
            self._send()

    def _send(self) -> None:
        number = getattr(signal, self.options.name)
        os.kill(os.getpid(), number)
        if self.options.again_after:
            time.sleep(self.options.again_after)
            os.kill(os.getpid(), number)
        time.sleep(self.options.hang_seconds)


class Fails:
    """Fail after the second step, or in the middle of the third."""

    class Options(st.Options):
        inside: bool = False
        """In the middle of the third step's update."""

    def __init__(self, options: Options) -> None:
        self.options = options

    @st.hookimpl
    def st_step(self, run: st.Run) -> st.StepWrapper:
        def wrap(step: st.Step) -> st.Step:
            def update() -> st.UpdateStats:
                if self.options.inside and run.progress.step == 2:
                    raise ZeroDivisionError("half way")
                return step.update()

            return replace(step, update=update)

        return wrap

    @st.hookimpl
    def st_step_end(self, run: Any) -> None:
        if not self.options.inside and run.progress.step == 2:
            raise ZeroDivisionError("after the step")


class Unwritable:
    """Put a file where checkpoints are to go, after the second step, and end the run there where that is asked for."""

    class Options(st.Options):
        stop: bool = False
        """Whether the run is told to stop then."""

    def __init__(self, options: Options) -> None:
        self.options = options

    @st.hookimpl
    def st_step_end(self, run: Any) -> None:
        if run.progress.step == 2:
            (run.directory / "checkpoints").write_text("in the way")
            if self.options.stop:
                run.requests.stop()


class Careless:
    """Fail wherever a run only looks or tells: in a validator, in hooks about files, and in the page's source."""

    class Options(st.Options):
        """None."""

    def __init__(self, options: Options) -> None:
        self.options = options

    @st.hookimpl
    def st_register(self, register: Any) -> None:
        register.add(st.VALIDATOR, "careless", Divides, st.Options)

    @st.hookimpl
    def st_step_end(self, run: Any) -> None:
        if run.progress.step == 1:
            with (run.directory / "events.jsonl").open("a") as file:
                file.write('{"event": "step"}\n')

    @st.hookimpl
    def st_checkpoint_saved(self, run: Any, checkpoint: Any) -> None:
        raise ConnectionError(f"no route for step {checkpoint.step}")

    @st.hookimpl
    def st_exported(self, run: Any, files: Any) -> None:
        raise ConnectionError("no route for files")

    @st.hookimpl
    def st_run_end(self, run: Any) -> None:
        raise ConnectionError("no route at the end")


class Divides(st.Validator):
    """Fail whenever it is asked."""

    def validate(self, run: st.Run, rendered: Any) -> st.ValidationReport:
        raise ZeroDivisionError("nothing to divide by")
