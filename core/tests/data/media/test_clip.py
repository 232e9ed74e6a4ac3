"""Clips: each frame of the files shows its own number, so that what was decoded is known exactly."""

from __future__ import annotations

import io
import struct
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import pytest
from PIL import Image

from st.data.geometry import Fit, Geometry
from st.data.media.clip import ClipReader, VideoFile
from st.data.media.picture import decode
from st.data.sample import Media
from st.data.source.folder import FolderBackend, FolderOptions
from st.errors import SampleUnreadable
from st.testing.media import numbers, write_clip


def fit(frames: int, start: float = 0.0, rate: float = 10.0) -> Fit:
    return Fit(Geometry(48, 64, frames), (48, 64), (0, 0), 1.33, start=start, rate=rate)


def shown(path: Path, place: Fit) -> list[int]:
    """The numbers of the frames that a window shows."""
    with path.open("rb") as file:
        return numbers(ClipReader().pixels(path.name, file, place))


def media(path: Path) -> Media:
    with path.open("rb") as file, VideoFile(path.name, file) as film:
        return film.media


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty frames at ten per second, a keyframe every six."""
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", 30, keyframes=6)


@pytest.mark.parametrize("extension", ["mp4", "mov", "webm", "mkv", "gif"])
def test_every_format_gives_its_frames(tmp_path: Path, extension: str) -> None:
    path = write_clip(tmp_path / f"clip.{extension}", 30)

    assert media(path) == Media("video", 48, 64, 30, 10.0, 3.0)
    assert shown(path, fit(30)) == list(range(30))
    assert shown(path, fit(4, start=1.7)) == [17, 18, 19, 20]


def test_another_rate_shows_the_frame_of_each_time(clip: Path) -> None:
    assert shown(clip, fit(6, rate=5.0)) == [0, 2, 4, 6, 8, 10]
    assert shown(clip, fit(8, rate=20.0)) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert shown(clip, fit(9, rate=8.0)) == [0, 1, 2, 3, 5, 6, 7, 8, 10]
    assert shown(clip, fit(3, start=1.0, rate=2.0)) == [10, 15, 20]


def test_rates_of_cinema_and_television_are_exact(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mkv", 30, rate=30000 / 1001)

    assert media(path).fps == pytest.approx(30000 / 1001)
    assert shown(path, fit(30, rate=30000 / 1001)) == list(range(30))
    assert shown(path, fit(15, rate=15000 / 1001)) == list(range(0, 30, 2))


def test_frames_of_variable_rate_are_picked_by_their_times(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mkv", 6, times=[0.0, 0.1, 0.2, 0.6, 0.7, 1.2])

    assert shown(path, fit(13)) == [0, 1, 2, 2, 2, 2, 3, 4, 4, 4, 4, 4, 5]
    assert shown(path, fit(3, start=0.5)) == [2, 3, 4]


def test_a_film_that_begins_late_begins_with_its_first_frame(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mkv", 5, times=[5.0, 5.1, 5.2, 5.3, 5.4])

    assert shown(path, fit(3, start=0.2)) == [2, 3, 4]


@pytest.mark.parametrize(("turned", "white"), [(90, (1, 0)), (180, (1, 1)), (270, (0, 1))])
def test_a_turned_camera_is_turned_back(tmp_path: Path, turned: int, white: tuple[int, int]) -> None:
    path = write_clip(tmp_path / "clip.mp4", 3, turned=turned)
    height, width = (48, 64) if turned == 180 else (64, 48)

    with path.open("rb") as file:
        pixels = ClipReader().pixels(
            "clip", file, Fit(Geometry(height, width, 2), (height, width), (0, 0), 1.0, rate=10)
        )

    assert (media(path).height, media(path).width) == (height, width)
    quarters = pixels[0].reshape(2, height // 2, 2, width // 2, 3).mean(axis=(1, 3, 4))
    assert np.unravel_index(quarters.argmax(), (2, 2)) == white


def test_the_matrix_of_a_telephone_held_upright_turns_clockwise(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", 3)
    data = bytearray(path.read_bytes())
    # ISO 14496-12: the matrix is 40 bytes into a track header; x' = a x + c y + tx, y' = b x + d y + ty, so that the
    # upper left corner comes to the upper right.
    place = data.find(b"tkhd") + 44
    data[place : place + 36] = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 48 << 16, 0, 0x40000000)
    path.write_bytes(data)

    with path.open("rb") as file:
        pixels = ClipReader().pixels("clip", file, Fit(Geometry(64, 48, 1), (64, 48), (0, 0), 0.75, rate=10))

    assert pixels[0, 8, 40].mean() > 200 > pixels[0, 8, 8].mean()


def test_pixels_that_are_not_square_are_stretched(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 48, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())

    assert (media(path).width, media(path).height) == (64, 48)


def test_crops_are_those_of_a_picture(tmp_path: Path, clip: Path) -> None:
    place = Fit(Geometry(16, 16, 2), (32, 43), (5, 20), 1.0, start=0.5, rate=10)
    with av.open(str(clip)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]

    with clip.open("rb") as file:
        pixels = ClipReader().pixels("clip", file, place)

    for number, made in zip((5, 6), pixels, strict=True):
        stored = io.BytesIO()
        Image.fromarray(frames[number]).save(stored, "PNG")
        assert np.array_equal(made, decode("png", stored.getvalue(), place))


def test_only_what_lies_between_the_keyframe_and_the_last_frame_is_decoded(clip: Path) -> None:
    with clip.open("rb") as file, VideoFile("clip", file) as film:
        assert len(list(film.resized([2.5, 2.6], fit(2)))) == 2
        behind_a_keyframe = film.packets
    with clip.open("rb") as file, VideoFile("clip", file) as film:
        list(film.resized([0.1 * number for number in range(30)], fit(30)))
        everything = film.packets

    # Frames 24 (a keyframe) to 26, and what a decoder with reordering looks ahead.
    assert behind_a_keyframe <= 3 + 5
    assert everything >= 30


def test_the_header_of_a_long_clip_is_a_small_part_of_it(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", [number % 30 for number in range(600)], keyframes=300)

    with path.open("rb") as file, VideoFile("clip", file) as film:
        assert film.media.frames == 600
        assert film.packets < 30


@pytest.mark.parametrize("kept", [0.0, 0.4, 0.9])
def test_a_truncated_file_is_named_when_it_is_opened_or_decoded(tmp_path: Path, clip: Path, kept: float) -> None:
    path = tmp_path / "cut.mp4"
    path.write_bytes(clip.read_bytes()[: int(clip.stat().st_size * kept)])

    with pytest.raises(SampleUnreadable, match=r"cut\.mp4.*(empty|cut short)"):
        media(path)


def test_a_clip_that_ends_before_its_header_says_is_named(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mkv", [number % 30 for number in range(60)], keyframes=6)
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    assert media(cut).frames == 60
    with pytest.raises(SampleUnreadable, match=r"cut\.mkv.*it ends after \d\.\d\d s; 5\.90 s are needed"):
        shown(cut, fit(60))


def test_what_is_no_clip_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_bytes(b"this is no clip at all" * 20)

    with pytest.raises(SampleUnreadable, match="not a clip"):
        media(tmp_path / "text.mp4")


def test_a_stream_without_length_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "live.webm"
    with av.open(str(path), "w", options={"live": "1"}) as container:
        stream = container.add_stream("libvpx-vp9", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for number in range(12):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 8 * number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())

    assert media(path).frames == 12
    assert shown(path, fit(12)) == list(range(12))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[FolderBackend]:
    """Two folders of frames, whose names are not padded."""
    for name, count in (("walk", 12), ("run/fast", 3)):
        for number in range(count):
            path = tmp_path / name / f"frame{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 48), (8 * number,) * 3).save(path)
    (tmp_path / "walk.txt").write_text("somebody walks")
    (tmp_path / "run" / "fast.txt").write_text("somebody runs")
    Image.new("RGB", (64, 48)).save(tmp_path / "alone.png")
    yield FolderBackend(str(tmp_path), FolderOptions(media="video", frame_folders=8))


def test_a_folder_of_frames_is_one_clip(folder: FolderBackend) -> None:
    listing = folder.table(None, lambda key, reason: pytest.fail(reason))
    run, walk = folder.samples(lambda key, reason: None)

    assert (run.key, walk.key) == ("run/fast/", "walk/")
    assert walk.media == Media("video", 48, 64, 12, 8.0, 1.5) and walk.captions == ("somebody walks",)
    assert listing.notes == ("pictures that are in no folder of frames: 1; they are left out",)


def test_frames_of_a_folder_are_in_the_order_of_their_numbers(folder: FolderBackend) -> None:
    with folder.open("walk/") as file:
        assert numbers(ClipReader().pixels("walk/", file, fit(4, start=1.0, rate=8))) == [8, 9, 10, 11]


def test_a_folder_reads_as_its_rate_and_the_bytes_of_its_frames(folder: FolderBackend, tmp_path: Path) -> None:
    files = [(tmp_path / "run" / "fast" / f"frame{number}.png").read_bytes() for number in range(3)]

    assert folder.read("run/fast/") == b"".join([b"8.0 frames per second\n", *files])


def test_a_changed_frame_changes_the_listing(folder: FolderBackend, tmp_path: Path) -> None:
    known = folder.table(None, lambda key, reason: None).table
    Image.new("RGB", (64, 40)).save(tmp_path / "walk" / "frame0.png")

    again = folder.table(known, lambda key, reason: None).table

    assert again.slice(1)["height"].to_pylist() == [40] and again.slice(0, 1).equals(known.slice(0, 1))


def test_frames_of_several_sizes_are_named(folder: FolderBackend, tmp_path: Path) -> None:
    Image.new("RGB", (64, 40)).save(tmp_path / "walk" / "frame3.png")

    with folder.open("walk/") as file, pytest.raises(SampleUnreadable, match=r"frame3\.png' has another size"):
        ClipReader().pixels("walk/", file, fit(5, rate=8))


class Counting(io.BytesIO):
    """A file that counts what is read of it."""

    taken = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.taken += len(data)
        return data


def test_a_window_reads_a_part_of_the_file(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = 96, 128, "yuv420p", 5
        for _ in range(100):
            noise = generator.integers(0, 256, (96, 128, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        container.mux(stream.encode())
    file: BinaryIO = Counting(path.read_bytes())

    ClipReader().pixels("clip", file, fit(3, start=5.0))

    assert isinstance(file, Counting) and file.taken < path.stat().st_size / 3


def test_a_description_of_a_stream_opens_no_socket(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text(
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n"
    )
    reasons: list[str] = []
    started = time.monotonic()

    FolderBackend(str(tmp_path), FolderOptions(media="video")).table(None, lambda key, reason: reasons.append(reason))

    assert len(reasons) == 1 and "not a clip" in reasons[0]
    assert time.monotonic() - started < 3
