"""The arithmetic of sizes: what each picture is resized and cropped to, for a whole data set at once.

There is one implementation, on numpy columns; one picture is a column of length one. Edges are whole numbers and ratios
of edges are compared as products of whole numbers, so a picture's size never depends on how a float was rounded.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from st.data.dataset import edge, pixels
from st.data.geometry import Fit, Geometry
from st.data.media.header import MAX_PIXELS
from st.data.shape.lengths import lengths

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from st.data.dataset import DatasetOptions
    from st.data.shape.rule import GeometryRule

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float64]
    Draw = Callable[[str, slice], NDArray[np.uint64]]
    _DrawHere = Callable[[str], NDArray[np.uint64]]

KEPT, TOO_SMALL, TOO_FEW_PIXELS, WRONG_ASPECT, TOO_SHORT, TOO_LONG, TOO_NARROW = range(7)
"""Why a sample is left out."""

_ROWS = 65536
"""Rows that are worked on together: the arithmetic's own arrays then stay in the processor's cache."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What there is, one row per sample: columns (N,). height and width in pixels, after orientation; 0 for sounds."""

    width: NDArray[np.integer[Any]]
    height: NDArray[np.integer[Any]]
    frames: NDArray[np.integer[Any]]
    seconds: Floats
    fps: Floats

    def __len__(self) -> int:
        return len(self.width)

    def rows(self, rows: slice) -> Sizes:
        return Sizes(self.width[rows], self.height[rows], self.frames[rows], self.seconds[rows], self.fps[rows])


