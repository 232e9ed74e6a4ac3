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

from st.errors import CheckpointDamaged, OutputUnwritable, ProblemsFound
from st.jsonfile import read_object
from st.train.saving.accepting import refused
from st.train.saving.differences import differences
from st.train.saving.vault import Vault, write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SETTINGS, MANIFEST, LOCK = "run.json", "manifest.json", ".lock"

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
        settings = self._read(SETTINGS, "it holds the settings that the run was started with")
        if settings is not None and not isinstance(settings.get("plugins", []), list):
            raise CheckpointDamaged(f"{str(self.directory / SETTINGS)!r} is damaged: its plugins are no list")
        return settings

    def open(self, settings: Mapping[str, Any], *, resume: bool, accepted: Sequence[str]) -> list[str]:
        """Check the settings against the folder's; what changed, as lines for the report.

        They are stored at once where nothing changed; else by ``record``, once the run has gone on with them.

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
        if problems := refused(changed, accepted):
            raise ProblemsFound(problems)
        if not changed:
            self.record(settings)
        return [f"{change.key} changed from {change.old!r} to {change.new!r} at this resume" for change in changed]

    def record(self, settings: Mapping[str, Any]) -> None:
        """Store the settings that the folder's run has from here on."""
        write_atomically(self.directory / SETTINGS, json.dumps(settings, indent=1))

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Write ``manifest.json``: what made this folder."""
        # A folder's run began when the first of its manifests was written.
        began = {"started": self.started()}
        write_atomically(self.directory / MANIFEST, json.dumps({**began, **environment(), **facts}, indent=1))

    def started(self) -> float:
        """When the folder's run was begun, in seconds since 1970; now, where it was not yet."""
        began = self.manifest().get("started")
        return float(began) if isinstance(began, (int, float)) and began else now()

    def manifest(self) -> Mapping[str, Any]:
        """What the folder's run was made of; empty for a new folder. Raises CheckpointDamaged."""
        return self._read(MANIFEST, "it says what the run was made of") or {}

    def _read(self, name: str, why: str) -> dict[str, Any] | None:
        path = self.directory / name
        if not path.exists():
            return None
        try:
            return read_object(path)
        except (OSError, ValueError) as error:
            fix = "put back a copy of it, or start again in another folder: --output DIR"
            raise CheckpointDamaged(f"{str(path)!r} is damaged: {error}", why=why, fix=fix) from error


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


def now() -> float:
    """Seconds since 1970: SOURCE_DATE_EPOCH where a build sets it, as reproducible-builds.org has it."""
    return float(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
