"""A hook that harms wandb in the middle of a run."""

from __future__ import annotations

import json
import signal
from time import sleep

import psutil

import st


class Saboteur:
    """Send a signal to wandb's service after the second step, and write down to which processes."""

    class Options(st.Options):
        """Which harm."""

        signal: str = "SIGKILL"
        """Name of the signal."""

    def __init__(self, options: Options) -> None:
        self.options = options

    @st.hookimpl
    def st_step_end(self, run: st.Run) -> None:
        if run.progress.step == 2:
            services = services_of(run)
            for service in services:
                service.send_signal(getattr(signal, self.options.signal))
            pids = [process.pid for service in services for process in (service, *service.parents()[:1])]
            (run.directory / "harmed.json").write_text(json.dumps(pids), encoding="utf-8")


def services_of(run: st.Run) -> list[psutil.Process]:
    """The processes of wandb's service, once it has opened the run."""
    for _ in range(600):
        if (run.directory / "wandb" / "st.json").exists():
            return [child for child in psutil.Process().children(recursive=True) if child.name() == "wandb-core"]
        sleep(0.1)
    raise TimeoutError("wandb did not open the run for a minute")
