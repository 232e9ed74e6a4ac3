"""Launching: the same command once per rank, and an eye on all of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from st.errors import RankLost
from st.train.beside.headway import mebibytes_moved
from st.train.beside.listening import SAVED, SAVING, STOPPING
from st.train.ranks.ranks import processes_wanted
from st.train.ranks.whereabouts import LAUNCHED, STARTING, Watch, missing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

    from st.train.ranks.ranks import RanksOptions

LOST = RankLost.exit_code
POLL_SECONDS = 0.1
GRACE_SECONDS = 30.0
"""How long ranks may get nowhere when one of them has failed: rank 0 finishes its report, and what it is writing."""
MEETING_SECONDS = 5.0
"""How long ranks that have not met may take when one of them has failed: mostly all fail of the same, and say so."""
TAIL_LINES = 40

LAUNCHER = "ST_LAUNCHER"
"""Set in the environment of ranks: the process that started them."""

_PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""


def run_ranks(options: RanksOptions, device: str, arguments: Sequence[str]) -> int | None:
    """Run this command once per rank and return its exit status; None where this process is a rank already, or alone.

    A launcher of the user's own (torchrun, accelerate launch, Slurm with torchrun) sets WORLD_SIZE, and then nothing is
    started. Signals are passed on to the ranks, which save and end by themselves, also where this process is killed.
    Rank 0 has the terminal; what another prints is shown where that one fails.
    """
    if LAUNCHER in os.environ:
        _follow(int(os.environ[LAUNCHER]))
    wanted = processes_wanted(options, device)
    if "WORLD_SIZE" in os.environ or wanted == 1:
        return None
    with TemporaryDirectory(prefix="st-ranks-", ignore_cleanup_errors=True) as folder:
        return _Launch(Path(folder), wanted, options.patience_seconds).run(arguments)


class _Launch:
    """The ranks of one run on this machine. patience: seconds that ranks wait before the missing ones are named."""

    def __init__(self, folder: Path, count: int, patience: float) -> None:
        self.folder, self.count, self.patience = folder, count, patience
        self.watch = Watch(folder, count)
        self.processes: list[subprocess.Popen[bytes]] = []
        self._named: tuple[tuple[int, ...], str] = ((), "")
        self._next_naming = 0.0

    def run(self, arguments: Sequence[str]) -> int:
        """Start them, wait for them, and say which one failed and where. The exit status of the run."""
        numbers = [getattr(signal, name) for name in (*STOPPING, SAVING) if hasattr(signal, name)]
        # What was started to survive a hang-up (nohup) does.
        heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
        previous = {number: signal.signal(number, self._pass_on) for number in heard}
        try:
            self.processes = [self._start(rank, arguments) for rank in range(self.count)]
            while not self._failed() and any(process.poll() is None for process in self.processes):
                time.sleep(POLL_SECONDS)
                self._name_missing()
            self._let_end()
            # Before those that go on are killed here.
            failed = self._failed()
        finally:
            for process in self.processes:
                process.kill()
                process.wait()
            for number, handler in previous.items():
                signal.signal(number, handler)
        return self._conclude(failed)

    def _start(self, rank: int, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        threads = str(max((os.cpu_count() or 1) // self.count, 1))
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self.count, "LOCAL_WORLD_SIZE": self.count}
        environment = {
            "OMP_NUM_THREADS": threads,
            **os.environ,
            **{name: str(value) for name, value in places.items()},
            LAUNCHED: str(self.folder),
            LAUNCHER: str(os.getpid()),
        }
        # Without -P, -m would import what lies in the current folder in place of what is installed.
        command = [sys.executable, "-P", "-m", "st.cli", *arguments]
        if not rank:
            return subprocess.Popen(command, env=environment)
        with self._errors(rank).open("wb") as errors:
            return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=errors)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        for process in self.processes:
            with suppress(ProcessLookupError):
                process.send_signal(number)

    def _failed(self) -> list[int]:
        """Ranks that failed, and not for the loss of another: those that were killed first."""
        statuses = {rank: process.poll() for rank, process in enumerate(self.processes)}
        failed = [rank for rank, status in statuses.items() if status not in (None, 0, SAVED, LOST, *_ENDED)]
        return sorted(failed, key=lambda rank: (statuses[rank] or 0) > 0)

    def _let_end(self) -> None:
        moved, now = self._moved(), time.monotonic()
        met_by, deadline = now + MEETING_SECONDS, now + GRACE_SECONDS
        while any(process.poll() is None for process in self.processes) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            if time.monotonic() >= met_by and self._wait_for_each_other():
                return
            if time.monotonic() >= deadline:
                before, moved = moved, self._moved()
                deadline += GRACE_SECONDS if moved != before else 0.0

    def _wait_for_each_other(self) -> bool:
        """Whether one failed before all had met: the others have nothing to save, and would wait for it."""
        places = zip(self.processes, self.watch.places(), strict=True)
        return bool(self._failed()) and all(
            place.stage == STARTING for process, place in places if process.poll() is None
        )

    def _moved(self) -> list[int]:
        """Changes while a rank that still runs reads or writes: it may be saving."""
        return [mebibytes_moved(process.pid) for process in self.processes if process.poll() is None]

    def _name_missing(self) -> None:
        found = missing(self.watch.places(), time.monotonic(), self.patience)
        if found is None:
            return
        absent, awaited, seconds = found
        absent = [rank for rank in absent if self.processes[rank].poll() is None]
        same = self._named == (tuple(absent), awaited)
        if not absent or (same and seconds < self._next_naming):
            return
        self._named, self._next_naming = (tuple(absent), awaited), 2 * seconds
        for rank in absent:
            stage = self.watch.places()[rank].stage
            stopped = "; its process is stopped" if _is_stopped(self.processes[rank].pid) else ""
            _say(f"Warning: rank {rank} has not reached {awaited!r} for {seconds:.0f} s: it is in {stage!r}{stopped}")

    def _conclude(self, failed: Sequence[int]) -> int:
        """Say what is not on the screen yet: what rank 0 failed of is, and others mostly fail of the same."""
        statuses = [process.returncode for process in self.processes]
        if not failed and statuses[0] == SAVED:
            return SAVED
        if not failed:
            return max(1 if status == LOST else abs(status) for status in statuses)
        rank = failed[0]
        place, status = self.watch.places()[rank], statuses[rank]
        where = f"in {place.stage!r}" + (f", waiting at {place.awaited!r}" if place.awaited else "")
        if status < 0:
            _say(f"Error: rank {rank} died {where}: it was killed by {signal.Signals(-status).name}")
        elif rank:
            _say(f"Error: rank {rank} failed {where}:")
            lines = self._errors(rank).read_text(encoding="utf-8", errors="replace").splitlines()
            _say("\n".join(f"  {line}" for line in lines[-TAIL_LINES:]))
        return max(status, 1)

    def _errors(self, rank: int) -> Path:
        return self.folder / f"rank-{rank}.err"


_ENDED = tuple(128 + getattr(signal, name) for name in STOPPING if hasattr(signal, name))
"""Exit statuses of ranks that a signal ended before they had saved."""


def _follow(launcher: int) -> None:
    """Be told to stop when the process that started this one ends, however it does. Linux only."""
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != launcher:
        os.kill(os.getpid(), signal.SIGTERM)  # it was gone before it could be asked for


def _is_stopped(process: int) -> bool:
    import psutil

    try:
        return bool(psutil.Process(process).status() == psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return False


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
