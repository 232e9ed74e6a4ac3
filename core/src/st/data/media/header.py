"""The size of a picture from the first bytes of its file.

JPEG and PNG, which are nearly all of any data set, are read here: a third of the time that a general reader takes.
Everything else goes to Pillow. Index and decoder both read sizes and orientation tags with this module, so that they
cannot disagree.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import TYPE_CHECKING, NamedTuple

from st.errors import SampleUnreadable

if TYPE_CHECKING:
    from PIL import Image

PREFIX_BYTES = 65536
"""How much of a file is read at first. Sizes and orientation are nearly always in there."""

MAX_PIXELS = 178_956_970
"""Pictures with more pixels are refused (Pillow's limit). While they are decoded this many take 1 GB, whatever their
channels, bits and transparency; as AVIF 2 GB and as WebP 3 GB, whose decoders keep copies of their own."""

FORMATS = (
    *("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "PCX", "ICO", "QOI"),
)
"""What Pillow may open, whatever a file is called. Others start programs (EPS runs Ghostscript) or open other files."""

TAIL_BYTES = 65536
"""How much of a PNG's end is looked through for an orientation that is written behind its pixels."""

_ORIENTATION = 0x0112
_SWAPPED = (5, 6, 7, 8)
_PNG = b"\x89PNG\r\n\x1a\n"
_EXTENSIONS = {"jpg": "JPEG", "jpeg": "JPEG", "jpe": "JPEG", "jfif": "JPEG", "tif": "TIFF", "png": "PNG", "apng": "PNG"}


class Header(NamedTuple):
    """width and height as stored, in pixels. orientation: the EXIF tag, 1 (upright) to 8."""

    format: str
    width: int
    height: int
    orientation: int = 1

    @property
    def upright(self) -> tuple[int, int]:
        """(width, height) once the orientation is applied."""
        return (self.height, self.width) if self.orientation in _SWAPPED else (self.width, self.height)


def read_header(key: str, data: bytes, complete: bool = True) -> Header | None:
    """What a picture's first bytes say of it; None where more bytes are needed, which cannot be if they are all there.

    Raises SampleUnreadable for what is no picture, is cut short, or has more than MAX_PIXELS pixels.
    """
    if not data:
        raise SampleUnreadable(key, "the file is empty")
    try:
        if data[:3] == b"\xff\xd8\xff":
            header = _jpeg(data)
        elif data[:8] == _PNG:
            header = _png(data)
        else:
            header = _other(key, data) if complete else None
    except (IndexError, struct.error):
        header = None
        if complete:
            raise SampleUnreadable(key, f"the file is cut short after {len(data)} bytes") from None
    if header and header.width * header.height > MAX_PIXELS:
        megapixels = header.width * header.height / 1e6
        reason = f"{header.width}x{header.height} is {megapixels:.0f} megapixels; {MAX_PIXELS / 1e6:.0f} are the limit"
        raise SampleUnreadable(key, reason)
    if header and not (header.width and header.height):
        raise SampleUnreadable(key, f"its size is {header.width}x{header.height}")
    return header


def with_tail(header: Header, tail: bytes) -> Header:
    """A PNG's header with the orientation that its last bytes may hold: some programs append it to finished files."""
    if header.format != "PNG" or header.orientation != 1:
        return header
    place = tail.find(b"eXIf")
    while place >= 4:
        (length,) = struct.unpack_from(">I", tail, place - 4)
        chunk, crc = tail[place : place + 4 + length], tail[place + 4 + length : place + 8 + length]
        # Compressed pixels can spell anything; that its checksum follows they cannot.
        if len(crc) == 4 and zlib.crc32(chunk).to_bytes(4, "big") == crc:
            try:
                return header._replace(orientation=_exif_orientation(chunk, 4))
            except (IndexError, struct.error):
                return header
        place = tail.find(b"eXIf", place + 1)
    return header


def mislabelled(key: str, header: Header) -> bool:
    """Whether the file's name promises another format than its bytes are."""
    extension = key.rpartition(".")[2].lower()
    return _EXTENSIONS.get(extension, extension.upper()) != header.format


def open_picture(key: str, data: bytes) -> Image.Image:
    """A Pillow picture whose pixels are not decoded yet. Raises SampleUnreadable for what Pillow does not know."""
    from PIL import Image, UnidentifiedImageError

    # Between half its limit and its limit Pillow warns; below MAX_PIXELS a picture is simply large.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    try:
        Image.init()
        return Image.open(io.BytesIO(data), formats=[one for one in FORMATS if one in Image.OPEN])
    except Image.DecompressionBombError as error:
        raise SampleUnreadable(key, f"more than {MAX_PIXELS / 1e6:.0f} megapixels") from error
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise SampleUnreadable(key, f"not a picture (it begins with {data[:8]!r})") from error


def _jpeg(data: bytes) -> Header | None:
    """Walk the segments up to the frame's header. Raises IndexError or struct.error where the bytes end before it."""
    place, orientation = 2, 1
    while True:
        if data[place] != 0xFF:
            raise IndexError("no marker where one must be")
        marker = data[place + 1]
        if marker == 0xFF:
            place += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, place + 5)
            return Header("JPEG", width, height, orientation)
        if marker == 0xE1 and data[place + 4 : place + 10] == b"Exif\0\0":
            orientation = _exif_orientation(data, place + 10)
        place += 2
        if not (0xD0 <= marker <= 0xD8 or marker == 0x01):
            place += int(struct.unpack_from(">H", data, place)[0])


def _png(data: bytes) -> Header:
    width, height = struct.unpack_from(">II", data, 16)
    place = 8
    orientation = 1
    while True:
        (length,) = struct.unpack_from(">I", data, place)
        kind = data[place + 4 : place + 8]
        if len(kind) < 4:
            raise IndexError("the file ends inside a chunk")
        if kind == b"eXIf":
            orientation = _exif_orientation(data, place + 8)
        if kind in (b"IDAT", b"IEND"):
            return Header("PNG", width, height, orientation)
        place += 12 + length


def _exif_orientation(data: bytes, start: int) -> int:
    """The orientation in the first directory of a TIFF block that begins at ``start``; 1 where there is none."""
    order = "<" if data[start : start + 2] == b"II" else ">"
    (offset,) = struct.unpack_from(order + "I", data, start + 4)
    (entries,) = struct.unpack_from(order + "H", data, start + offset)
    for entry in range(start + offset + 2, start + offset + 2 + 12 * entries, 12):
        tag, kind = struct.unpack_from(order + "HH", data, entry)
        if tag == _ORIENTATION:
            value = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, entry + 8)[0]
            return int(value) if 1 <= value <= 8 else 1
    return 1


def _other(key: str, data: bytes) -> Header:
    picture = open_picture(key, data)
    # Pillow turns TIFF pictures upright itself.
    orientation = 1 if picture.format == "TIFF" else int(picture.getexif().get(_ORIENTATION, 1) or 1)
    return Header(picture.format or "", picture.width, picture.height, orientation if 1 <= orientation <= 8 else 1)
