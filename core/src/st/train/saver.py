"""Saver: writes checkpoints on a thread of its own, so that a save costs the loop only a copy in memory."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from st.errors import OutputUnwritable
from st.train.state import snapshot, write_state

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from st.report.report import Report
    from st.train.checkpoint import CheckpointOptions
    from st.train.run import Checkpoint
    from st.train.vault import Vault

FAILURES_ALLOWED = 1


@dataclass(frozen=True, slots=True)
class Parcel:
    """What one checkpoint holds: named states, already copied, and facts for its manifest."""

    step: int
    states: Mapping[str, Any]
    facts: Mapping[str, Any]


class Saver:
    """Saves in the background, one checkpoint at a time; a new save waits for the one before it.

    announce is called from the writing thread with each complete checkpoint. One failed save is reported and training
    goes on; a second in a row raises OutputUnwritable from the next call.
    """

    def __init__(
        self, vault: Vault, options: CheckpointOptions, report: Report, announce: Callable[[Checkpoint], None]
    ) -> None:
        self.vault, self.options, self.report, self.announce = vault, options, report, announce
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._failures: list[OSError] = []
        self._room: Mapping[str, Any] = {}

    def save(self, step: int, states: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Copy the states now, write them later."""
        started = time.perf_counter()
        self.wait()
        # The parcel before is written, and makes room for this one.
        self._room = snapshot(dict(states), self._room)
        parcel = Parcel(step, self._room, facts)
        stalled = time.perf_counter() - started
        self._writing = self._writer.submit(self._write, parcel, stalled)

    def wait(self) -> None:
        """Until nothing is being written. Raises what the writing thread could not recover from."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()
        if len(self._failures) > FAILURES_ALLOWED:
            raise OutputUnwritable(
                f"two checkpoints in a row could not be written: {self._failures[-1]}",
                fix=f"make room on the disk of {self.vault.directory}, then resume with --resume",
            )

    def close(self) -> None:
        """Let the write that is under way end; start no other."""
        self._writer.shutdown(wait=True)

    def _write(self, parcel: Parcel, stalled: float) -> None:
        started = time.perf_counter()

        def fill(directory: Path) -> None:
            (directory / "state").mkdir()
            for name, state in parcel.states.items():
                write_state(directory / "state", name, state)

        try:
            checkpoint = self.vault.write(parcel.step, fill, parcel.facts)
        except OSError as error:
            self._failures.append(error)
            kept = self.vault.steps()
            self.report.note(
                f"checkpoint of step {parcel.step} could not be written: {error}; "
                + (f"the one of step {kept[-1]} is untouched" if kept else "there is none yet"),
                kind="checkpoint_failed",
                step=parcel.step,
            )
            return
        self._failures.clear()
        for step in self.vault.prune(self.options.keep):
            self.report.note(f"checkpoint of step {step} removed", kind="checkpoint_removed", step=step)
        self.report.note(
            f"checkpoint of step {parcel.step} saved",
            kind="checkpoint",
            step=parcel.step,
            directory=str(checkpoint.directory),
            stalled_seconds=round(stalled, 4),
            wrote_seconds=round(time.perf_counter() - started, 4),
        )
        self.announce(checkpoint)
