"""Steering: what a run is asked to do is done, between two steps, by all ranks alike."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from st.errors import StError
from st.train.beside.control import ANSWER
from st.train.beside.headway import mebibytes_moved
from st.train.saving.vault import PARTIAL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from st.train.beside.requests import Do, Request, Requests
    from st.train.session import Session

RATE = "optimizer.lr"
RATE_OF = "learners.{}.lr"
"""The rate of a further learner, by its name."""
PAUSE_SECONDS = 0.2
"""Between two looks at what is asked while a run is paused."""


class Steering:
    """Does what was asked after each step, and answers in the event log. Its ``stop_requested`` is the loop's."""

    def __init__(self, session: Session, requests: Requests) -> None:
        self.session, self.requests = session, requests
        self._paused = self._stopping = False
        self._deeds: dict[Do, Callable[[Request], str]] = {
            "stop": self._stop,
            "pause": self._pause,
            "resume": self._resume,
            "save": self._save,
            "validate": self._validate,
            "set": self._set,
        }

    def stop_requested(self) -> bool:
        """Do what any rank was asked; whether the run is to end. Returns only when it is not paused."""
        ranks, report = self.session.run.ranks, self.session.run.report
        self._do(self.requests.agreed(ranks))
        if self._waits():
            with report.pause("paused"), ranks.doing("pausing"):
                while self._waits():
                    time.sleep(PAUSE_SECONDS)
                    self._do(self.requests.agreed(ranks))
        return self._stopping

    def _waits(self) -> bool:
        return self._paused and not self._stopping

    def _do(self, requests: Iterable[Request]) -> None:
        for request in requests:
            try:
                said, done = self._deeds[request.do](request), True
            except StError as error:
                said, done = f"asked by {request.source} to {request.do}: {error}", False
            self.session.run.report.note(
                said, kind=ANSWER, id=request.id, do=request.do, source=request.source, done=done
            )

    def _stop(self, request: Request) -> str:
        self._stopping = True
        return f"stopped by {request.source} after step {self._step}"

    def _pause(self, request: Request) -> str:
        self._paused = True
        return f"paused by {request.source} after step {self._step}; st ctl resume goes on"

    def _resume(self, request: Request) -> str:
        self._paused = False
        return f"resumed by {request.source} after step {self._step}"

    def _save(self, request: Request) -> str:
        session = self.session
        if session.saved_at != self._step:
            session.save()
        session.saver.wait()
        if not session.is_saved():
            raise StError(f"the checkpoint of step {self._step} could not be written")
        return f"saved at step {self._step}, as {request.source} asked"

    def _validate(self, request: Request) -> str:
        if not self.session.measures:
            raise StError("this run measures nothing", fix="set validation.every or evaluation.every")
        self.session.measure_now()
        return f"validated at step {self._step}, as {request.source} asked"

    def _set(self, request: Request) -> str:
        schedules = self.session.schedules()
        if request.name not in schedules:
            raise StError(f"{request.name!r} cannot change while a run trains", fix=f"what can: {', '.join(schedules)}")
        schedule = schedules[request.name]
        # A rule of groups may give each group of the first learner a rate of its own; a further one has one group.
        top = max(schedule.tops)
        if request.name == RATE:
            top = float(self.session.run.config.optimizer.options.model_dump()["lr"])
        factor = _factor(request.name, request.value, top, schedule.factor)
        self.session.set_rate(request.name, factor)
        return f"{request.name} is {top * factor:g} from step {self._step + 1}, as {request.source} asked"

    @property
    def _step(self) -> int:
        return self.session.run.progress.step


def _factor(name: str, value: str, top: float, now: float) -> float:
    """What all rates are multiplied by: ``x0.5`` is half of what it is ``now``, a number is what ``top`` becomes."""
    try:
        number = float(value.removeprefix("x"))
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise StError(f"{name} = {value!r} is no rate", fix=f"say {name}=1e-5 for a rate, {name}=x0.5 for a factor")
    return now * number if value.startswith("x") else number / top


def headway(session: Session) -> object:
    """Changes while a run that was told to stop gets on: steps, pieces of a stage, files and bytes of a checkpoint."""
    run, vault = session.run, session.folder.vault
    sizes = [_size(path) for partial in vault.directory.glob(f"{PARTIAL}*") for path in partial.rglob("*")]
    written = (vault.sealed, len(sizes), sum(sizes), mebibytes_moved())
    return (run.progress.step, run.report.advanced, *written)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # renamed into place meanwhile
