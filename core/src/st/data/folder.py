"""FolderBackend: any store of files as a data set, with the captions, masks and references that lie beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from st.data.backend import DataBackend
from st.errors import SampleUnreadable, StoreUnreadable
from st.options import Options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow as pa

    import st
    from st.data.index import Listing
    from st.data.sample import Sample
    from st.data.store import Store
    from st.registrar import Registrar


class FolderOptions(Options):
    """Which files of a folder are samples, and where their captions and companions are."""

    extensions: tuple[str, ...] = ("jpg", "jpeg", "jfif", "png", "webp", "bmp", "tif", "tiff", "gif", "avif")
    """Files with these extensions are samples, in capitals or not. Sub-folders are searched, hidden ones are not."""
    caption: Literal["textfile", "filename", "jsonl", "folder", "none"] = "textfile"
    """Where captions are: a text file beside each picture, the file's name, one list for all (caption_file), the name
    of the folder (`10_a cat`: ten passes, caption `a cat`; a text file beside the picture comes first), or nowhere."""
    caption_extension: str = Field(".txt", pattern=r"^\.[^./]+$")
    """Extension of the text files beside pictures."""
    caption_file: str = "metadata.jsonl"
    """The list of captions: one JSON object per line, with `file_name` and `text` (a text or a list of texts)."""
    multiline: bool = False
    """A text file is one caption. Otherwise each of its lines is one, and one is drawn per visit."""
    masks: str = ""
    """Folder of masks: white is trained on. A mask has the path of its picture, with any extension."""
    references: str = ""
    """Folder of reference pictures, for families that condition on one. Paired as masks are."""
    missing_companion: Literal["error", "skip", "keep"] = "error"
    """What to do with a picture without its mask or reference: stop, leave it out, or train on it without."""


class FolderBackend(DataBackend):
    """A folder of pictures, on this machine's disk or wherever a Store can be.

    Keys are paths below the folder; those of masks and references begin with ``mask:`` and ``reference:``. A backend
    for another kind of store inherits from this one and answers ``open_store``.
    """

    StoreOptions: ClassVar[type[Options] | None] = Options
    Options: ClassVar[type[FolderOptions]] = FolderOptions
    options: FolderOptions

    def __init__(self, url: str, options: FolderOptions) -> None:
        super().__init__(url, options)
        self.store = self.store_at(url)
        self.companions = {
            name: self.store_at(folder)
            for name, folder in (("mask", options.masks), ("reference", options.references))
            if folder
        }

    def store_at(self, url: str) -> Store:
        """The store behind a url of the data set's table: its own, its masks', its references'."""
        return self.open_store(url, self.options)

    @classmethod
    def open_store(cls, url: str, options: st.Options) -> Store:
        from st.data.store import Store

        return Store.at(url)

    def samples(self, unreadable: Callable[[str, str], None]) -> Iterator[Sample]:
        from st.data.index import Index

        return Index.from_table(self.table(None, unreadable).table).samples()

    def table(self, known: pa.Table | None, unreadable: Callable[[str, str], None]) -> Listing:
        """Every sample, sorted by key; files that have not changed since ``known`` are not opened.

        Raises DataUnusable where the folder is missing or holds no sample, saying what is there instead.
        """
        from st.data.scan import scan

        return scan(self, known, unreadable)

    def read(self, key: str) -> bytes:
        name, colon, rest = key.partition(":")
        store, path = (self.companions[name], rest) if colon and name in self.companions else (self.store, key)
        try:
            return self.fetch(store, path)
        except FileNotFoundError as error:
            raise SampleUnreadable(key, "the file is gone") from error
        except StoreUnreadable as error:
            raise SampleUnreadable(key, error.why) from error

    def fetch(self, store: Store, key: str) -> bytes:
        """All bytes of a sample's file or of a companion's, from the store that holds it. Raises as the store does."""
        return store.read(key)


def register(registrar: Registrar) -> None:
    registrar.backend("file", FolderBackend)
