"""The vault: checkpoint folders on disk. A folder under its final name is complete; anything else is swept away."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st.errors import CheckpointDamaged
from st.jsonfile import read_object
from st.progress import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PREFIX, PARTIAL, MANIFEST, BEST, MEASURED = "step-", ".partial-", "manifest.json", "best.json", "measured.json"


class Vault:
    """The folder ``checkpoints/`` of one run; one process writes to it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.sealed = 0
        """Files and folders brought to the disk so far: what shows that a slow disk is still getting on."""
        self._whole: dict[int, bool] = {}

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first."""
        if not self.directory.is_dir():
            return []
        names = [entry.name.removeprefix(PREFIX) for entry in self.directory.iterdir() if entry.name.startswith(PREFIX)]
        return sorted(int(name) for name in names if name.isdigit())

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.directory / f"{PREFIX}{step:08d}"

    def write(self, step: int, fill: Callable[[Path], None], facts: Mapping[str, Any]) -> Checkpoint:
        """Write a checkpoint: ``fill`` writes files into a folder, which gets its name once all are on the disk.

        facts go into the manifest beside each file's size and SHA-256. Raises OSError, leaving nothing behind.
        """
        partial = self.directory / f"{PARTIAL}{step:08d}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            fill(partial)
            files = {}
            for path in sorted(path for path in partial.rglob("*") if path.is_file()):
                files[str(path.relative_to(partial))] = _sealed(path)
                self.sealed += 1
            manifest = partial / MANIFEST
            manifest.write_text(
                json.dumps({"format": 1, "step": step, **facts, "files": files}, indent=1), encoding="utf-8"
            )
            for path in (manifest, *(path for path in partial.rglob("*") if path.is_dir()), partial):
                _sync(path)
                self.sealed += 1
            final = self.path(step)
            if final.exists():
                # A run was resumed from before this step, so what lies here is damaged: nothing whole is moved away.
                final.rename(self.directory / f"{PARTIAL}{step:08d}-old")
            partial.rename(final)
            _sync(self.directory)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        self.sweep()
        self._whole[step] = True
        return Checkpoint(final, step)

    def verify(self, step: int) -> Mapping[str, Any]:
        """The manifest of a checkpoint whose files are all as written.

        Raises CheckpointDamaged naming the first that is not.
        """
        self._whole[step] = False
        directory = self.path(step)
        try:
            manifest = read_object(directory / MANIFEST)
        except (OSError, ValueError) as error:
            raise CheckpointDamaged(f"checkpoint {directory} has no readable manifest: {error}") from error
        files = manifest.get("files")
        if manifest.get("step") != step or not isinstance(files, dict) or not all(map(_is_seal, files.values())):
            raise CheckpointDamaged(f"checkpoint {directory}: its manifest is not one that was written for it")
        for name, sealed in files.items():
            try:
                _check(directory / name, sealed)
            except (OSError, ValueError) as error:
                raise CheckpointDamaged(f"checkpoint {directory}: {name!r} {error}") from error
        self._whole[step] = True
        return manifest

    def is_whole(self, step: int) -> bool:
        """Whether a checkpoint can be used; each is read once."""
        if step not in self._whole:
            with suppress(CheckpointDamaged):
                self.verify(step)
        return self._whole[step]

    def newest(self, damaged: Callable[[CheckpointDamaged], None]) -> int | None:
        """The newest step whose checkpoint is whole; each damaged one is passed to ``damaged`` on the way."""
        for step in reversed(self.steps()):
            try:
                self.verify(step)
            except CheckpointDamaged as error:
                damaged(error)
                continue
            return step
        return None

    def best(self) -> tuple[int, float] | None:
        """(step, value) of the best checkpoint so far; None where there is none, or it is gone.

        Raises CheckpointDamaged.
        """
        path = self.directory / BEST
        if not path.exists():
            return None
        try:
            stored = read_object(path)
            step, value = int(stored["step"]), float(stored["value"])
            if stored.get("sha256") != _seal_of(step, str(stored["metric"]), value):
                raise ValueError("it is not what was written (SHA-256 differs)")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointDamaged(
                f"{str(path)!r} is damaged: {error}",
                why="it says which checkpoint was the best so far",
                fix="delete it: the next evaluation begins anew",
            ) from error
        return (step, value) if step in self.steps() else None

    def mark_best(self, step: int, metric: str, value: float) -> None:
        """Remember a step as the best; its checkpoint is not pruned until another is better."""
        facts = {"step": step, "metric": metric, "value": value, "sha256": _seal_of(step, metric, value)}
        write_atomically(self.directory / BEST, json.dumps(facts))

    def measured(self) -> int:
        """The last step whose validations are all done and judged; -1 where there is none, or nobody can tell."""
        try:
            return int(read_object(self.directory / MEASURED)["step"])
        except (OSError, ValueError, KeyError, TypeError):
            # They are then done once more, with the same result.
            return -1

    def mark_measured(self, step: int) -> None:
        """Remember that a step's validations are done."""
        self.directory.mkdir(parents=True, exist_ok=True)
        write_atomically(self.directory / MEASURED, json.dumps({"step": step}))

    def prune(self, keep: int) -> list[int]:
        """Remove all but the newest ``keep`` checkpoints that are whole and the best; the steps that were removed.

        A damaged one counts for nothing and goes, once there is a whole one.
        """
        best = self.best()
        whole: list[int] = []
        for step in reversed(self.steps()):
            if len(whole) < keep and self.is_whole(step):
                whole.append(step)
        if best is not None and self.is_whole(best[0]):
            whole.append(best[0])
        gone = [step for step in self.steps() if step not in whole] if whole else []
        for step in gone:
            # Renamed first: a kill in the middle of the removal must not leave a checkpoint that looks whole.
            leaving = self.directory / f"{PARTIAL}{step:08d}-old"
            shutil.rmtree(leaving, ignore_errors=True)
            self.path(step).rename(leaving)
        self.sweep()
        return gone

    def sweep(self) -> None:
        """Remove what a killed process left unfinished."""
        for entry in self.directory.glob(f"{PARTIAL}*"):
            shutil.rmtree(entry, ignore_errors=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old or the new one, whole."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    _sync(partial)
    partial.replace(path)


def _is_seal(sealed: object) -> bool:
    return isinstance(sealed, dict) and isinstance(sealed.get("size"), int) and isinstance(sealed.get("sha256"), str)


def _check(path: Path, sealed: Mapping[str, Any]) -> None:
    """Raises ValueError saying how a file differs from what was written, and OSError."""
    if not path.is_file():
        raise ValueError("is not there")
    size = path.stat().st_size
    if size != sealed["size"]:
        raise ValueError(f"has {size} bytes, {sealed['size']} were written")
    if _digest(path) != sealed["sha256"]:
        raise ValueError("is not what was written (SHA-256 differs)")


def _seal_of(step: int, metric: str, value: float) -> str:
    return hashlib.sha256(f"{step} {metric} {value!r}".encode()).hexdigest()


def _sealed(path: Path) -> dict[str, Any]:
    digest = _digest(path)
    _sync(path)
    return {"size": path.stat().st_size, "sha256": digest}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Bring a file or folder to the disk. Folders cannot be opened on every system; there the rename has to do."""
    flags = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) if path.is_dir() else os.O_RDONLY
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
