"""What wandb has written, read as its format says: LevelDB's log of protocol buffers, after a header of seven bytes."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from wandb.proto import wandb_internal_pb2

BLOCK, HEADER, RECORD_HEADER = 32768, 7, 7
FULL, LAST = 1, 4


def records(file: Path) -> Iterator[Any]:
    """The records of a ``.wandb`` file in order."""
    data = file.read_bytes()
    assert data[:4] == b":W&B"
    place, whole = HEADER, b""
    while place + RECORD_HEADER <= len(data):
        if BLOCK - place % BLOCK < RECORD_HEADER:
            place += BLOCK - place % BLOCK
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        whole += data[place + RECORD_HEADER : place + RECORD_HEADER + length]
        place += RECORD_HEADER + length
        if kind in (FULL, LAST):
            yield wandb_internal_pb2.Record.FromString(whole)  # type: ignore[attr-defined]
            whole = b""


class Stored:
    """The runs that a folder keeps for ``wandb sync``, the oldest first."""

    def __init__(self, directory: Path) -> None:
        self.folders: list[Path] = sorted(
            (directory / "wandb").glob("offline-run-*"), key=lambda folder: folder.stat().st_ctime_ns
        )
        self._records = [list(records(next(folder.glob("*.wandb")))) for folder in self.folders]

    def runs(self) -> list[Any]:
        """What each of them says of itself."""
        return [next(one.run for one in kept if one.HasField("run")) for kept in self._records]

    def config(self) -> dict[str, Any]:
        """The settings of the last one."""
        return {item.key: json.loads(item.value_json) for item in self.runs()[-1].config.update}

    def exit_codes(self) -> list[int]:
        return [one.exit.exit_code for kept in self._records for one in kept if one.HasField("exit")]

    def history(self) -> dict[str, list[tuple[int, Any]]]:
        """(step, value) of everything that was logged, by name; names of wandb's own are left out."""
        found: dict[str, list[tuple[int, Any]]] = {}
        for one in (one.history for kept in self._records for one in kept if one.HasField("history")):
            row: dict[str, Any] = {}
            for item in one.item:
                name, *inside = item.nested_key or [item.key]
                value = json.loads(item.value_json)
                row[name] = row.get(name, {}) | {inside[0]: value} if inside else value
            for name in row.keys() - {"_step", "_runtime", "_timestamp", "_wandb"}:
                found.setdefault(name, []).append((row["_step"], row[name]))
        return found

    def file(self, medium: dict[str, Any]) -> bytes:
        """The file of a picture, clip or sound."""
        files = [folder / "files" / str(medium["path"]) for folder in self.folders]
        return next(file.read_bytes() for file in files if file.exists())


@pytest.fixture
def stored() -> Callable[[Path], Stored]:
    """What a run's folder keeps: ``stored(run.directory).history()``."""
    return Stored


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests is not logged in."""
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
