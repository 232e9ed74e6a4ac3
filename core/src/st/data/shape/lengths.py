"""How long a clip's or a sound's window is, and where in it: for a whole data set at once, on numpy columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from st.data.dataset import DatasetOptions
    from st.data.sample import Kind
    from st.data.shape.fitting import Sizes
    from st.data.shape.rule import GeometryRule

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


def frames_at(sizes: Sizes, rate: Floats) -> Ints:
    """Frames of each clip at ``rate``: those whose times lie before its end."""
    own, frames = sizes.fps.astype(np.float64), sizes.frames.astype(np.int64)
    stretch = np.divide(rate, own, out=np.ones_like(own), where=own > 0)
    # The tolerance: of a rate that was rounded to float32, 48 frames must not become 49.
    return np.where(stretch == 1, frames, np.ceil(frames * stretch - 1e-3)).astype(np.int64)


def _frames(
    sizes: Sizes, rate: Floats, options: DatasetOptions, rule: GeometryRule
) -> tuple[Ints, NDArray[np.bool_], NDArray[np.bool_]]:
    moves = (sizes.fps > 0) | (sizes.frames > 1)
    available = frames_at(sizes, rate)
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
