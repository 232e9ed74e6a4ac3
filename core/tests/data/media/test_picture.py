import io
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from st.data.geometry import Fit, Geometry
from st.data.media.picture import decode, decode_mask
from st.errors import SampleUnreadable

WHOLE = Fit(Geometry(32, 48), resized=(32, 48), crop=(0, 0), aspect=1.5)


def gradient(height: int = 32, width: int = 48) -> NDArray[np.uint8]:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 255 // height, columns * 255 // width, rows * 0 + 40], axis=-1).astype(np.uint8)


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def test_a_picture_of_the_right_size_is_not_changed() -> None:
    pixels = gradient()

    assert np.array_equal(decode("a.png", encoded(Image.fromarray(pixels)), WHOLE), pixels)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_are_decoded(kind: str) -> None:
    made = decode("a", encoded(Image.fromarray(gradient()), kind, quality=95), WHOLE)

    assert made.shape == (32, 48, 3) and made.dtype == np.uint8
    assert np.abs(made.astype(int) - gradient()).mean() < 5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(orientation: int) -> None:
    upright = Image.fromarray(gradient())
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation

    made = decode("a.png", encoded(stored, exif=exif), WHOLE)

    assert np.array_equal(made, gradient())


def test_a_crop_is_cut_out_of_the_resized_picture() -> None:
    fit = Fit(Geometry(16, 16), resized=(32, 48), crop=(5, 20), aspect=1.0)

    assert np.array_equal(decode("a", encoded(Image.fromarray(gradient())), fit), gradient()[5:21, 20:36])


def test_a_turned_picture_is_cropped_after_it_is_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(gradient()).transpose(Image.Transpose.ROTATE_90)
    fit = Fit(Geometry(16, 16), resized=(32, 48), crop=(5, 20), aspect=1.0)

    assert np.array_equal(decode("a", encoded(stored, exif=exif), fit), gradient()[5:21, 20:36])


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = np.linspace(0, 65535, 32 * 48).astype(np.uint16).reshape(32, 48)

    made = decode("a", encoded(Image.fromarray(values)), WHOLE)

    assert np.array_equal(made[..., 0], np.round(values / 257).astype(np.uint8))
    assert (made[..., 0] == made[..., 2]).all()


def test_transparent_parts_are_white() -> None:
    rgba = np.zeros((32, 48, 4), np.uint8)
    rgba[:, 24:] = (200, 0, 0, 255)
    rgba[:16, 24:, 3] = 0

    made = decode("a", encoded(Image.fromarray(rgba)), WHOLE)

    assert (made[:, :24] == 255).all() and (made[:16] == 255).all()
    assert (made[16:, 24:] == (200, 0, 0)).all()


def test_a_transparent_palette_entry_is_white() -> None:
    picture = Image.new("P", (48, 32), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    picture.paste(0, (0, 0, 24, 32))

    made = decode("a", encoded(picture, transparency=0), WHOLE)

    assert (made[:, :24] == 255).all()
    assert (made[:, 24:] == (10, 20, 30)).all()


def test_a_transparent_colour_is_white() -> None:
    made = decode("a", encoded(Image.new("RGB", (48, 32), (9, 8, 7)), transparency=(9, 8, 7)), WHOLE)

    assert (made == 255).all()


@pytest.mark.parametrize(
    ("picture", "kind"),
    [
        (Image.new("L", (48, 32), 128), "PNG"),
        (Image.new("LA", (48, 32), (128, 255)), "PNG"),
        (Image.new("1", (48, 32), 1), "PNG"),
        (Image.new("P", (48, 32)), "GIF"),
        (Image.new("CMYK", (48, 32), (0, 255, 255, 0)), "JPEG"),
        (Image.new("L", (48, 32), 128), "JPEG"),
        (Image.new("CMYK", (48, 32), (0, 255, 255, 0)), "TIFF"),
    ],
)
def test_every_mode_becomes_rgb(picture: Image.Image, kind: str) -> None:
    made = decode("a", encoded(picture, kind), WHOLE)

    expected = np.asarray(picture.convert("RGB"))
    assert made.shape == expected.shape
    assert np.abs(made.astype(int) - expected).max() <= 3


def test_floating_point_pixels_are_refused() -> None:
    data = encoded(Image.fromarray(np.zeros((32, 48), np.float32)), "TIFF")

    with pytest.raises(SampleUnreadable, match="floating-point numbers, whose range is not known"):
        decode("a.tif", data, WHOLE)


def test_the_first_frame_of_an_animation_is_used() -> None:
    frames = [Image.new("RGB", (48, 32), colour) for colour in ("red", "blue")]

    made = decode("a", encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), WHOLE)

    assert (made == (255, 0, 0)).all()


def test_a_large_jpeg_is_decoded_at_a_smaller_scale_with_the_same_look() -> None:
    large = Image.fromarray(gradient(1200, 1800))
    fit = Fit(Geometry(140, 200), resized=(140, 210), crop=(0, 5), aspect=1.43)

    made = decode("a.jpg", encoded(large, "JPEG", quality=95), fit)

    expected = np.asarray(large.resize((210, 140), Image.Resampling.LANCZOS))[:, 5:205]
    assert made.shape == (140, 200, 3)
    assert np.abs(made.astype(int) - expected).mean() < 1.5


