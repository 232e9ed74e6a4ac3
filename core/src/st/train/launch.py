"""Launching: the same command once per rank, under torchrun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from st.train.ranks import processes_wanted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

    from st.train.ranks import RanksOptions

LAUNCHED = "ST_LAUNCHED"
"""Set in the environment of ranks that this module has started."""

INTERRUPTED = 4
"""Exit status of a run that was told to stop and has saved what it learned."""


def run_ranks(options: RanksOptions, device: str, arguments: Sequence[str]) -> int | None:
    """Run this command once per rank and return its exit status; None where this process is a rank already, or alone.

    A launcher of the user's own (torchrun, accelerate launch, Slurm with torchrun) sets WORLD_SIZE, and then nothing is
    started. Ctrl-C and SIGTERM are passed on to the ranks, which save and end by themselves.
    """
    wanted = processes_wanted(options, device)
    if "WORLD_SIZE" in os.environ or wanted == 1:
        return None
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={wanted}", "--signals-to-handle=SIGHUP"]
    threads = str(max((os.cpu_count() or 1) // wanted, 1))
    process = subprocess.Popen(
        [sys.executable, "-m", *torchrun, "-m", "st.cli", *arguments],
        env={"OMP_NUM_THREADS": threads, **os.environ, LAUNCHED: "1"},
        preexec_fn=_ignore_signals,
    )
    told: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        told.append(number)
        for rank in _ranks_of(process.pid):
            os.kill(rank, number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    status = process.wait()
    return INTERRUPTED if told and not status else status


def interrupted_status() -> int:
    """The exit status of an interrupted run: to torchrun, any but 0 is a failure that it shows at length."""
    return 0 if LAUNCHED in os.environ else INTERRUPTED


def _ignore_signals() -> None:
    """For torchrun, which would kill its ranks on the signals that tell them to save."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _ranks_of(torchrun: int) -> list[int]:
    """The process ids of the ranks; none where torchrun is gone."""
    import psutil

    try:
        return [child.pid for child in psutil.Process(torchrun).children()]
    except psutil.NoSuchProcess:
        return []
