"""RemoteFolderBackend: a folder far away, whose media may be kept on this machine's disk once they were read."""

from __future__ import annotations

from abc import abstractmethod
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from st.data.source.folder import FolderBackend, FolderOptions
from st.data.store.copies import LocalCopies

if TYPE_CHECKING:
    from typing import BinaryIO

    from st.data.store.store import Store


class RemoteFolderOptions(FolderOptions):
    """Which files of a folder far away are samples, and whether copies of them are kept on this machine."""

    local: str = ""
    """Folder on this machine for copies of media that were read. Empty keeps none."""
    local_bytes: int = Field(10 * 1024**3, ge=1)
    """Size in bytes that the copies may take; those read longest ago make room."""


class RemoteFolderBackend(FolderBackend):
    """A folder in a store that is not on this machine. Media go through the folder ``local``, where there is one."""

    Options: ClassVar[type[RemoteFolderOptions]] = RemoteFolderOptions
    options: RemoteFolderOptions

    def __init__(self, url: str, options: RemoteFolderOptions) -> None:
        super().__init__(url, options)
        folder = Path(options.local).expanduser()
        self.copies = LocalCopies(folder, options.local_bytes) if options.local else None

    def store_at(self, url: str) -> Store:
        """The store behind a url of the data set's table. Masks and references may lie on this machine."""
        from st.data.store.store import Store

        scheme, colon, _ = url.partition(":")
        return Store.at(url) if scheme == "file" or not colon else self.remote_store(url)

    def remote_store(self, url: str) -> Store:
        """The store behind a url that is not a path of this machine."""
        return self.open_store(url, self.options)

    @abstractmethod
    def version(self, store: Store, key: str) -> str:
        """What changes when an object does (an ETag, a commit); '' where it is not known, and no copy is used."""

    def fetch(self, store: Store, key: str) -> bytes:
        version = self.version(store, key) if self.copies and not store.is_local else ""
        if not (self.copies and version):
            return super().fetch(store, key)
        return self.copies.read(f"{store}/{key}", version, lambda: store.read(key))

    def fetch_file(self, store: Store, key: str) -> BinaryIO:
        # A copy is made of all bytes or not at all.
        if not self.copies or store.is_local or key.endswith("/"):
            return super().fetch_file(store, key)
        return BytesIO(self.fetch(store, key))
