"""Saver: copies and writes checkpoints on a thread of its own, while the loop computes the next gradients."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from st.errors import OutputUnwritable
from st.train.saving.state import snapshot, write_state

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from st.notes import Notes
    from st.progress import Checkpoint
    from st.train.saving.checkpoint import CheckpointOptions
    from st.train.saving.vault import Vault

FAILURES_ALLOWED = 1


class Saver:
    """Saves in the background, one checkpoint at a time; a new save waits for the one before it.

    announce is called from the writing thread with each complete checkpoint. One failed save is reported and training
    goes on; a second in a row raises OutputUnwritable from the next call.
    """

    def __init__(
        self, vault: Vault, options: CheckpointOptions, report: Notes, announce: Callable[[Checkpoint], None]
    ) -> None:
        self.vault, self.options, self.report, self.announce = vault, options, report, announce
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._failures: list[OSError] = []
        self._room: Mapping[str, Any] = {}
        self._copied: threading.Event | None = None
        self._stalled = 0.0

    def save(self, step: int, states: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Begin to save. The states' tensors must not change until ``copied`` returns."""
        started = time.perf_counter()
        self.wait()
        self._copied = threading.Event()
        self._stalled = time.perf_counter() - started
        self._writing = self._writer.submit(self._save, step, states, facts, self._copied)

    def copied(self) -> None:
        """Until what is being saved is copied, so that weights may change again."""
        if self._copied is None:
            return
        started = time.perf_counter()
        self._copied.wait()
        self._copied = None
        self._stalled += time.perf_counter() - started

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

    def _save(self, step: int, states: Mapping[str, Any], facts: Mapping[str, Any], copied: threading.Event) -> None:
        started = time.perf_counter()
        try:
            # The parcel before is written, and makes room for this one.
            self._room = snapshot(dict(states), self._room)
        finally:
            copied.set()

        def fill(directory: Path) -> None:
            (directory / "state").mkdir()
            for name, state in self._room.items():
                write_state(directory / "state", name, state)

        try:
            checkpoint = self.vault.write(step, fill, facts)
        except OSError as error:
            self._failures.append(error)
            kept = self.vault.steps()
            self.report.note(
                f"checkpoint of step {step} could not be written: {error}; "
                + (f"the one of step {kept[-1]} is untouched" if kept else "there is none yet"),
                kind="checkpoint_failed",
                step=step,
            )
            return
        self._failures.clear()
        for gone in self.vault.prune(self.options.keep):
            self.report.note(f"checkpoint of step {gone} removed", kind="checkpoint_removed", step=gone)
        self.report.note(
            f"checkpoint of step {step} saved",
            kind="checkpoint",
            step=step,
            directory=str(checkpoint.directory),
            stalled_seconds=round(self._stalled, 4),
            wrote_seconds=round(time.perf_counter() - started, 4),
        )
        self.announce(checkpoint)
