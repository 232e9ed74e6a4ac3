"""From a picture file's bytes to the pixels that are trained on."""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from st.data.media.header import PREFIX_BYTES, TAIL_BYTES, Header, mislabelled, open_picture, read_header, with_tail
from st.data.media.media_reader import Header as MediaHeader
from st.data.media.media_reader import MediaReader
from st.data.sample import Media
from st.errors import SampleUnreadable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import BinaryIO

    from numpy.typing import NDArray

    from st.data.backend import DataBackend
    from st.data.geometry import Fit
    from st.data.media.media_reader import StoredFiles
    from st.data.store.store import Store

STRETCH = 0.01
"""By how much a picture's aspect may change, beside what a pixel of rounding does."""

_WHITE = (255, 255, 255, 255)
_BAND_ROWS = 256
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PictureReader(MediaReader):
    """Pictures, and the first frame of those that move."""

    kind, noun = "image", "picture"
    extensions = ("jpg", "jpeg", "jfif", "png", "webp", "bmp", "tif", "tiff", "gif", "avif")

    def header(self, backend: StoredFiles, key: str) -> MediaHeader:
        data = backend.store.read_range(key, 0, PREFIX_BYTES)
        header = read_header(key, data, complete=len(data) < PREFIX_BYTES)
        header = header or read_header(key, backend.store.read(key))
        assert header is not None
        if header.format == "PNG" and header.orientation == 1 and (path := backend.store.local(key)) is not None:
            # A second request for each picture that is far away would double the time of a scan: there, such a picture
            # is named when it is decoded.
            tail = data if len(data) < PREFIX_BYTES else _tail(backend.store, key, path)
            header = with_tail(header, tail[-TAIL_BYTES:])
        width, height = header.upright
        return MediaHeader(Media("image", height, width), mislabelled(key, header))

    def open(self, backend: DataBackend, key: str) -> BinaryIO:
        # All of a picture is needed, and a backend may know a better way to that than seeking.
        return io.BytesIO(backend.read(key))

    def pixels(self, key: str, file: BinaryIO, fit: Fit) -> NDArray[np.uint8]:
        """(H, W, 3) RGB."""
        file.seek(0)
        return decode(key, file.read(), fit)


def decode(key: str, data: bytes, fit: Fit) -> NDArray[np.uint8]:
    """The picture at exactly its fit: (H, W, 3) RGB, uint8 in [0, 255], contiguous.

    Upright by its orientation tag; transparent parts on white; 16 bits scaled to 8; CMYK, palettes and grey as RGB; of
    an animation the first frame. Colour profiles are not applied. A JPEG is decoded at the smallest DCT scale that is
    at least the target, then resized with LANCZOS: three times faster than from full size, and 53 dB away from it.
    Raises SampleUnreadable.
    """
    return _cropped(resized(key, data, fit), fit)


def decode_mask(key: str, data: bytes, fit: Fit) -> NDArray[np.uint8]:
    """A mask at exactly its picture's fit: (H, W) uint8, 255 (white) where the picture is trained on.

    A mask of another size than its picture is stretched to it. Raises SampleUnreadable, also where it has another
    aspect, and would not line up.
    """
    return _cropped(resized(key, data, fit, grey=True), fit)


def resized(key: str, data: bytes, fit: Fit, grey: bool = False) -> Image.Image:
    """The whole picture, upright, at ``fit.resized``, in RGB (or grey): what ``fit.crop`` is cut from."""
    header = read_header(key, data)
    assert header is not None
    header = with_tail(header, data[-TAIL_BYTES:])
    _check_shape(key, header, fit)
    height, width = fit.resized
    stored = (height, width) if header.orientation >= 5 else (width, height)
    picture = open_picture(key, data)
    if header.format == "JPEG":
        picture.draft(None, stored)
    try:
        picture.load()
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error) as error:
        raise SampleUnreadable(key, f"it cannot be decoded: {error}") from error
    plain = _eight_bits(key, picture, stored[0], "L" if grey else "RGB")
    if plain.size != stored:
        plain = plain.resize(stored, Image.Resampling.LANCZOS)
    turn = _UPRIGHT.get(header.orientation)
    return plain if turn is None else plain.transpose(turn)


def _tail(store: Store, key: str, path: Path) -> bytes:
    return store.read_range(key, max(0, path.stat().st_size - TAIL_BYTES), TAIL_BYTES)


def _check_shape(key: str, header: Header, fit: Fit) -> None:
    """Raise SampleUnreadable for what would be stretched: a mask or a reference of another shape, a changed picture."""
    (own_width, own_height), (height, width) = header.upright, fit.resized
    allowed = STRETCH + 1 / min(width, height) + 1 / min(own_width, own_height)
    if abs((own_width * height) / (own_height * width) - 1) > allowed:
        raise SampleUnreadable(
            key, f"it is {own_width}x{own_height}, which is not the shape of {width}x{height} that it is resized to"
        )


def _cropped(picture: Image.Image, fit: Fit) -> NDArray[np.uint8]:
    top, left = fit.crop
    height, width = fit.geometry.height, fit.geometry.width
    box = (left, top, left + width, top + height)
    assert 0 <= left <= picture.width - width and 0 <= top <= picture.height - height, (fit, picture.size)
    return np.array(picture if picture.size == (width, height) else picture.crop(box), np.uint8)


def _eight_bits(key: str, picture: Image.Image, width: int, mode: str) -> Image.Image:
    """The picture in ``mode`` (RGB or L) with eight bits per channel, at its own size or already at its final width."""
    if picture.mode == "F":
        raise SampleUnreadable(key, "its pixels are floating-point numbers, whose range is not known")
    if picture.mode.startswith("I"):
        transparent = picture.info.get("transparency")
        return _banded(picture, width, lambda band: _from_sixteen(key, band, transparent).convert(mode))
    if picture.has_transparency_data:
        return _banded(picture, width, lambda band: _on_white(band).convert(mode))
    plain = picture if picture.mode == "RGB" else picture.convert("RGB")
    return plain if mode == "RGB" else plain.convert(mode)


def _banded(picture: Image.Image, width: int, plain: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """The picture made plain and as wide as ``width``, a band of rows at a time; its height stays.

    Its intermediate forms, and a whole copy of it, would take several times its memory. Pillow resizes rows before
    columns as well, so that not a pixel differs; where a picture is far taller than wide it does not, and the width
    stays too.
    """
    width = width if picture.height <= 2 * picture.width else picture.width
    made = None
    for top in range(0, picture.height, _BAND_ROWS):
        band = plain(picture.crop((0, top, picture.width, min(top + _BAND_ROWS, picture.height))))
        if band.width != width:
            band = band.resize((width, band.height), Image.Resampling.LANCZOS)
        made = made or Image.new(band.mode, (width, picture.height))
        made.paste(band, (0, top))
    assert made is not None, "pictures without rows are refused with their header"
    return made


def _from_sixteen(key: str, band: Image.Image, transparent: object) -> Image.Image:
    """16 bits of grey as RGB; pixels of the value that the file calls transparent are white."""
    values = np.asarray(band)
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise SampleUnreadable(key, f"its pixels reach from {values.min()} to {values.max()}; 16 bits are the limit")
    eight = ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    if isinstance(transparent, int):
        eight[values == transparent] = 255
    return Image.fromarray(eight).convert("RGB")


def _on_white(band: Image.Image) -> Image.Image:
    rgba = band.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, _WHITE), rgba).convert("RGB")
