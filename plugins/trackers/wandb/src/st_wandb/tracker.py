"""WandB: a run in Weights & Biases."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, StringConstraints

import st

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from st_wandb.memory import Memory

EXIT_CODES = {"finished": 0, "interrupted": 255, "failed": 1}
"""How wandb is told of an outcome; 255 is what it takes Ctrl-C for."""


class WandB(st.Tracker):
    """Write metrics, settings, pictures, clips and sounds for Weights & Biases.

    wandb works in a process of its own. Where it raises, or takes longer than it may, that process is ended and the
    tracker is off. A run that goes on after a checkpoint goes on in wandb; what the steps that are done again had
    logged is kept.
    """

    class Options(st.Options):
        """What the run is called in Weights & Biases, and whether it is sent there."""

        project: str = Field(default="st", min_length=1, max_length=128, pattern=r"^[^/\\#?%:]+$")
        """Project that the run belongs to."""
        entity: str = ""
        """User or team that the project belongs to. Empty for the account's own choice."""
        name: str = Field(default="", max_length=128)
        """Name of the run. Empty for the name that it has here."""
        group: str = Field(default="", max_length=128)
        """Group of runs that this one is shown in."""
        tags: tuple[Annotated[str, StringConstraints(min_length=1, max_length=64)], ...] = ()
        """Tags of the run."""
        notes: str = ""
        """What is to be known of the run."""
        mode: Literal["online", "offline"] = "online"
        """Send the run while it trains (online), or keep it in the run's folder for wandb sync (offline)."""
        patience_seconds: float = Field(default=120.0, gt=0)
        """Seconds that wandb may take for one call; if it takes longer, it is off for the rest of the run."""

    options: Options

    @st.hookimpl
    def st_check(self) -> list[st.Problem]:
        """A login that is missing. Nothing asks for one later: nobody may sit before a run."""
        from st_wandb.login import is_logged_in, server

        if self.options.mode == "offline" or is_logged_in(os.environ):
            return []
        what = f"wandb.mode = 'online': there is no login for {server(os.environ)!r}."
        fix = "Type wandb login, set WANDB_API_KEY, or set wandb.mode to 'offline'."
        return [st.Problem("wandb.mode", what, fix=fix)]

    def start(self, run: st.RunInfo) -> None:
        from st_wandb.memory import Memory
        from st_wandb.processes import Worker

        self._directory = run.directory.resolve()
        before = Memory.of(self._directory)
        self._memory = before or Memory.new()
        self._first = self._memory.step + 1
        self._worker = Worker(self._directory / "wandb", self.options.patience_seconds)
        about = {
            **self.options.model_dump(include={"project", "mode"}),
            **{name: getattr(self.options, name) or None for name in ("entity", "group", "tags", "notes")},
            "name": self.options.name or run.name,
            "dir": str(self._directory),
            "config": run.config,
            "id": self._memory.id,
            "resume": "allow" if before else None,
        }
        answer = self._worker.ask("open", patience=self.options.patience_seconds, stats_pid=os.getpid(), about=about)
        self._remember(replace(self._memory, url=answer["url"]))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step >= self._first:
            self._worker.ask("log", step=step, metrics=dict(metrics))
            self._remember(self._memory.logged(step))

    def show(self, step: int, pictures: Sequence[st.Picture]) -> None:
        if step >= self._first:
            shown = [(str(picture.path.resolve()), picture.prompt, picture.label) for picture in pictures]
            self._worker.ask("show", step=step, pictures=shown)
            self._remember(self._memory.logged(step))

    def finish(self, outcome: st.Outcome) -> None:
        self._worker.ask("finish", exit_code=EXIT_CODES[outcome.value])
        self._worker.close()

    def _remember(self, memory: Memory) -> None:
        if memory != self._memory or memory.step < 0:
            memory.write(self._directory)
            self._memory = memory