@dataclass(frozen=True, slots=True)
class Fits:
    """What samples become, one row each: columns (N,). ``reason`` is KEPT or why the sample is left out.

    start, rate: of windows in clips and sounds, as ``Fit`` has them.
    """

    width: NDArray[np.int32]
    height: NDArray[np.int32]
    frames: NDArray[np.int32]
    seconds: NDArray[np.float32]
    resized_width: NDArray[np.int32]
    resized_height: NDArray[np.int32]
    top: NDArray[np.int32]
    left: NDArray[np.int32]
    start: NDArray[np.float64]
    rate: NDArray[np.float64]
    reason: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.width)

    @classmethod
    def empty(cls, rows: int) -> Fits:
        kinds = {"seconds": np.float32, "start": np.float64, "rate": np.float64, "reason": np.int8}
        return cls(**{field.name: np.zeros(rows, kinds.get(field.name, np.int32)) for field in fields(cls)})

    def at(self, row: int) -> Fit:
        geometry = Geometry(
            int(self.height[row]), int(self.width[row]), int(self.frames[row]), float(self.seconds[row])
        )
        return Fit(
            geometry,
            resized=(int(self.resized_height[row]), int(self.resized_width[row])),
            crop=(int(self.top[row]), int(self.left[row])),
            aspect=aspect_of(geometry),
            start=float(self.start[row]),
            rate=float(self.rate[row]),
        )

    def take(self, rows: NDArray[Any]) -> Fits:
        return Fits(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def aspect_of(geometry: Geometry) -> float:
    """A bucket's label: width / height to two decimals, ties to even; 0 for a sound."""
    return (
        int(_hundredths(np.array([geometry.width]), np.array([geometry.height]))[0]) / 100 if geometry.height else 0.0
    )


def fit(sizes: Sizes, options: DatasetOptions, rule: GeometryRule, draw: Draw) -> Fits:
    """What each picture is resized and cropped to.

    The target is a function of the picture's aspect to two decimals and of the options alone, so pictures of one bucket
    share one size whatever else is in the data set. The resized picture is the smallest of the original aspect that
    covers the target (or ``downsample_to``). draw(name, rows): 64 random bits for each of these rows, the same for the
    same sample. Raises StError where ``align`` does not suit the rule.
    """
    made = Fits.empty(len(sizes))
    for start in range(0, len(sizes), _ROWS):
        rows = slice(start, start + _ROWS)
        part = _fit_rows(sizes.rows(rows), options, rule, partial(_draw_rows, draw, rows))
        for field in fields(Fits):
            # A column of zeros (of windows, where there are only pictures) takes no memory until it is written to.
            if (column := getattr(part, field.name)).any():
                getattr(made, field.name)[rows] = column
    return made


def _draw_rows(draw: Draw, rows: slice, name: str) -> NDArray[np.uint64]:
    return draw(name, rows)


def _fit_rows(sizes: Sizes, options: DatasetOptions, rule: GeometryRule, draw: _DrawHere) -> Fits:
    width, height = sizes.width.astype(np.int64), sizes.height.astype(np.int64)
    visual = height > 0
    safe_width, safe_height = np.where(visual, width, 1), np.where(visual, height, 1)
    align = rule.alignment(options.align)
    allowed = _allowed(options)

    aspect, none_allowed = _aspect(safe_width, safe_height, options, align, draw)
    target_width, target_height = targets(aspect, options.resolution, options, align)
    target_width, target_height = shortened(target_width, target_height, rule.max_edge, align)
    target_width, target_height = limited(target_width, target_height, rule.max_pixels, align)

    over_width, over_height = _downsampled(safe_width, safe_height, target_width, target_height, options)
    resized_width, resized_height = covering(safe_width, safe_height, over_width, over_height)
    assert (resized_width >= target_width).all() and (resized_height >= target_height).all()
    top, left = _crops(resized_width - target_width, resized_height - target_height, options, draw)

    length = lengths(sizes, options, rule)
    reason = np.zeros(len(sizes), np.int8)
    reason[length.short] = TOO_SHORT
    reason[length.long] = TOO_LONG
    reason[visual & _wrong_aspect(target_width, target_height, options)] = WRONG_ASPECT
    if allowed is not None:
        enlarged = (target_width > safe_width * allowed) | (target_height > safe_height * allowed)
        reason[visual & (enlarged | none_allowed)] = TOO_FEW_PIXELS
    # One row of a picture a thousand times as long as wide would be enlarged to gigabytes.
    reason[visual & (np.maximum(resized_width * resized_height, target_width * target_height) > MAX_PIXELS)] = (
        TOO_NARROW
    )
    reason[visual & _too_small(safe_width, safe_height, options)] = TOO_SMALL
    whole = {
        "width": target_width,
        "height": target_height,
        "resized_width": resized_width,
        "resized_height": resized_height,
        "top": top,
        "left": left,
    }
    columns = {name: np.where(visual, column, 0).astype(np.int32) for name, column in whole.items()}
    return Fits(
        frames=length.frames.astype(np.int32),
        seconds=length.seconds.astype(np.float32),
        start=np.zeros(len(sizes)),
        rate=length.rate,
        reason=reason,
        **columns,
    )


def rounded(edges: Floats, align: int) -> Ints:
    """The nearest whole multiples of ``align``, ties to the even multiple, at least one."""
    return np.maximum(np.rint(edges / align), 1).astype(np.int64) * align


def targets(aspect: Floats, size: float, options: DatasetOptions, align: int) -> tuple[Ints, Ints]:
    """Width and height of aspect ``aspect`` at ``size``, in the unit of the options."""
    length = edge(size, options.resolution_type)
    square = int(rounded(np.array([float(int(length))]), align)[0])
    if options.resolution_type == "pixel":
        portrait = aspect < 1
        width = rounded(np.where(portrait, length, np.floor(length * aspect)), align)
        height = rounded(np.where(portrait, np.floor(length / aspect), length), align)
    else:
        width = rounded(square * np.sqrt(aspect), align)
        height = rounded(square / np.sqrt(aspect), align)
    is_square = _hundredths(width, height) == 100
    return np.where(is_square, square, width), np.where(is_square, square, height)


def covering(width: Ints, height: Ints, target_width: Ints, target_height: Ints) -> tuple[Ints, Ints]:
    """The smallest size of the original aspect that covers the target; the looser edge is rounded down.

    In whole numbers, rounding down still covers: the tighter edge is the target's own, and the other one is at least
    the target's before it is rounded to a whole number, so after it as well.
    """
    by_width = target_width * height >= target_height * width
    resized_width = np.where(by_width, target_width, target_height * width // height)
    resized_height = np.where(by_width, target_width * height // width, target_height)
    return resized_width, resized_height


def shortened(width: Ints, height: Ints, longest: int, align: int) -> tuple[Ints, Ints]:
    """Sizes whose edges are at most ``longest`` pixels (0: no limit), scaled down together, so that nothing is cut."""
    too_long = np.maximum(width, height) > longest
    if not longest or not too_long.any():
        return width, height
    scale, most = longest / np.maximum(width, height), longest // align * align
    width, height = (
        np.where(too_long, np.minimum(rounded(np.asarray(edge * scale, np.float64), align), most), edge)
        for edge in (width, height)
    )
    return width, height


def limited(width: Ints, height: Ints, most: int, align: int) -> tuple[Ints, Ints]:
    """Sizes within ``most`` pixels (0: no limit): scaled down together, then the longer edge gives way."""
    too_large = width * height > most
    if not most or not too_large.any():
        return width, height
    scale = np.sqrt(most / (width * height))
    width = np.where(too_large, rounded(np.asarray(width * scale, np.float64), align), width)
    height = np.where(too_large, rounded(np.asarray(height * scale, np.float64), align), height)
    while (too_large := (width * height > most) & (np.maximum(width, height) > align)).any():
        width, height = (
            np.where(too_large & (width >= height), width - align, width),
            np.where(too_large & (width < height), height - align, height),
        )
    return width, height


def _allowed(options: DatasetOptions) -> float | None:
    return None if options.max_upscale is None else 1.0 + options.max_upscale


def _hundredths(width: NDArray[Any], height: NDArray[Any]) -> Ints:
    quotient, rest = np.divmod(100 * width.astype(np.int64), height.astype(np.int64))
    up = (2 * rest > height) | ((2 * rest == height) & (quotient % 2 == 1))
    return np.asarray(quotient + up, np.int64)


def _aspect(
    width: Ints, height: Ints, options: DatasetOptions, align: int, draw: _DrawHere
) -> tuple[Floats, NDArray[np.bool_]]:
    """Aspect of each target, and which pictures are too small for every crop aspect there is."""
    none: NDArray[np.bool_] = np.zeros(len(width), np.bool_)
    own = np.maximum(_hundredths(width, height), 1) / 100
    if not options.crop or options.crop_aspect == "preserve":
        return own, none
    if options.crop_aspect == "square":
        return np.ones(len(width)), none
    choices = options.aspects
    possible = np.ones((len(choices), len(width)), np.bool_)
    for column, choice in enumerate(choices):
        if (allowed := _allowed(options)) is not None:
            w, h = targets(np.array([choice.aspect]), options.resolution, options, align)
            possible[column] = (w <= width * allowed) & (h <= height * allowed)
    none = ~np.any(possible, axis=0)
    values = np.array([choice.aspect for choice in choices])
    if options.crop_aspect == "closest":
        distance = np.where(possible, np.abs(values[:, None] - own), np.inf)
        return values[distance.argmin(axis=0)], none
    weights = np.where(possible, np.array([choice.weight for choice in choices])[:, None], 0.0).cumsum(axis=0)
    point = (draw("crop aspect") >> np.uint64(11)).astype(np.float64) / 2**53 * weights[-1]
    return values[np.minimum((weights <= point).sum(axis=0), len(choices) - 1)], none


def _downsampled(
    width: Ints, height: Ints, target_width: Ints, target_height: Ints, options: DatasetOptions
) -> tuple[Ints, Ints]:
    """What the resized picture covers: the target, or more where a large picture is only shrunk to downsample_to."""
    if not options.maximum_size:
        return target_width, target_height
    if options.resolution_type == "pixel":
        large = np.minimum(width, height) > options.maximum_size
    else:
        large = width * height > pixels(options.maximum_size, options.resolution_type)
    own = np.maximum(_hundredths(width, height), 1) / 100
    down_width, down_height = targets(own, options.downsample_to, options, align=1)
    return (
        np.where(large, np.maximum(down_width, target_width), target_width),
        np.where(large, np.maximum(down_height, target_height), target_height),
    )


def _crops(spare_width: Ints, spare_height: Ints, options: DatasetOptions, draw: _DrawHere) -> tuple[Ints, Ints]:
    if not options.crop or options.crop_style == "center":
        return spare_height // 2, spare_width // 2
    if options.crop_style == "corner":
        return np.zeros_like(spare_height), np.zeros_like(spare_width)
    bits, half = draw("crop"), np.uint64(32)
    low, high = bits & np.uint64(0xFFFFFFFF), bits >> half
    top = (low * (spare_height + 1).astype(np.uint64)) >> half
    left = (high * (spare_width + 1).astype(np.uint64)) >> half
    return top.astype(np.int64), left.astype(np.int64)


def _wrong_aspect(width: Ints, height: Ints, options: DatasetOptions) -> NDArray[np.bool_]:
    aspect = _hundredths(width, height) / 100
    high = options.max_aspect or np.inf
    return np.asarray((aspect < options.min_aspect) | (aspect > high), np.bool_)


def _too_small(width: Ints, height: Ints, options: DatasetOptions) -> NDArray[np.bool_]:
    minimum = options.minimum_size
    if options.resolution_type == "pixel":
        return np.asarray(np.minimum(width, height) < minimum, np.bool_)
    small = width * height < pixels(minimum, options.resolution_type)
    if options.crop and options.crop_aspect == "square":
        small |= np.minimum(width, height) < int(edge(minimum, options.resolution_type))
    return np.asarray(small, np.bool_)
