"""Words: a text encoder is given every caption with the facts that it reads once, and the length of sounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from st.data.backend import DataBackend
from st.data.dataset import DatasetConfig, DatasetOptions
from st.data.encoder import Encoder
from st.data.sample import Media, Sample
from st.data.sets.prepare import PreparedSet, prepare_set
from st.data.sets.words import Words, words_for
from st.data.shape.rule import GeometryRule
from st.options import Options
from st.report.report import Report


class Listed(DataBackend):
    """Samples that nobody reads."""

    def __init__(self, samples: list[Sample]) -> None:
        super().__init__("memory:x", Options())
        self.listed = samples

    def samples(self, unreadable: Callable[[str, str], None]) -> Iterator[Sample]:
        yield from self.listed

    def read(self, key: str) -> bytes:
        raise AssertionError(key)


class Reader(Encoder):
    """Reads the facts that it is made with."""

    name, reads, fingerprint = "reader", ("caption",), "1"

    def __init__(self, *facts: str) -> None:
        self.facts = facts

    def open(self, device: object) -> Any:
        raise NotImplementedError


def a_set(*songs: tuple[float, str, Mapping[str, str]]) -> PreparedSet:
    samples = [
        Sample(f"{number}.wav", Media("audio", frames=0, seconds=seconds), (text,), facts=facts)
        for number, (seconds, text, facts) in enumerate(songs)
    ]
    options = DatasetOptions(url="memory:x", name="x", duration_interval=1, caption_dropout=0)
    config = DatasetConfig(options, Options(), "memory")
    return prepare_set(config, Listed(samples), GeometryRule(), seed=0, report=Report.silent())


def test_an_encoder_that_reads_lengths_is_told_that_of_the_window() -> None:
    one = a_set((2.7, "a song", {"bpm": "90"}), (3.2, "a song", {}), (3.9, "a song", {}))

    found = list(words_for(Reader("seconds"), [one], [Words("a prompt", {"seconds": "7", "lyrics": "la"})]))

    assert found == [
        Words(""),
        Words("a prompt", {"seconds": "7"}),
        Words("a song", {"seconds": "2"}),
        Words("a song", {"seconds": "3"}),
    ]


def test_songs_of_one_caption_are_told_apart_by_what_is_read_only() -> None:
    one = a_set((2.0, "a song", {"bpm": "90"}), (3.0, "a song", {"bpm": "90"}), (3.0, "a song", {"bpm": "80"}))

    assert list(words_for(Reader(), [one], [])) == [Words(""), Words("a song")]
    assert list(words_for(Reader("bpm"), [one], [Words("a song", {"bpm": "80"})])) == [
        Words(""),
        Words("a song", {"bpm": "80"}),
        Words("a song", {"bpm": "90"}),
    ]
