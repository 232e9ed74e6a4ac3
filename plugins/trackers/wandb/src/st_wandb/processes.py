"""The process that wandb runs in, seen from the run: it is asked, waited for so long, and ended with all it started."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

LOG = "worker.log"


class WandbFailed(RuntimeError):
    """wandb raised, did not answer in time, or its process is gone. That process is ended then."""


class Worker:
    """A child process in which wandb does what it is asked, one request after the other.

    wandb itself would replace ``sys.exit`` and ``sys.excepthook`` of the process that imports it, and keep that process
    from ending where its service hangs. What is started here does not outlive the process that started it, and does
    not hear its Ctrl-C.
    """

    def __init__(self, folder: Path, patience_seconds: float) -> None:
        """folder: for the log of what wandb prints. patience_seconds: what a request may take."""
        folder.mkdir(parents=True, exist_ok=True)
        self._log, self._patience = folder / LOG, patience_seconds
        # Another process's service would decide when this run's ends.
        environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                # -P: a wandb.py in the current folder is not the library.
                [sys.executable, "-P", "-m", "st_wandb.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                encoding="utf-8",
                start_new_session=True,
            )
        self._started: list[psutil.Process] = []
        self._answers: queue.Queue[str] = queue.Queue()
        abandoned = threading.Event()
        assert self._process.stdout is not None
        arguments = (self._process.stdout, self._answers, abandoned)
        threading.Thread(target=_listen, args=arguments, name="answers of wandb", daemon=True).start()
        self._finalizer = weakref.finalize(self, _abandon, self._process, self._started, abandoned)

    def ask(self, request: str, **arguments: Any) -> dict[str, Any]:
        """What the process answers. Raises WandbFailed."""
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps([request, arguments], default=str) + "\n")
            stdin.flush()
            line = self._answers.get(timeout=self._patience)
        except OSError:
            line = ""
        except queue.Empty:
            self.end()
            raise WandbFailed(f"no answer for {self._patience:g} seconds (wandb.patience_seconds)") from None
        answer: dict[str, Any] = json.loads(line) if line else {"error": "its process ended"}
        if "error" in answer:
            self.end()
            raise WandbFailed(f"{answer['error']}; {str(self._log)!r} says more")
        self._started[:] = _children(self._process)
        return answer

    def end(self) -> None:
        """End the process, with everything that it started, where it has not ended by itself."""
        self._finalizer()

    def close(self) -> None:
        """Let the process end by itself, as long as a request may take."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(self._patience)
        except subprocess.TimeoutExpired:
            raise WandbFailed(f"its process did not end for {self._patience:g} seconds") from None
        finally:
            self.end()


def end_all(processes: Iterable[psutil.Process]) -> None:
    """Kill processes, stopped ones too."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _listen(answers: IO[str], lines: queue.Queue[str], abandoned: threading.Event) -> None:
    with answers:
        for line in answers:
            lines.put(line)
    # Nobody is told of an end that this process brought about when it ended itself: the report is closed by then.
    if not abandoned.is_set():
        lines.put("")


def _abandon(process: subprocess.Popen[str], started: list[psutil.Process], abandoned: threading.Event) -> None:
    abandoned.set()
    end_all([*started, *_children(process)])
    process.kill()
    process.wait()
    assert process.stdin is not None
    with suppress(OSError):  # what it was asked last may still be in the pipe
        process.stdin.close()


def _children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """All that a process has started and that still runs; nothing where it has ended itself."""
    if process.poll() is not None:
        return []
    try:
        return list(psutil.Process(process.pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []
