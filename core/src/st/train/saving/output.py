"""The run's folder: one run at a time writes to it, and it says what made it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from st.errors import OutputUnwritable, Problem, ProblemsFound
from st.train.saving.differences import Difference, differences
from st.train.saving.vault import Vault, write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SETTINGS, MANIFEST, LOCK = "run.json", "manifest.json", ".lock"

FREE = frozenset(
    (
        "steps",
        "epochs",
        "output",
        "name",
        "device",
        "report",
        "validation",
        "evaluation",
        "checkpoint",
        "ranks",
        "compile",
        "metadata",
    )
)
"""Sections and keys that a resumed run may change without being asked: they alter nothing that was trained so far."""

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "safetensors", "numpy", "pillow")


class OutputFolder:
    """The folder that ``output`` names: claimed by one process at a time through a lock that dies with it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.vault = Vault(directory / "checkpoints")
        self._lock = FileLock(directory / LOCK)

    def claim(self) -> None:
        """Make the folder and take its lock.

        Raises OutputUnwritable where another run has it or it cannot be written.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
            (self.directory / LOCK).write_text(f"{os.getpid()}\n", encoding="ascii")
            for folder in (self.directory, self.vault.directory):
                _sweep(folder)
        except Timeout as error:
            raise OutputUnwritable(
                f"output = {str(self.directory)!r}: another run is writing there",
                fix="wait for it, or choose another folder: --output DIR",
            ) from error
        except OSError as error:
            raise OutputUnwritable(
                f"output = {str(self.directory)!r} cannot be written: {error.strerror or error}",
                fix="choose another folder: --output DIR",
            ) from error

    def release(self) -> None:
        """Give the lock back."""
        self._lock.release()

    def settings(self) -> Mapping[str, Any] | None:
        """The settings that the folder's run was started with; None for a new folder."""
        path = self.directory / SETTINGS
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None

    def open(self, settings: Mapping[str, Any], *, resume: bool, accepted: Sequence[str]) -> list[str]:
        """Check the settings against the folder's and store them; what changed, as lines for the report.

        Raises OutputUnwritable where the folder holds a run and none is to be resumed, and ProblemsFound for every
        changed setting that is neither free to change nor named in ``accepted``.
        """
        before = self.settings()
        steps = self.vault.steps()
        if before is not None and steps and not resume:
            raise OutputUnwritable(
                f"output = {str(self.directory)!r} holds a run that was saved at step {steps[-1]}",
                fix="continue it with --resume, or choose another folder: --output DIR",
            )
        changed = differences(before, settings) if before is not None and resume else []
        refused = [change for change in changed if not _may_change(change.key, accepted)]
        if refused:
            raise ProblemsFound([_refusal(change) for change in refused])
        write_atomically(self.directory / SETTINGS, json.dumps(settings, indent=1))
        return [f"{change.key} changed from {change.old!r} to {change.new!r} at this resume" for change in changed]

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Write ``manifest.json``: what made this folder."""
        # A folder's run began when the first of its manifests was written.
        began = {"started": self.started()}
        write_atomically(self.directory / MANIFEST, json.dumps({**began, **environment(), **facts}, indent=1))

    def started(self) -> float:
        """When the folder's run was begun, in seconds since 1970; now, where it was not yet."""
        path = self.directory / MANIFEST
        told = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return float(told.get("started") or now())


def _sweep(folder: Path) -> None:
    """Remove files and folders that a killed process left half written: nobody else writes here."""
    for entry in [*folder.glob(".*.partial"), *folder.glob(".*.part")]:
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def environment() -> dict[str, Any]:
    """Versions of Python and of the libraries that compute, the platform, and the time in UTC."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: _version(name) for name in LIBRARIES},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _may_change(key: str, accepted: Sequence[str]) -> bool:
    allowed = {*FREE, *accepted}
    parts = key.split(".")
    return any(".".join(parts[: length + 1]) in allowed for length in range(len(parts)))


def _refusal(change: Difference) -> Problem:
    return Problem(
        change.key,
        f"{change.key} is {change.new!r}, but this run was started with {change.old!r}",
        "a resumed run continues exactly only with the settings it was started with",
        f"set it back, or accept the change: --accept {change.key}",
    )


def now() -> float:
    """Seconds since 1970: SOURCE_DATE_EPOCH where a build sets it, as reproducible-builds.org has it."""
    return float(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
