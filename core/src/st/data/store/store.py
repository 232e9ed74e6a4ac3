"""Store: bytes by key, on a disk, in an object store or in memory."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from st.errors import OutputUnwritable, StError, StoreUnreachable, StoreUnreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fsspec import AbstractFileSystem

T = TypeVar("T")

_PAUSES_SECONDS = (0.1, 0.5, 2.0)
_PASSING_ON_DISK = (errno.EAGAIN, errno.EINTR, errno.ESTALE, errno.EIO, errno.EBUSY, errno.ETIMEDOUT)
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class Entry(NamedTuple):
    """One object of a store. modified: seconds since 1970, 0 where the store does not know.

    changed: the same of any change, also of its name or of ``modified`` itself, which nobody can set back; 0 where the
    store knows none.
    """

    key: str
    size_bytes: int
    modified: float
    changed: float = 0.0


class Store:
    """Bytes by key over an fsspec filesystem. Keys are paths below ``root`` with forward slashes.

    What is written is seen whole or not at all. Errors that pass are tried again three times; transient names the
    exceptions of a filesystem's own client library that pass. Where they do not pass, StoreUnreachable is raised: a
    store that is away for a while must not look like a data set with fewer files. Thread-safe.
    """

    def __init__(
        self,
        filesystem: AbstractFileSystem,
        root: str,
        *,
        transient: tuple[type[Exception], ...] = (),
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        protocols = (filesystem.protocol,) if isinstance(filesystem.protocol, str) else filesystem.protocol
        self.filesystem, self.root = filesystem, root.rstrip("/")
        self._transient: tuple[type[Exception], ...] = (OSError, *transient)
        self._pause = pause
        self._disk = Path(root) if "file" in protocols or "local" in protocols else None

    @classmethod
    def at(cls, url: str) -> Store:
        """The store at ``scheme://bucket/prefix``, ``memory://name``, ``file:folder`` or a plain path."""
        from fsspec.core import url_to_fs

        scheme, colon, path = url.partition(":")
        if colon and scheme == "file":
            url = path[2:] if path.startswith("//") else path
        filesystem, root = url_to_fs(str(Path(url).expanduser().absolute()) if "://" not in url else url)
        return cls(filesystem, root)

    def __str__(self) -> str:
        return str(self._disk) if self._disk else self.filesystem.unstrip_protocol(self.root)

    @property
    def is_local(self) -> bool:
        """Whether the bytes are on this machine's disk, where reading one at a time is fastest."""
        return self._disk is not None

    def local(self, key: str) -> Path | None:
        """The file behind a key, to be mapped into memory; None where there is none on this machine."""
        return self._disk / key if self._disk else None

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Every object whose key is below the folder ``prefix``, in no order.

        Hidden ones are left out: a name on the way begins with a dot. Folders behind symbolic links are walked once,
        and not at all where they are reached another way. A folder that is not there holds nothing.
        """
        if self._disk:
            return _walk(self._disk, prefix)
        return self._find(prefix)

    def read(self, key: str) -> bytes:
        """All bytes of an object.

        Raises FileNotFoundError, StoreUnreadable where this object is refused, StoreUnreachable where all of them are.
        """
        if self._disk:
            path = os.path.join(self.root, key)
            return self._try(key, lambda: _read_file(path))
        return self._try(key, lambda: bytes(self.filesystem.cat_file(self._path(key))))

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """At most ``length`` bytes from byte ``start`` on. Raises as ``read`` does."""
        if self._disk:
            path = os.path.join(self.root, key)
            return self._try(key, lambda: _read_file(path, start, length))
        path = self._path(key)
        return self._try(key, lambda: bytes(self.filesystem.cat_file(path, start=start, end=start + length)))

    def size_bytes(self, key: str) -> int:
        """How many bytes an object has. Raises as ``read`` does."""
        return self._try(key, lambda: int(self.filesystem.info(self._path(key))["size"]))

    def write(self, key: str, data: bytes) -> None:
        """Write an object, replacing what was there. Raises OutputUnwritable."""
        if self._disk:
            target = self._disk / key
            self._put(key, lambda: _write_file(target, data, Path.replace))
        else:
            self._put(key, lambda: self.filesystem.pipe_file(self._path(key), data))

    def create(self, key: str, data: bytes) -> None:
        """Write an object that must not be there yet; the store decides. Raises FileExistsError, OutputUnwritable."""
        if self._disk:
            target = self._disk / key
            self._put(key, lambda: _write_file(target, data, _link_new))
        else:
            self._put(key, lambda: self.filesystem.pipe_file(self._path(key), data, mode="create"))

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""
        try:
            if self._disk:
                (self._disk / key).unlink()
            else:
                self._put(key, lambda: self.filesystem.rm_file(self._path(key)))
        except FileNotFoundError:
            return

    def exists(self, key: str) -> bool:
        if self._disk:
            return (self._disk / key).is_file()
        return self._try(key, lambda: bool(self.filesystem.exists(self._path(key))))

    def _path(self, key: str) -> str:
        return f"{self.root}/{key}"

    def _find(self, prefix: str) -> Iterator[Entry]:
        start = self._path(prefix).rstrip("/")
        found = self._try(prefix, lambda: self.filesystem.find(start, detail=True))
        for path, info in found.items():
            key = path[len(self.root) :].lstrip("/")
            if key and not any(part.startswith(".") for part in key.split("/")):
                yield Entry(key, int(info.get("size") or 0), _seconds(info))

    def _try(self, key: str, work: Callable[[], T], *, action: str = "read from") -> T:
        for pause in (*_PAUSES_SECONDS, None):
            try:
                return work()
            except (FileNotFoundError, FileExistsError):
                raise
            except self._transient as error:
                passes = self._passes(error)
                if pause is None or not passes:
                    raise self._failure(f"{key!r} cannot be {action} {self}", error, passes=passes) from error
                self._pause(pause)
        raise AssertionError("the last attempt returns or raises")

    def _passes(self, error: Exception) -> bool:
        if isinstance(error, PermissionError | IsADirectoryError | NotADirectoryError):
            return False
        return not self._disk or (isinstance(error, OSError) and error.errno in _PASSING_ON_DISK)

    def _failure(self, what: str, error: Exception, *, passes: bool) -> StError:
        reason = str(error) or type(error).__name__
        if self._disk or not passes:
            return StoreUnreadable(what, why=reason)
        why = f"It was tried {len(_PAUSES_SECONDS) + 1} times; the last answer: {reason}"
        return StoreUnreachable(what, why=why, fix="Start again once it answers; a run goes on with --resume.")

    def _put(self, key: str, work: Callable[[], object]) -> None:
        try:
            self._try(key, work, action="written to")
        except StoreUnreadable as error:
            raise OutputUnwritable(error.what, why=error.why) from error


def _read_file(path: str, start: int = 0, length: int = -1) -> bytes:
    # os.open rather than open: a header costs 8 us instead of 20, which a scan of many small files is made of.
    # Not blocking: nobody may ever write into a pipe that lies among pictures.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if stat.S_ISDIR((status := os.fstat(handle)).st_mode):
            raise IsADirectoryError(errno.EISDIR, "is a folder", path)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is a pipe, a socket or a device, not a file", path)
        wanted = status.st_size - start if length < 0 else length
        data = os.pread(handle, wanted, start)
        while len(data) < wanted and (more := os.pread(handle, wanted - len(data), start + len(data))):
            data += more
        return data
    finally:
        os.close(handle)


def _write_file(target: Path, data: bytes, publish: Callable[[Path, Path], object]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name[:60]}.{secrets.token_hex(6)}.partial")
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        publish(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _link_new(partial: Path, target: Path) -> None:
    try:
        target.hardlink_to(partial)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # A filesystem without hard links: the name is taken first, and for a moment a reader finds it empty.
        target.open("xb").close()
        partial.replace(target)


def _walk(root: Path, prefix: str) -> Iterator[Entry]:
    """Files below a folder, hidden ones left out; real folders first, so that a link never hides the folder itself."""
    start = root / prefix
    if not start.is_dir():
        return
    status = start.stat()
    visited = {(status.st_dev, status.st_ino)}
    waiting = [(str(start), prefix.strip("/"))]
    links: list[tuple[str, str, tuple[int, int]]] = []
    while waiting or links:
        if waiting:
            folder, key = waiting.pop()
        else:
            folder, key, identity = links.pop(0)
            if identity in visited:
                continue
            visited.add(identity)
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                name = f"{key}/{entry.name}" if key else entry.name
                try:
                    status = entry.stat()
                except OSError:
                    # A link to nothing: reading it says so.
                    yield Entry(name, 0, 0.0)
                    continue
                if not stat.S_ISDIR(status.st_mode):
                    yield Entry(name, status.st_size, status.st_mtime, status.st_ctime)
                elif entry.is_symlink():
                    links.append((entry.path, name, (status.st_dev, status.st_ino)))
                elif (status.st_dev, status.st_ino) not in visited:
                    visited.add((status.st_dev, status.st_ino))
                    waiting.append((entry.path, name))


def _seconds(info: dict[str, object]) -> float:
    """When an object was changed, as the various filesystems say it."""
    from datetime import datetime

    for name in ("LastModified", "last_modified", "mtime", "modified", "updated", "created"):
        value = info.get(name)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return 0.0
