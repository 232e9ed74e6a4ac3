import io
import struct
import zlib

import pytest
from PIL import Image

from st.data.media.header import MAX_PIXELS, Header, mislabelled, read_header
from st.errors import SampleUnreadable


def encoded(kind: str, size: tuple[int, int] = (48, 32), mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind, **options)
    return buffer.getvalue()


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F] = "a maker's name that is long enough to lie outside the directory"
    exif[0x0112] = orientation
    return exif


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_sizes_are_read_from_every_format(kind: str) -> None:
    assert read_header("a", encoded(kind)) == Header(kind, 48, 32, 1)


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"comment": b"x" * 60000}])
def test_every_kind_of_jpeg_is_read(options: dict[str, object]) -> None:
    assert read_header("a", encoded("JPEG", **options)) == Header("JPEG", 48, 32, 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_turns_the_size(kind: str, orientation: int) -> None:
    header = read_header("a", encoded(kind, exif=oriented(orientation)))

    assert header is not None
    assert header.orientation == orientation
    assert header.upright == ((32, 48) if orientation >= 5 else (48, 32))


@pytest.mark.parametrize("orientation", [3, 6])
def test_tiff_pictures_are_upright_already(orientation: int) -> None:
    header = read_header("a", encoded("TIFF", exif=oriented(orientation)))

    assert header is not None
    assert header.upright == ((32, 48) if orientation == 6 else (48, 32))


def test_more_bytes_are_asked_for_where_the_first_ones_do_not_reach() -> None:
    data = encoded("JPEG", comment=b"x" * 60000)

    assert read_header("a", data[:2000], complete=False) is None
    assert read_header("a", encoded("WEBP")[:100], complete=False) is None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (encoded("JPEG")[:100], "the file is cut short after 100 bytes"),
        (encoded("PNG")[:20], "the file is cut short after 20 bytes"),
        (b"<html>not a picture</html>", "not a picture (it begins with b'<html>no')"),
        (png_claiming(0, 5), "its size is 0x5"),
        (png_claiming(20000, 15000), "20000x15000 is 300 megapixels; 179 are the limit"),
    ],
)
def test_what_is_no_usable_picture_is_named(data: bytes, reason: str) -> None:
    with pytest.raises(SampleUnreadable) as caught:
        read_header("a.jpg", data)

    assert caught.value.reason == reason


def test_the_limit_itself_is_allowed() -> None:
    assert read_header("a", png_claiming(MAX_PIXELS, 1)) == Header("PNG", MAX_PIXELS, 1, 1)


@pytest.mark.parametrize(
    ("key", "kind", "expected"),
    [("a.jpg", "PNG", True), ("a.JPEG", "JPEG", False), ("x/a.tif", "TIFF", False), ("a.webp", "JPEG", True)],
)
def test_a_name_that_promises_another_format_is_noticed(key: str, kind: str, expected: bool) -> None:
    assert mislabelled(key, Header(kind, 1, 1)) is expected
