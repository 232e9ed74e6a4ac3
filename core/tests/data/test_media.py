"""Clips and sounds from a folder to the cache: what encoders are given, and what is left out by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from st.data.cache.cache import Cache
from st.data.cache.mending import Mender
from st.data.cache.origins import Origins
from st.data.dataset import DatasetConfig, DatasetOptions
from st.data.encoder import Encoder, Input, LatentCodec
from st.data.feed.batches import Assembler, Kept
from st.data.inspect.checking import check_set
from st.data.inspect.sheet import page
from st.data.sets.prepare import PreparedSet, prepare_set
from st.data.shape.buckets import BatchShape
from st.data.shape.rule import GeometryRule
from st.data.source.folder import FolderBackend, FolderOptions
from st.data.store.store import Store
from st.report.report import Report
from st.testing.media import numbers, tone, write_clip, write_sound

RULE = GeometryRule(multiple=16, frames_modulus=4, frames_remainder=1)


class Taking(LatentCodec):
    """Keeps what it is given, and gives a number for it."""

    name, fingerprint = "taking", "1"

    def __init__(self, reads: Literal["pixels", "audio"] = "pixels", sample_rate: int = 0, channels: int = 0) -> None:
        self.reads, self.sample_rate, self.channels = (reads,), sample_rate, channels
        self.given: list[Input] = []

    @contextmanager
    def open(self, device: torch.device) -> Iterator[Callable[[Sequence[Input]], list[Mapping[str, Tensor]]]]:
        def encode(inputs: Sequence[Input]) -> list[Mapping[str, Tensor]]:
            self.given += inputs
            return [{"latents": torch.zeros(1, 1, 1, 1)} for _ in inputs]

        yield encode

    def decoder(self, device: torch.device) -> Any:
        raise NotImplementedError


class Reading(Encoder):
    """A text encoder that reads lyrics beside the caption."""

    name, reads, fingerprint, facts = "reading", ("caption",), "1", ("lyrics",)
    sample_rate = channels = 0

    def __init__(self) -> None:
        self.given: list[tuple[str, str]] = []

    @contextmanager
    def open(self, device: torch.device) -> Iterator[Callable[[Sequence[Input]], list[Mapping[str, Tensor]]]]:
        def encode(inputs: Sequence[Input]) -> list[Mapping[str, Tensor]]:
            words = [(one.caption or "", one.facts.get("lyrics", "")) for one in inputs]
            self.given += words
            return [{"text": torch.tensor([len(caption), len(lyrics)])} for caption, lyrics in words]

        yield encode

    def count_tokens(self, caption: str) -> tuple[int, int] | None:
        return None


def a_set(
    folder: Path, report: Report | None = None, backend: FolderBackend | None = None, **options: Any
) -> PreparedSet:
    names = set(FolderOptions.model_fields)
    own = {"caption": "none", **{name: value for name, value in options.items() if name in names}}
    rest = {name: value for name, value in options.items() if name not in names}
    given = {"url": str(folder), "name": "x", "resolution": 64, "align": 16, "missing_caption": "empty", **rest}
    backend = backend or FolderBackend(str(folder), FolderOptions.model_validate(own))
    config = DatasetConfig(DatasetOptions.model_validate(given), backend.options, "file")
    return prepare_set(config, backend, RULE, seed=0, report=report or Report.silent())


def levels(given: Input) -> list[int]:
    assert given.pixels is not None
    return numbers((given.pixels.movedim(0, -1) * 255).round().to(torch.uint8).numpy())


def test_an_encoder_of_pixels_is_given_each_window(tmp_path: Path, store: Store, studio: Any) -> None:
    write_clip(tmp_path / "a.mp4", 25, size=(64, 64))
    codec = Taking()

    studio.encoded(Cache(store), a_set(tmp_path, media="video", num_frames=5, windows=3), codec=codec)

    assert sorted(levels(one) for one in codec.given) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11, 12, 13, 14]]
    first = codec.given[0]
    assert first.pixels is not None and first.pixels.shape == (3, 5, 64, 64) and first.fps == 10
    assert first.pixels.dtype == torch.float32 and first.pixels.is_contiguous()


def test_a_folder_of_frames_at_another_rate_is_encoded_again(tmp_path: Path, store: Store, studio: Any) -> None:
    (tmp_path / "a").mkdir()
    for number in range(24):
        Image.new("RGB", (64, 64), (number * 10,) * 3).save(tmp_path / "a" / f"{number}.png")
    codec = Taking()

    for rate in (8, 4):
        one = a_set(tmp_path, media="video", frame_folders=rate, num_frames=5, fps=4)
        studio.encoded(Cache(store), one, codec=codec)

    shown = [one.pixels[0, :, 0, 0] * 25.5 for one in codec.given if one.pixels is not None]
    assert [frames.round().int().tolist() for frames in shown] == [[0, 2, 4, 6, 8], [0, 1, 2, 3, 4]]


def test_silence_that_was_kept_is_left_out_where_it_is_not(tmp_path: Path, store: Store, studio: Any) -> None:
    write_sound(tmp_path / "quiet.wav", np.zeros((1, 16000), np.float32), 8000)
    write_sound(tmp_path / "loud.wav", tone(2.0, 8000), 8000)

    kept, without = (
        studio.encoded(
            Cache(store),
            a_set(tmp_path, media="audio", seconds=2.0, keep_silence=keep, max_unreadable=0.5),
            codec=Taking("audio", 8000, 1),
        )
        for keep in (True, False)
    )

    assert [sum(map(len, found.sets[0].buckets)) for found in (kept, without)] == [2, 1]


def test_a_clip_of_one_frame_has_a_dimension_for_it(tmp_path: Path, store: Store, studio: Any) -> None:
    write_clip(tmp_path / "a.mp4", 3, size=(64, 64))
    codec = Taking()

    studio.encoded(Cache(store), a_set(tmp_path, media="video"), codec=codec)

    (only,) = codec.given
    assert only.pixels is not None and only.pixels.shape == (3, 1, 64, 64)


def test_what_is_cached_is_the_window_at_its_rate(tmp_path: Path, store: Store, studio: Any) -> None:
    write_clip(tmp_path / "a.mp4", 30, size=(64, 64))

    def encoded(**options: Any) -> list[list[int]]:
        codec = Taking()
        studio.encoded(Cache(store), a_set(tmp_path, media="video", num_frames=5, **options), codec=codec)
        return [levels(one) for one in codec.given]

    assert encoded() == [[0, 1, 2, 3, 4]]
    assert encoded() == []
    assert encoded(windows=2) == [[5, 6, 7, 8, 9]]
    assert encoded(fps=10) == []
    assert encoded(fps=5) == [[0, 2, 4, 6, 8]]


def test_all_windows_of_a_file_know_its_digest(tmp_path: Path, store: Store, studio: Any) -> None:
    write_clip(tmp_path / "a.mp4", 30, size=(64, 64))
    one = a_set(tmp_path, media="video", num_frames=5, windows=3)

    digest = one.digest(1)

    assert [one.index.digest(row) for row in range(3)] == [digest] * 3


def test_an_encoder_of_sound_says_what_it_hears(tmp_path: Path, store: Store, studio: Any) -> None:
    write_sound(tmp_path / "a.flac", tone(7.0, 44100), 44100)
    codec = Taking("audio", sample_rate=16000, channels=2)

    studio.encoded(Cache(store), a_set(tmp_path, media="audio"), codec=codec)

    (only,) = codec.given
    assert only.audio is not None and only.audio.shape == (2, 96000) and only.audio.dtype == torch.float32
    assert only.geometry is not None and only.geometry.seconds == 6.0 and only.pixels is None


def test_an_encoder_of_sound_hears_the_track_of_a_clips_window(tmp_path: Path, store: Store, studio: Any) -> None:
    wave = np.concatenate([tone(1.0, 48000, loud=0.05), tone(2.0, 48000, loud=0.5)], axis=1)
    write_clip(tmp_path / "a.mp4", 30, size=(64, 64), sound=wave)
    codec = Taking("audio", sample_rate=24000, channels=1)

    studio.encoded(Cache(store), a_set(tmp_path, media="video", num_frames=5, window="end"), codec=codec)

    (only,) = codec.given
    assert only.audio is not None and only.audio.shape == (1, 12000)
    assert 0.4 < float(only.audio.abs().max()) < 0.6


def test_silence_is_left_out_by_name_unless_it_is_wanted(tmp_path: Path, store: Store, studio: Any) -> None:
    write_sound(tmp_path / "a.wav", tone(3.0, 16000), 16000)
    write_sound(tmp_path / "b.wav", np.zeros((1, 48000), np.float32), 16000)
    report = studio.Told()

    def kept(**options: Any) -> int:
        one = a_set(tmp_path, media="audio", max_unreadable=0.5, **options)
        codec = Taking("audio", sample_rate=16000, channels=1)
        (left,) = studio.encoded(Cache(store), one, codec=codec, report=report).sets
        return sum(map(len, left.buckets))

    assert kept() == 1
    assert report.drops == [("x", "b.wav", "it is silent from 0.00 s to 3.00 s")]
    assert kept(keep_silence=True) == 2


def test_media_that_the_model_does_not_read_are_named(tmp_path: Path, store: Store, studio: Any) -> None:
    write_sound(tmp_path / "a.wav", tone(3.0, 16000), 16000)
    report = studio.Told()

    studio.encoded(Cache(store), a_set(tmp_path, media="audio", max_unreadable=1), codec=Taking(), report=report)

    assert report.drops == [("x", "a.wav", "it is a sound, and the model reads pixels")]


def test_files_of_other_media_are_told_apart_in_the_error(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", 3)

    with pytest.raises(Exception, match=r"holds no pictures(.|\n)*or media = 'video'"):
        a_set(tmp_path)


def test_lyrics_lie_beside_a_sound_or_in_a_list(tmp_path: Path) -> None:
    write_sound(tmp_path / "a.wav", tone(3.0, 16000), 16000)
    write_sound(tmp_path / "b.wav", tone(3.0, 16000), 16000)
    (tmp_path / "a.txt").write_text("rock, loud")
    (tmp_path / "a.lyrics.txt").write_text("[verse]\nla la\n")
    (tmp_path / "a.json").write_text(json.dumps({"caption": "rock", "lyrics": "la", "bpm": 120, "key": "Am"}))
    lines = [{"file_name": "a.wav", "text": "rock", "lyrics": "la", "bpm": 120}, {"file_name": "b.wav", "text": "folk"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))

    def facts(caption: str) -> list[tuple[tuple[str, ...], Mapping[str, str]]]:
        index = a_set(tmp_path, media="audio", caption=caption, facts=["lyrics", "bpm"], missing_caption="empty").index
        return [(index.captions(row), index.sample(row).facts) for row in range(2)]

    assert facts("textfile") == [(("rock, loud",), {"lyrics": "[verse]\nla la"}), (("",), {})]
    assert facts("json") == [(("rock",), {"lyrics": "la", "bpm": "120"}), (("",), {})]
    assert facts("jsonl") == [(("rock",), {"lyrics": "la", "bpm": "120"}), (("folk",), {})]


def test_text_encoders_read_the_facts_that_they_name(tmp_path: Path, store: Store, studio: Any) -> None:
    for name, lyrics in (("a", "la"), ("b", "la"), ("c", "do re"), ("d", "")):
        write_sound(tmp_path / f"{name}.wav", tone(3.0, 16000, hertz=300 + ord(name)), 16000)
        (tmp_path / f"{name}.txt").write_text("rock")
        (tmp_path / f"{name}.bpm.txt").write_text(str(ord(name)))
        if lyrics:
            (tmp_path / f"{name}.lyrics.txt").write_text(lyrics)
    reading, cache = Reading(), Cache(store)
    options: dict[str, Any] = {"media": "audio", "caption": "textfile", "facts": ["lyrics", "bpm"]}
    one = a_set(tmp_path, caption_dropout=0.0, **options)

    made = studio.encoded(cache, one, codec=Taking("audio", 16000, 1), text=reading)

    assert sorted(reading.given) == [("", ""), ("rock", ""), ("rock", "do re"), ("rock", "la")]
    again = Reading()
    made = studio.encoded(cache, one, codec=Taking("audio", 16000, 1), text=again)
    assert again.given == []

    def texts(dropout: float) -> list[list[int]]:
        (dropped,) = studio.encoded(
            cache, a_set(tmp_path, caption_dropout=dropout, **options), codec=Taking("audio", 16000, 1), text=again
        ).sets
        assembler = Assembler(
            made,
            Kept(cache, 0),
            lambda rows: {"text": torch.stack([row["text"] for row in rows])},
            seed=0,
            mender=Mender(made.origins, cache, pytest.fail),
            note=pytest.fail,
        )
        bucket = dropped.buckets[0]
        return assembler.batch(dropped, bucket, bucket.rows, 0).conditions["text"].tolist()

    assert texts(0.0) == [[4, 2], [4, 2], [4, 5], [4, 0]]
    assert texts(1.0) == [[0, 0]] * 4


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Thirty files of all kinds, a good many of them useless."""
    folder = tmp_path / "mixed"
    for number in range(6):
        extension = ("mp4", "mov", "webm", "mkv", "gif", "mp4")[number]
        write_clip(folder / f"clip{number}.{extension}", 5 + number, size=(48 + 16 * (number % 2), 64), rate=8 + number)
        write_sound(
            folder / f"sound{number}.{('wav', 'flac', 'mp3', 'ogg')[number % 4]}", tone(1 + number, 22050), 22050
        )
        Image.new("RGB", (64, 48 + number)).save(folder / f"picture{number}.png")
    write_clip(folder / "short.mp4", 2)
    write_clip(folder / "turned.mp4", 9, turned=90)
    write_clip(folder / "uneven.mkv", 6, times=[0, 0.1, 0.5, 0.6, 1.4, 1.5])
    write_clip(folder / "heard.mp4", 10, sound=tone(1.0, 48000))
    whole = write_clip(folder / "whole.mkv", [number % 30 for number in range(60)], keyframes=6).read_bytes()
    (folder / "ends.mkv").write_bytes(whole[: len(whole) // 2])
    (folder / "cut.mp4").write_bytes((folder / "turned.mp4").read_bytes()[:300])
    (folder / "text.mp4").write_bytes(b"not a clip" * 9)
    (folder / "text.wav").write_bytes(b"not a sound" * 9)
    (folder / "empty.flac").write_bytes(b"")
    (folder / "cut.png").write_bytes((folder / "picture0.png").read_bytes()[:20])
    write_sound(folder / "silent.wav", np.zeros((1, 22050), np.float32), 22050)
    return folder


@pytest.mark.parametrize("media", ["image", "video", "audio"])
def test_every_file_is_trained_on_or_named(mixed: Path, store: Store, studio: Any, media: str) -> None:
    report = studio.Told()
    extensions = ["wav", "flac", "mp3", "ogg", "mp4"] if media == "audio" else []
    options = {"num_frames": 5, "window": "end"} if media == "video" else {}
    codec = Taking("audio", 16000, 1) if media == "audio" else Taking()

    one = a_set(mixed, report, media=media, extensions=extensions, max_unreadable=1, **options)
    (left,) = studio.encoded(Cache(store), one, codec=codec, report=report, batch=2).sets

    used = {left.index.key(int(row)) for bucket in left.buckets for row in bucket.rows}
    named = {key for _, key, _ in report.drops}
    endings = {
        "image": ("png", "gif"),
        "video": ("mp4", "mov", "webm", "mkv", "gif"),
        "audio": ("wav", "flac", "mp3", "ogg", "mp4"),
    }[media]
    assert used | named == {file.name for file in mixed.iterdir() if file.name.endswith(endings)}
    assert not used & named
    assert (
        named
        == {
            "image": {"cut.png"},
            "video": {"short.mp4", "ends.mkv", "cut.mp4", "text.mp4"},
            "audio": {"text.wav", "empty.flac", "silent.wav", "text.mp4", "cut.mp4", "short.mp4", "turned.mp4"}
            | {f"clip{number}.mp4" for number in (0, 5)},
        }[media]
    )


def test_checking_does_not_take_the_windows_of_a_file_for_copies(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", 20, size=(64, 64))
    one = a_set(tmp_path, media="video", num_frames=5, windows=3)

    found = check_set(one.config, one.backend, RULE, Origins(Taking(), ()), shape=BatchShape(), seed=0)

    assert found.doubles == []


def test_checking_decodes_clips_and_sounds(mixed: Path) -> None:
    def unreadable(media: str, **options: Any) -> set[str]:
        one = a_set(mixed, media=media, max_unreadable=1, **options)
        codec = Taking("audio", 8000, 1) if media == "audio" else Taking()
        found = check_set(one.config, one.backend, RULE, Origins(codec, ()), shape=BatchShape(), seed=0)
        return {key for key, _ in found.unreadable}

    assert unreadable("video", num_frames=5, window="end") == {"ends.mkv"}
    assert unreadable("audio") == {"silent.wav"}


def test_the_page_plays_clips_and_sounds(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", 9, size=(64, 64))
    write_sound(tmp_path / "a.wav", tone(3.0, 22050), 22050)
    (tmp_path / "a.lyrics.txt").write_text("la <la>")

    shown = page([a_set(tmp_path, media="video"), a_set(tmp_path, media="audio", facts=["lyrics"])], per_bucket=2)

    assert 'src="data:image/webp;base64,' in shown
    assert "9 frames at 10/s, shown at 0.00, 0.10, 0.20, 0.30, 0.40, 0.50, ..., 0.80 s" in shown
    assert '<audio controls preload=none src="data:audio/mpeg;base64,' in shown and "<svg" in shown
    assert "0.00 s to 3.00 s" in shown and "la &lt;la&gt;" in shown


def test_clips_far_away_are_read_in_parts(tmp_path: Path, store: Store, studio: Any) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    path = write_clip(tmp_path / "a.mp4", 30, size=(64, 64))
    distant = Store(MemoryFileSystem(), "/media-test")
    distant.write("a.mp4", path.read_bytes())
    distant.write("frames/1.png", studio.png(1, 64, 64))

    class Distant(FolderBackend):
        def store_at(self, url: str) -> Store:
            return distant

        def fetch(self, store: Store, key: str) -> bytes:
            raise AssertionError(f"{key} is read whole")

    backend = Distant("x", FolderOptions(media="video", caption="none", frame_folders=10))
    codec = Taking()

    studio.encoded(Cache(store), a_set(tmp_path, backend=backend), codec=codec)

    assert {one.key: len(levels(one)) for one in codec.given} == {"a.mp4": 29, "frames/": 1}
