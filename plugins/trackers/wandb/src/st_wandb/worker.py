"""The process that wandb runs in: requests are lines of JSON on its standard input, each answered with one line."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import psutil
import wandb

from st.report.files.clip_files import CLIPS
from st.report.files.sound_files import SOUNDS
from st_wandb.processes import end_all

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType


class Session:
    """One run in wandb. Steps below the one at which it goes on are there already, and wandb takes none twice."""

    def __init__(self) -> None:
        self.run: wandb.Run | None = None
        self.patience = 0.0
        self._first = 0

    def open(self, patience: float, stats_pid: int, about: Mapping[str, Any]) -> dict[str, Any]:
        """Begin a run or go on with it. stats_pid: the process whose use of the machine is shown."""
        self.patience = patience
        settings = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            # Before the run loses its patience, so that wandb says what it waited for.
            init_timeout=patience / 2,
            x_stats_pid=stats_pid,
        )
        self.run = wandb.init(**about, settings=settings)
        self._first = self.run.step
        return {"url": "" if self.run.offline else self.run.url or ""}

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._log(step, metrics)

    def show(self, step: int, pictures: Sequence[tuple[str, str, str]]) -> None:
        """Show files, each (path, prompt, label), under their labels."""
        self._log(step, {f"samples/{label}": medium_of(Path(path), prompt) for path, prompt, label in pictures})

    def finish(self, exit_code: int) -> None:
        """Wait until everything is written, and sent where the run is online."""
        assert self.run is not None
        self.run.finish(exit_code=exit_code)
        self.run = None
        wandb.teardown()

    def _log(self, step: int, row: Mapping[str, Any]) -> None:
        assert self.run is not None
        if step >= self._first:
            self.run.log(dict(row), step=step)


def medium_of(path: Path, prompt: str) -> wandb.Image | wandb.Video | wandb.Audio:
    """A file as what wandb shows it as; its bytes stay as they are. Raises OSError for a picture that is none."""
    if path.suffix in CLIPS:
        return wandb.Video(str(path), caption=prompt)
    if path.suffix in SOUNDS:
        return wandb.Audio(str(path), caption=prompt)
    return wandb.Image(str(path), caption=prompt)


def main() -> None:
    """Answer requests until there are no more; a run that nobody finished has failed."""
    requests, answers = _own_pipes()
    sys.excepthook = partial(_fail, answers)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    session = Session()
    calls: dict[str, Callable[..., dict[str, Any] | None]] = {
        "open": session.open,
        "log": session.log,
        "show": session.show,
        "finish": session.finish,
    }
    for line in requests:
        name, arguments = json.loads(line)
        _answer(answers, calls[name](**arguments) or {})
    if session.run is not None:
        threading.Timer(session.patience, _give_up).start()
        session.finish(exit_code=1)
        os._exit(1)


def _own_pipes() -> tuple[IO[str], IO[str]]:
    """The pipes to the run, out of wandb's way: it reads nothing, and what it and its service print goes to the log."""
    requests, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return requests, answers


def _answer(answers: IO[str], answer: Mapping[str, Any]) -> None:
    print(json.dumps(answer), file=answers, flush=True)


def _fail(answers: IO[str], kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Say what went wrong and end at once: wandb's own way out waits for its service, which may be what is broken."""
    _answer(answers, {"error": f"{kind.__name__}: {error}"})
    sys.__excepthook__(kind, error, trace)
    sys.stderr.flush()
    _give_up()


def _give_up() -> None:
    end_all(psutil.Process().children(recursive=True))
    os._exit(1)


if __name__ == "__main__":
    main()
