"""Joint: what an encoder is given that reads a caption and its sample, or the references of one, together."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from st.data.cache.inputs import ahead, media_input, pixels_of, window
from st.data.encoder import Input
from st.data.sets.words import DROPPED, Words
from st.errors import SampleUnreadable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    from numpy.typing import NDArray

    from st.data.cache.cache import Cache, Origin
    from st.data.cache.origins import Origins
    from st.data.encoder import Encoder
    from st.data.sets.prepare import PreparedSet

    Pair = tuple[PreparedSet, int, Words]
    """A sample's row with one of its texts."""


def texts_of(one: PreparedSet, row: int, encoder: Encoder) -> Iterator[Words]:
    """The texts that an encoder of a sample and its words is given with it; one that reads none gets one without."""
    if not encoder.reads_captions:
        yield DROPPED
        return
    facts = one.index.facts(row)
    yield from (Words(text, facts) for text in one.index.captions(row) or ("",))
    if one.config.options.caption_dropout:
        yield DROPPED


def joint_input(one: PreparedSet, row: int, encoder: Encoder, words: Words) -> Input:
    """A sample with a text for an encoder of both. Raises SampleUnreadable."""
    told = words.input(encoder) if encoder.reads_captions else Input("")
    given = replace(told, key=one.index.key(row), geometry=one.index.fit(row).geometry)
    if "pixels" in encoder.reads or "audio" in encoder.reads:
        with one.open(row) as file:
            media = media_input(one, row, file, encoder)
        given = replace(given, pixels=media.pixels, audio=media.audio, fps=media.fps)
    shown = []
    for other in one.references if "references" in encoder.reads else ():
        with other.open(row) as file:
            shown.append(pixels_of(other, row, file))
    return replace(given, references=tuple(shown))


def lacking_pairs(
    encoder: Encoder, origins: Origins, cache: Cache, one: PreparedSet, rows: NDArray[np.int64]
) -> Iterator[tuple[int, Words]]:
    """The rows and texts without an entry of an encoder of both."""
    for row in map(int, rows):
        texts = list(texts_of(one, row, encoder))
        known = [origins.joint(encoder, one, row, words) for words in texts]
        for place in cache.lacking([origin.key if origin else "" for origin in known]):
            yield row, texts[int(place)]


def read_pairs(
    encoder: Encoder, origins: Origins, pairs: Sequence[Pair], pool: ThreadPoolExecutor, batch: int
) -> Iterator[tuple[Pair, Origin | None, Input | str]]:
    """Each pair with what its entry is made of and what the encoder is given, or why it cannot be read.

    batch: how many the encoder is given at a time.
    """

    def read(pair: Pair) -> tuple[Origin | None, Input]:
        one, row, words = pair
        return origins.joint(encoder, one, row, words), joint_input(one, row, encoder, words)

    def limit(pair: Pair) -> int:
        return window(pair[0].index.fit(pair[1]).geometry, batch)

    for pair, future in ahead(pool, pairs, read, limit):
        try:
            yield pair, *future.result()
        except SampleUnreadable as error:
            yield pair, None, error.reason
