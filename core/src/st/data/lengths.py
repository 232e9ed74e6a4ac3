"""How long a clip's or a sound's window is, and where in it: for a whole data set at once, on numpy columns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from st.errors import DataUnusable

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from st.data.dataset import DatasetOptions
    from st.data.fitting import Sizes
    from st.data.index import Index
    from st.data.rule import GeometryRule
    from st.data.sample import Kind

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float64]
    Bits = Callable[[int, list[str]], NDArray[np.uint64]]

READ_BY: dict[str, tuple[Kind, ...]] = {
    **dict.fromkeys(("num_frames", "min_frames", "max_frames", "frame_interval", "fps"), ("video",)),
    **dict.fromkeys(("seconds", "min_seconds", "max_seconds", "duration_interval", "keep_silence"), ("audio",)),
    **dict.fromkeys(("window", "windows"), ("video", "audio")),
}
"""Options of lengths, and the kinds of media on which they have an effect."""

TICK = 0.001
"""Seconds by which the windows of sounds may be moved."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Columns (N,). frames: 0 of a sound, and where the model takes none. seconds: 0 of what is no sound. rate: frames
    per second of a window. short, long: left out for its length."""

    frames: Ints
    seconds: Floats
    rate: Floats
    short: NDArray[np.bool_]
    long: NDArray[np.bool_]


def lengths(sizes: Sizes, options: DatasetOptions, rule: GeometryRule) -> Lengths:
    """The length that each sample's window gets. What is shorter than the least is short, and is not made up for."""
    sound, rate = sizes.height == 0, _rate(sizes, options)
    frames, few, many = _frames(sizes, rate, options, rule)
    seconds, brief, lasting = _seconds(sizes.seconds.astype(np.float64), options)
    return Lengths(
        frames=np.where(sound, 0, frames),
        seconds=np.where(sound, seconds, 0.0),
        rate=np.where(sound, 0.0, rate),
        short=np.where(sound, brief, few),
        long=np.where(sound, lasting, many),
    )


def _rate(sizes: Sizes, options: DatasetOptions) -> Floats:
    own = sizes.fps.astype(np.float64)
    return np.where(own > 0, options.fps, 0.0) if options.fps else own


def _available(sizes: Sizes, rate: Floats) -> Ints:
    """Frames of each clip at ``rate``: those whose times lie before its end."""
    own, frames = sizes.fps.astype(np.float64), sizes.frames.astype(np.int64)
    stretch = np.divide(rate, own, out=np.ones_like(own), where=own > 0)
    # The tolerance: of a rate that was rounded to float32, 48 frames must not become 49.
    return np.where(stretch == 1, frames, np.ceil(frames * stretch - 1e-3)).astype(np.int64)


def _frames(
    sizes: Sizes, rate: Floats, options: DatasetOptions, rule: GeometryRule
) -> tuple[Ints, NDArray[np.bool_], NDArray[np.bool_]]:
    moves = (sizes.fps > 0) | (sizes.frames > 1)
    available = _available(sizes, rate)
    frames = np.minimum(available, options.num_frames) if options.num_frames else available
    if options.frame_interval > 1:
        over = (frames - rule.frames_remainder) % options.frame_interval
        # A clip that is shorter than one step keeps its own length, as a sound does.
        frames = np.where(moves & (frames - over > rule.frames_remainder), frames - over, frames)
    frames = np.maximum(0, frames - (frames - rule.frames_remainder) % rule.frames_modulus)
    least = options.min_frames or (rule.frames(options.num_frames) if options.num_frames else 0)
    short = (frames == 0) | (moves & (available < least))
    return frames, short, moves & (available > (options.max_frames or np.inf))


def _seconds(own: Floats, options: DatasetOptions) -> tuple[Floats, NDArray[np.bool_], NDArray[np.bool_]]:
    whole = np.floor(own / options.duration_interval) * options.duration_interval
    seconds = np.where(whole > 0, whole, own)
    if options.seconds:
        seconds = np.where(own >= options.seconds, options.seconds, np.minimum(seconds, options.seconds))
    short = own < (options.min_seconds or options.seconds)
    return seconds, short, own > (options.max_seconds or np.inf)


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
    available = _available(sizes, fits.rate)
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
    from st.data.index import KINDS

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
