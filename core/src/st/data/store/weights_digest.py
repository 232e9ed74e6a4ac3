"""Digests of weights: every byte of a large file read once, and known until the file changes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from st.data.store.store import Store
from st.errors import OutputUnwritable, StoreUnreadable

if TYPE_CHECKING:
    from collections.abc import Callable

PIECE_BYTES = 64 << 20
"""Pieces are read and digested side by side, as many as there are threads; a digest over all bytes uses one core."""

SETTLED_SECONDS = 2.0
"""A file that was changed less than this ago may change again without its times showing it."""


def weights_digest(path: Path, clock: Callable[[], float] = time.time) -> str:
    """Changes when a byte of a file does.

    A file of the hub's cache is named by its digest already. That of another file larger than PIECE_BYTES is kept in
    the user's cache folder, under the file's place, size, number and times, of which the last cannot be set back.
    """
    target = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", target.name):
        return target.name
    status = target.stat()
    if status.st_size <= PIECE_BYTES:
        return _digest(target, status.st_size)
    identity: list[str | int] = [str(target), status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
    store = Store.at(str(_home()))
    key = f"{hashlib.blake2b(str(target).encode(errors='surrogateescape'), digest_size=16).hexdigest()}.json"
    if (known := _known(store, key, identity)) is not None:
        return known
    made = _digest(target, status.st_size)
    if clock() - max(status.st_mtime, status.st_ctime) > SETTLED_SECONDS:
        # A folder that cannot be written costs time at the next start and changes no answer.
        with suppress(OutputUnwritable):
            store.write(key, json.dumps({"file": identity, "digest": made, "check": _check(identity, made)}).encode())
    return made


def _known(store: Store, key: str, identity: list[str | int]) -> str | None:
    try:
        found = json.loads(store.read(key))
        made = str(found["digest"])
        return made if found["file"] == identity and found["check"] == _check(identity, made) else None
    except (FileNotFoundError, StoreUnreadable, ValueError, TypeError, KeyError):
        return None


def _check(identity: list[str | int], made: str) -> str:
    return hashlib.blake2b(json.dumps([identity, made]).encode(), digest_size=8).hexdigest()


def _digest(path: Path, size_bytes: int) -> str:
    def piece(start: int) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return hashlib.blake2b(file.read(PIECE_BYTES), digest_size=16).digest()

    whole = hashlib.blake2b(str(size_bytes).encode(), digest_size=16)
    with ThreadPoolExecutor(4) as pool:
        for digest in pool.map(piece, range(0, size_bytes, PIECE_BYTES)):
            whole.update(digest)
    return whole.hexdigest()


def _home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "st" / "weights"
