"""Lengths: how much of a clip or sound is used, and which part of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from st.data.backend import DataBackend
from st.data.dataset import DatasetConfig, DatasetOptions
from st.data.sample import Media, Sample
from st.data.sets.prepare import PreparedSet, prepare_set
from st.data.shape.rule import GeometryRule
from st.errors import DataUnusable
from st.options import Options
from st.report.report import Report

RULE = GeometryRule(multiple=16, frames_modulus=4, frames_remainder=1)


class Listed(DataBackend):
    """Samples that nobody reads."""

    def __init__(self, samples: list[Sample]) -> None:
        super().__init__("memory:x", Options())
        self.listed = samples

    def samples(self, unreadable: Callable[[str, str], None]) -> Iterator[Sample]:
        yield from self.listed

    def read(self, key: str) -> bytes:
        raise AssertionError(key)


def clips(*frames: int, fps: float = 10.0) -> list[Sample]:
    return [Sample(f"{n:02}.mp4", Media("video", 64, 64, f, fps, f / fps), ("a",)) for n, f in enumerate(frames)]


def sounds(*seconds: float) -> list[Sample]:
    return [Sample(f"{n:02}.wav", Media("audio", frames=0, seconds=s), ("a",)) for n, s in enumerate(seconds)]


def prepared(samples: list[Sample], seed: int = 0, report: Report | None = None, **options: Any) -> PreparedSet:
    given = DatasetOptions(url="memory:x", name="x", resolution=64, align=16, caption_dropout=0, **options)
    config = DatasetConfig(given, Options(), "memory")
    return prepare_set(config, Listed(samples), RULE, seed=seed, report=report or Report.silent())


def buckets(one: PreparedSet) -> dict[str, list[str]]:
    return {str(bucket.geometry): [one.index.key(int(row)) for row in bucket.rows] for bucket in one.buckets}


def windows(one: PreparedSet) -> list[tuple[str, float]]:
    return [(one.index.key(row), one.index.fit(row).start) for row in range(len(one.index))]


def test_all_of_each_clip_is_used_as_far_as_the_model_takes_it() -> None:
    assert buckets(prepared(clips(3, 5, 8, 12, 13))) == {
        "64x64": ["00.mp4"],
        "64x64x5": ["01.mp4", "02.mp4"],
        "64x64x9": ["03.mp4"],
        "64x64x13": ["04.mp4"],
    }


def test_a_number_of_frames_is_that_of_every_clip() -> None:
    one = prepared(clips(8, 9, 30, 11), num_frames=11)

    assert buckets(one) == {"64x64x9": ["01.mp4", "02.mp4", "03.mp4"]}
    assert one.dropped == {"too short": 1}


def test_shorter_clips_may_keep_a_length_of_their_own() -> None:
    one = prepared(clips(4, 6, 8, 30), num_frames=9, min_frames=6)

    assert buckets(one) == {"64x64x5": ["01.mp4", "02.mp4"], "64x64x9": ["03.mp4"]}


def test_longer_clips_may_be_left_out() -> None:
    one = prepared(clips(9, 30, 31), max_frames=30)

    assert one.dropped == {"too long": 1} and len(one.index) == 2


def test_lengths_are_grouped_in_steps_that_the_model_takes() -> None:
    one = prepared(clips(5, 9, 16, 17, 30), frame_interval=8)

    assert list(buckets(one)) == ["64x64x5", "64x64x9", "64x64x17", "64x64x25"]


@pytest.mark.parametrize(("fps", "frames"), [(5.0, 15), (16.0, 48), (10.0, 30), (8.0, 24)])
def test_frames_are_counted_at_the_rate_they_are_brought_to(fps: float, frames: int) -> None:
    rule_of_one = RULE.frames(frames)

    one = prepared(clips(30), fps=fps)

    assert one.index.fit(0).geometry.frames == rule_of_one
    assert one.index.fit(0).rate == fps


def test_slower_clips_than_asked_for_are_told() -> None:
    class Told(Report):
        notes: list[str] = []  # noqa: RUF012

        def __init__(self) -> None:
            silent = Report.silent()
            super().__init__(silent.options, None, silent._console)

        def note(self, text: str, kind: str = "note", **facts: object) -> None:
            self.notes.append(text)

    report = Told()

    prepared(clips(30), fps=16, report=report)

    assert "1 samples have fewer than 16 frames per second" in report.notes[0]


@pytest.mark.parametrize(("window", "starts"), [("start", [0.0]), ("middle", [1.0]), ("end", [2.1])])
def test_one_window_is_where_it_is_asked_for(window: str, starts: list[float]) -> None:
    assert [start for _, start in windows(prepared(clips(30), num_frames=9, window=window))] == starts


@pytest.mark.parametrize(
    ("window", "starts"),
    [("start", [0.0, 0.9, 1.8]), ("end", [2.1, 1.2, 0.3]), ("middle", [0.2, 0.7, 1.3, 1.8])],
)
def test_several_windows_make_several_samples_of_one_file(window: str, starts: list[float]) -> None:
    one = prepared(clips(30), num_frames=9, window=window, windows=4)

    assert windows(one) == [("00.mp4", pytest.approx(start)) for start in starts]
    assert buckets(one) == {"64x64x9": ["00.mp4"] * len(starts)}


def test_a_clip_of_one_windows_length_gives_one() -> None:
    assert windows(prepared(clips(9), num_frames=9, window="random", windows=5)) == [("00.mp4", 0.0)]


def test_random_windows_depend_on_seed_and_key_alone() -> None:
    some = clips(*[60] * 20)
    options: dict[str, Any] = {"num_frames": 9, "window": "random", "windows": 3}

    together = windows(prepared(some, **options))

    assert windows(prepared(some[7:8], **options)) == together[21:24]
    assert windows(prepared(some[::-1], **options)) == [
        one for n in range(19, -1, -1) for one in together[3 * n : 3 * n + 3]
    ]
    assert windows(prepared(some, seed=1, **options)) != together


def test_random_windows_lie_inside_are_spread_and_reach_both_ends() -> None:
    places = np.array(
        [start for _, start in windows(prepared(clips(*[60] * 200), num_frames=9, window="random", windows=2))]
    )

    first, second = np.rint(places * 10).astype(int).reshape(-1, 2).T
    assert (first.min(), first.max(), second.min(), second.max()) == (0, 25, 26, 51)


def test_sounds_are_cut_to_whole_steps_and_short_ones_kept_whole() -> None:
    assert buckets(prepared(sounds(2.5, 7.9, 9.0, 6.2))) == {
        "2.5s": ["00.wav"],
        "6s": ["01.wav", "03.wav"],
        "9s": ["02.wav"],
    }


def test_sounds_of_one_length_give_windows() -> None:
    one = prepared(sounds(4.0, 12.5, 30.0), seconds=5, max_seconds=20, windows=9)

    assert windows(one) == [("01.wav", 0.0), ("01.wav", 5.0)]
    assert one.dropped == {"too short": 1, "too long": 1}


def test_short_sounds_may_keep_a_length_of_their_own() -> None:
    assert list(buckets(prepared(sounds(4.0, 12.5), seconds=5, min_seconds=3))) == ["3s", "5s"]


def test_pictures_have_no_window() -> None:
    one = prepared([Sample("a.png", Media("image", 64, 64), ("a",))])

    assert (one.index.fit(0).start, one.index.fit(0).rate, one.index.fit(0).duration) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("samples", "options", "named"),
    [
        ([Sample("a.png", Media("image", 64, 64), ("a",))], {"num_frames": 9}, "num_frames has no effect"),
        (clips(30), {"seconds": 3}, "seconds has no effect"),
        (sounds(9.0), {"fps": 16}, "fps has no effect"),
    ],
)
def test_options_about_other_media_are_refused(samples: list[Sample], options: dict[str, Any], named: str) -> None:
    with pytest.raises(DataUnusable, match=named):
        prepared(samples, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 9, "min_frames": 10}, "min_frames = 10 is above num_frames = 9"),
        ({"num_frames": 9, "max_frames": 8}, "max_frames = 8 is below num_frames = 9"),
        ({"min_seconds": 4, "max_seconds": 3}, "max_seconds = 3 is below min_seconds = 4"),
        ({"num_frames": 9, "frame_interval": 4}, "frame_interval has no effect"),
    ],
)
def test_lengths_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DatasetOptions(url="x", **options)
