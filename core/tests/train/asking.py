"""A plugin that asks the run for things through ``run.requests``, and one that asks through its control file."""

from __future__ import annotations

import time
from typing import Any

import st


class Asking:
    """Halve the rate after the second step, save after the third, and stop then where that is asked for."""

    class Options(st.Options):
        stop: bool = False
        """Whether to stop after the third step."""

    def __init__(self, options: Options) -> None:
        self.options = options

    @st.hookimpl
    def st_step_end(self, run: Any) -> None:
        if run.progress.step == 2:
            run.requests.set("optimizer.lr", "x0.5")
        if run.progress.step == 3:
            run.requests.save()
            run.requests.save()
            if self.options.stop:
                run.requests.stop("the third step")


class Early:
    """Ask the run to stop, through its control file, before it trains."""

    class Options(st.Options):
        """None."""

    def __init__(self, options: Options) -> None: ...

    @st.hookimpl
    def st_denoiser_loaded(self, run: Any) -> None:
        from st.train.beside.control import ask

        ask(run.directory, "stop")
        time.sleep(60)
