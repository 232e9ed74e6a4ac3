"""Where in a clip or a sound its windows are, for a whole data set at once, on numpy columns."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from st.data.shape.lengths import READ_BY, TICK, frames_at
from st.errors import DataUnusable

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from st.data.dataset import DatasetOptions
    from st.data.source.index import Index

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float64]
    Bits = Callable[[int, list[str]], NDArray[np.uint64]]


def spread(index: Index, options: DatasetOptions, bits: Bits) -> Index:
    """The index with the place of each window, and a row for each where a clip or sound gives several.

    bits(number, keys): 64 random bits for window ``number`` of each key, the same for the same key and number. A sample
    gives fewer windows than were asked for where they would be one and the same, or would overlap with window "start"
    or "end".
    """
    fits = index.fits
    assert fits is not None, "windows are placed once sizes are known"
    if not ((fits.rate > 0) | (fits.seconds > 0)).any():
        return index
    spare, length = _spare(index)
    most = 1 + (spare // np.maximum(length, 1) if options.window in ("start", "end") else spare)
    counts = np.minimum(options.windows, most)
    rows = np.repeat(np.arange(len(index)), counts)
    number = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    first = _places(options, number, spare[rows], length[rows], counts[rows])
    if options.window == "random":
        first = _drawn(index, rows, number, spare[rows] + 1, counts[rows], bits=bits)
    spread_out = index.take(rows)
    assert spread_out.fits is not None
    rate = spread_out.fits.rate
    start = np.where(rate > 0, first / np.maximum(rate, 1e-9), first * TICK)
    return spread_out.with_fits(replace(spread_out.fits, start=start), spread_out.recipe)


def _spare(index: Index) -> tuple[Ints, Ints]:
    """By how much each window can be moved, and how long it is: in frames of a clip, in TICKs of a sound."""
    fits, sizes = index.fits, index.sizes()
    assert fits is not None
    clip = fits.rate > 0
    seconds = fits.seconds.astype(np.float64)
    ticks = np.floor((sizes.seconds.astype(np.float64) - seconds) / TICK)
    available = frames_at(sizes, fits.rate)
    spare = np.where(clip, available - fits.frames, np.where(seconds > 0, ticks, 0))
    length = np.where(clip, fits.frames, np.ceil(seconds / TICK))
    return np.maximum(spare, 0).astype(np.int64), length.astype(np.int64)


def _places(options: DatasetOptions, number: Ints, spare: Ints, length: Ints, count: Ints) -> Ints:
    if options.window == "start":
        return number * length
    if options.window == "end":
        return spare - number * length
    return (2 * number + 1) * spare // (2 * count)


def _drawn(index: Index, rows: Ints, number: Ints, places: Ints, counts: Ints, *, bits: Bits) -> Ints:
    """One place out of each of ``counts`` equal parts of a clip, so that its windows are spread over it and differ."""
    low, high = number * places // counts, (number + 1) * places // counts
    first = np.zeros(len(rows), np.int64)
    for turn in range(int(number.max(initial=-1)) + 1):
        mine = number == turn
        drawn = bits(turn, [index.key(int(row)) for row in rows[mine]]) >> np.uint64(32)
        first[mine] = low[mine] + ((drawn * (high - low)[mine].astype(np.uint64)) >> np.uint64(32)).astype(np.int64)
    return first


def check_effect(name: str, options: DatasetOptions, index: Index) -> None:
    """Raise DataUnusable for an option of lengths where the data set holds nothing that it says something about."""
    from st.data.source.index import KINDS

    if not len(index):
        return
    there = {KINDS[kind] for kind in np.unique(index.table["kind"].to_numpy())}
    for option, kinds in READ_BY.items():
        if option in options.model_fields_set and not there & set(kinds):
            nouns = {"image": "pictures", "video": "clips", "audio": "sounds"}
            raise DataUnusable(
                f"data set {name!r}: {option} has no effect.",
                why=f"It is about {' and '.join(nouns[kind] for kind in kinds)}, and these are "
                f"{' and '.join(nouns[kind] for kind in sorted(there))}.",
                fix=f"Take {option} out, or say what the files are: media = {kinds[0]!r}.",
            )


def slower(index: Index, options: DatasetOptions) -> int:
    """How many clips have fewer frames per second than they are brought to: some of their frames are shown again."""
    own = index.sizes().fps
    return int(((own > 0) & (own < options.fps * (1 - 1e-3))).sum()) if options.fps else 0
