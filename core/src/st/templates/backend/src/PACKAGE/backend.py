"""CLASS: the pictures inside one zip file, each with the caption of the text file beside it."""

from __future__ import annotations

import zipfile
from io import BytesIO
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import st

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


class CLASS(st.DataBackend):
    """Read pictures and captions from a zip file: ``url = "PLUGIN:photos.zip"``."""

    class Options(st.Options):
        folder: str = ""
        """Folder inside the zip file; empty for all of it."""

    options: Options

    def __init__(self, url: str, options: Options) -> None:
        super().__init__(url, options)
        path = url.partition(":")[2]
        try:
            self.archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise st.StError(f"{path!r} cannot be read: {error}") from error

    def samples(self, unreadable: Callable[[str, str], None]) -> Iterator[st.Sample]:
        from PIL import Image, UnidentifiedImageError

        names = set(self.archive.namelist())
        for key in sorted(name for name in names if self._is_picture(name)):
            try:
                with Image.open(BytesIO(self.read(key))) as picture:
                    width, height = picture.size
            except (UnidentifiedImageError, st.SampleUnreadable) as error:
                unreadable(key, str(error))
                continue
            text = str(PurePosixPath(key).with_suffix(".txt"))
            captions = (self.read(text).decode("utf-8").strip(),) if text in names else ()
            size = self.archive.getinfo(key).file_size
            yield st.Sample(key, st.Media("image", height=height, width=width), captions, size_bytes=size)

    def read(self, key: str) -> bytes:
        try:
            return self.archive.read(key)
        except (KeyError, zipfile.BadZipFile) as error:
            raise st.SampleUnreadable(key, str(error)) from error

    def _is_picture(self, name: str) -> bool:
        return name.startswith(self.options.folder) and PurePosixPath(name).suffix.lower() in PICTURES
