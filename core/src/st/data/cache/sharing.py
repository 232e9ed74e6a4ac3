"""Sharing: which rank encodes what, in which order and in which batches."""

from __future__ import annotations

from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from st.data.cache.cache import Origin
    from st.data.cache.origins import Origins
    from st.data.encoder import Encoder, Input
    from st.data.sets.words import Words


SORTED = 262_144
"""Captions that are sorted by their lengths together: enough that neighbours are alike, few enough to hold."""


def owners(sizes: NDArray[np.int64], ranks: int) -> NDArray[np.int64]:
    """Which rank encodes each of these files, (N,), from their sizes in bytes.

    Files of one size have one owner, so that two copies of a file are encoded once without the ranks asking one
    another. Where so many share a size that one rank would do most of the work (uncompressed pictures), they are dealt
    out, and copies among those may be encoded on two ranks.
    """
    if ranks == 1:
        return np.zeros(len(sizes), dtype=np.int64)
    distinct, place, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    owner = np.array([int(blake2b(str(size).encode(), digest_size=4).hexdigest(), 16) % ranks for size in distinct])
    crowded = counts > max(8, len(sizes) // (4 * ranks))
    return np.where(crowded[place], np.arange(len(sizes)) % ranks, owner[place])


def batches_of(pairs: Iterable[tuple[Origin, Input]], size: int) -> Iterator[list[tuple[Origin, Input]]]:
    """Consecutive inputs of one geometry, at most ``size`` of them."""
    batch: list[tuple[Origin, Input]] = []
    for pair in pairs:
        if batch and (len(batch) == size or _shape(batch[0][1]) != _shape(pair[1])):
            yield batch
            batch = []
        batch.append(pair)
    if batch:
        yield batch


def _shape(given: Input) -> tuple[object, ...]:
    """What inputs of one call share."""
    return (given.geometry, *(tuple(one.shape) for one in given.references))


def chunks(texts: Iterator[Words], size: int) -> Iterator[tuple[int, list[Words]]]:
    """So many texts at a time, each time with the place of the first."""
    start = 0
    while chunk := list(islice(texts, size)):
        yield start, chunk
        start += len(chunk)


def longest_first(
    encoder: Encoder, origins: Origins, texts: Iterator[Words], places: NDArray[np.int64]
) -> Iterator[tuple[Origin, Input]]:
    """What an encoder is given of the texts at these ascending places, the longest of many first."""
    wanted = iter(places.tolist())
    place = next(wanted)
    chosen: list[Words] = []
    for number, words in enumerate(texts):
        if number == place:
            chosen.append(words)
            place = next(wanted, -1)
        if len(chosen) == SORTED or (place < 0 and chosen):
            # Neighbours of one length are padded least, and the batch that needs most memory comes first.
            chosen.sort(key=lambda one: -sum(map(len, (one.caption, *one.read_by(encoder).values()))))
            yield from ((origins.caption(encoder, one), one.input(encoder)) for one in chosen)
            chosen = []
        if place < 0:
            return
