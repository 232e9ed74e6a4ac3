"""FolderBackend: any store of files as a data set, with the captions, masks and references that lie beside them."""

from __future__ import annotations

import errno
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Literal, Self, cast

from pydantic import Field, model_validator

from st.data.backend import BACKEND, DataBackend
from st.errors import SampleUnreadable, StoreUnreadable
from st.options import Options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import BinaryIO

    import pyarrow as pa

    import st
    from st.data.sample import Sample
    from st.data.source.index import Listing
    from st.data.store.store import Store
    from st.registrar import Registrar


class FolderOptions(Options):
    """Which files of a folder are samples, and where their captions and companions are."""

    media: Literal["image", "video", "audio"] = "image"
    """What the samples are: pictures, clips or sounds. Clips can be given as sounds too: extensions = ["mp4"]."""
    extensions: tuple[str, ...] = ()
    """Files with these extensions are samples, in capitals or not; empty are those usual for media. Sub-folders are
    searched, hidden ones are not."""
    frame_folders: float = Field(0, ge=0)
    """Frames per second of folders of numbered pictures, each of which is one clip. 0 takes none."""
    caption: Literal["textfile", "filename", "jsonl", "json", "folder", "none"] = "textfile"
    """Where captions are: a text file beside each sample, the file's name, one list for all (caption_file), a JSON
    object beside each sample, the name of the folder (`10_a cat`: ten passes, caption `a cat`; a text file beside the
    sample comes first), or nowhere."""
    caption_extension: str = Field(".txt", pattern=r"^\.[^./]+$")
    """Extension of the text files beside samples."""
    caption_file: str = "metadata.jsonl"
    """The list of captions: one JSON object per line, with `file_name` and `text` (a text or a list of texts)."""
    facts: tuple[str, ...] = ()
    """Names of what else text encoders are to read of a sample, such as lyrics or bpm: text files NAME.lyrics.txt
    beside it, or fields of its JSON object."""
    multiline: bool = False
    """A text file is one caption. Otherwise each of its lines is one, and one is drawn per visit."""
    masks: str = ""
    """Folder of masks: white is trained on. A mask has the path of its picture, with any extension."""
    references: str = ""
    """Folder of reference pictures, for families that condition on one. Paired as masks are."""
    missing_companion: Literal["error", "skip", "keep"] = "error"
    """What to do with a picture without its mask or reference: stop, leave it out, or train on it without."""

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Self:
        if self.frame_folders and self.media != "video":
            raise ValueError("frame_folders has no effect without media = 'video'")
        return self


class FolderBackend(DataBackend):
    """A folder of pictures, clips or sounds, on this machine's disk or wherever a Store can be.

    Keys are paths below the folder; those of masks and references begin with ``mask:`` and ``reference:``, and that of
    a folder of frames ends with a slash. A backend for another kind of store inherits from this one and answers
    ``open_store``.
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
        from st.data.store.store import Store

        return Store.at(url)

    def samples(self, unreadable: Callable[[str, str], None]) -> Iterator[Sample]:
        from st.data.source.index import Index

        return Index.from_table(self.table(None, unreadable).table).samples()

    def table(self, known: pa.Table | None, unreadable: Callable[[str, str], None]) -> Listing:
        """Every sample, sorted by key; files that have not changed since ``known`` are not opened.

        Raises DataUnusable where the folder is missing or holds no sample, saying what is there instead.
        """
        from st.data.source.scan import scan

        return scan(self, known, unreadable)

    def read(self, key: str) -> bytes:
        if key.endswith("/"):
            with self.open(key) as file:
                return file.read()
        store, path = self._place(key)
        with _named(key):
            return self.fetch(store, path)

    def open(self, key: str) -> BinaryIO:
        store, path = self._place(key)
        with _named(key):
            return self.fetch_file(store, path)

    def _place(self, key: str) -> tuple[Store, str]:
        name, colon, rest = key.partition(":")
        return (self.companions[name], rest) if colon and name in self.companions else (self.store, key)

    def fetch(self, store: Store, key: str) -> bytes:
        """All bytes of a sample's file or of a companion's, from the store that holds it. Raises as the store does."""
        return store.read(key)

    def fetch_file(self, store: Store, key: str) -> BinaryIO:
        """The same as a file to seek in: of a long clip far away, only the parts that are read are fetched."""
        if key.endswith("/"):
            from st.data.media.frame_folder import FrameFolder

            # A raw file has everything that readers of media ask for.
            return cast("BinaryIO", FrameFolder(store, key, self.options.frame_folders))
        if (path := store.local(key)) is not None:
            return _opened(path)
        from st.data.store.ranged_file import ranged

        return ranged(store, key)


def _opened(path: Path) -> BinaryIO:
    """A file of this machine. What is none is refused before it is opened: a pipe would wait for a writer."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise PermissionError(errno.EINVAL, "it is a pipe, a socket, a device or a folder, not a file", str(path))
    return path.open("rb")


@contextmanager
def _named(key: str) -> Iterator[None]:
    """What a store raises inside becomes SampleUnreadable."""
    try:
        yield
    except FileNotFoundError as error:
        raise SampleUnreadable(key, "the file is gone") from error
    except StoreUnreadable as error:
        raise SampleUnreadable(key, error.why) from error
    except (PermissionError, IsADirectoryError) as error:
        raise SampleUnreadable(key, error.strerror or "it cannot be opened") from error


def register(registrar: Registrar) -> None:
    registrar.add(BACKEND, "file", FolderBackend, FolderBackend.Options)