def test_a_mislabelled_file_is_decoded_by_its_bytes() -> None:
    assert np.array_equal(decode("a.jpg", encoded(Image.fromarray(gradient())), WHOLE), gradient())


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("JPEG", "it cannot be decoded: "), ("PNG", "it cannot be decoded: "), ("WEBP", "not a picture")],
)
def test_a_truncated_file_is_named(kind: str, reason: str) -> None:
    noise = np.random.Generator(np.random.Philox(0)).integers(0, 255, (32, 48, 3)).astype(np.uint8)
    data = encoded(Image.fromarray(noise), kind)

    with pytest.raises(SampleUnreadable) as caught:
        decode("a", data[: len(data) * 2 // 3], WHOLE)

    assert caught.value.key == "a"
    assert caught.value.reason.startswith(reason)


def test_an_empty_file_is_named() -> None:
    with pytest.raises(SampleUnreadable, match="'a' cannot be used: the file is empty"):
        decode("a", b"", WHOLE)


def test_white_in_a_mask_is_trained_on_whatever_its_size() -> None:
    mask = Image.new("L", (96, 64), 0)
    mask.paste(255, (48, 0, 96, 64))

    made = decode_mask("m", encoded(mask), WHOLE)

    assert made.shape == (32, 48) and made.dtype == np.uint8
    assert (made[:, :20] == 0).all() and (made[:, 28:] == 255).all()


def test_three_hundred_megapixels_are_refused_in_little_memory() -> None:
    script = textwrap.dedent(
        """
        import resource, struct, zlib, pathlib
        from st.data.geometry import Fit, Geometry
        from st.data.media.picture import decode
        from st.errors import SampleUnreadable

        def chunk(kind, body):
            return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

        packer = zlib.compressobj(1)
        rows = b"".join(packer.compress(bytes(20001)) for _ in range(15000)) + packer.flush()
        header = struct.pack(">IIBBBBB", 20000, 15000, 8, 0, 0, 0, 0)
        data = b"\\x89PNG\\r\\n\\x1a\\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            decode("bomb.png", data, Fit(Geometry(64, 64), (64, 86), (0, 0), 1.0))
        except SampleUnreadable as error:
            print(error)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000)
        """
    )

    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert answer.stdout.splitlines() == [
        "'bomb.png' cannot be used: 20000x15000 is 300 megapixels; 179 are the limit",
        "True",
    ]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the most memory that was held")
def test_a_transparent_picture_of_sixteen_bits_takes_little_more_than_its_pixels() -> None:
    script = textwrap.dedent(
        """
        import pathlib, re, struct, zlib
        from PIL import Image
        from st.data.geometry import Fit, Geometry
        from st.data.media.picture import decode

        def peak():
            status = pathlib.Path("/proc/self/status").read_text()
            return int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) * 1024

        def chunk(kind, body):
            return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

        edge = 3000
        packer = zlib.compressobj(1)
        rows = b"".join(packer.compress(bytes(1 + 8 * edge)) for _ in range(edge)) + packer.flush()
        header = struct.pack(">IIBBBBB", edge, edge, 16, 6, 0, 0, 0)
        data = b"\\x89PNG\\r\\n\\x1a\\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
        Image.init()
        before = peak()
        pixels = decode("deep.png", data, Fit(Geometry(64, 64), (64, 64), (0, 0), 1.0))
        print(pixels.min(), (peak() - before) / edge**2)
        """
    )

    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    shade, bytes_a_pixel = answer.stdout.split()
    assert shade == "255" and float(bytes_a_pixel) < 7


@pytest.mark.parametrize("size", [(90, 40), (40, 90), (64, 64), (300, 100)])
def test_a_transparent_picture_is_resized_as_one_on_white_is(size: tuple[int, int]) -> None:
    shades = np.random.default_rng(0).integers(0, 256, (size[1] * 7, size[0] * 7, 4), np.uint8)
    picture = Image.fromarray(shades)
    white = Image.new("RGBA", picture.size, "white")
    expected = Image.alpha_composite(white, picture).convert("RGB").resize(size, Image.Resampling.LANCZOS)

    made = decode("t", encoded(picture), Fit(Geometry(size[1], size[0]), (size[1], size[0]), (0, 0), 1.0))

    assert np.array_equal(made, np.asarray(expected))


def test_a_transparent_grey_of_sixteen_bits_is_white() -> None:
    values = np.full((32, 48), 1000, np.uint16)
    values[:, 24:] = 30_000
    data = encoded(Image.fromarray(values), transparency=1000)

    made = decode("a.png", data, WHOLE)

    assert (made[:, :24] == 255).all() and (made[:, 24:] == 117).all()


def test_many_bands_are_one_picture() -> None:
    rgba = np.dstack([np.resize(gradient(), (700, 48, 3)), np.full((700, 48), 128, np.uint8)])
    whole = Fit(Geometry(700, 48), resized=(700, 48), crop=(0, 0), aspect=0.07)

    made = decode("a.png", encoded(Image.fromarray(rgba, "RGBA")), whole)

    assert np.abs(made.astype(int) - (rgba[..., :3] / 2 + 127).astype(int)).max() <= 1


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(SampleUnreadable, match="it is 64x64, which is not the shape of 48x32"):
        decode_mask("m.png", encoded(Image.new("L", (64, 64))), WHOLE)


@pytest.mark.parametrize("orientation", [3, 6])
def test_an_orientation_behind_the_pixels_is_read(orientation: int) -> None:
    exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0" + bytes([orientation]) + b"\0\0\0\0\0\0"
    chunk = b"eXIf" + exif
    plain = encoded(Image.fromarray(gradient()))
    appended = len(exif).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    data = plain[:-12] + appended + plain[-12:]
    turned = Fit(Geometry(48, 32), resized=(48, 32), crop=(0, 0), aspect=0.67) if orientation == 6 else WHOLE

    made = decode("a.png", data, turned)

    assert np.array_equal(made, np.rot90(gradient(), -1 if orientation == 6 else 2))


def test_a_program_named_as_a_picture_is_not_started() -> None:
    with pytest.raises(SampleUnreadable, match="not a picture"):
        decode("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 48 32\n%%EndComments\nshowpage\n%%EOF\n", WHOLE)
