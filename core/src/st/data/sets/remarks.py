"""Remarks: what becomes of a data set that its owner may not have meant, said before anything is encoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from st.data.sets.windows import slower

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from st.data.dataset import DatasetOptions
    from st.data.encoder import LatentCodec
    from st.data.sets.prepare import PreparedSet
    from st.data.source.index import Index
    from st.report.report import Report

CUT_MUCH = 0.25
"""Share of a picture that rounding to bucket edges may take without a remark."""

ENLARGED_MUCH = 4.0
"""Times by which an edge may grow without a remark."""

OTHER_RATE = 0.02
"""By how much of the model's frame rate a clip's may differ: 23.976 is 24."""


def remarks(index: Index, options: DatasetOptions) -> Iterator[str]:
    """Sentences about the samples of a data set whose sizes and windows are known."""
    if again := slower(index, options):
        yield f"{again} samples have fewer than {options.fps:g} frames per second: frames of them are shown again"
    cut, enlarged = cut_shares(index), _enlarged(index)
    if not options.crop and (worst := float(cut.max(initial=0.0))) > CUT_MUCH:
        yield (
            f"{int((cut > CUT_MUCH).sum())} samples lose more than {CUT_MUCH:.0%} of their area at the edges, "
            f"{index.key(int(cut.argmax()))!r} {worst:.0%}: their shapes are far from those of the buckets "
            f"(a smaller align has more shapes; min_aspect and max_aspect leave them out)"
        )
    if (worst := float(enlarged.max(initial=0.0))) > ENLARGED_MUCH:
        row = int(enlarged.argmax())
        sizes = index.sizes()
        yield (
            f"{int((enlarged > ENLARGED_MUCH).sum())} samples are enlarged to more than {ENLARGED_MUCH:g} times their "
            f"edges, {index.key(row)!r} of {sizes.width[row]}x{sizes.height[row]} to {worst:.0f} times: they are "
            f"blurred (max_upscale leaves such out)"
        )


def cut_shares(index: Index) -> NDArray[np.float64]:
    """The share of each picture's or frame's area that its crop leaves out, (N,); 0 of sounds."""
    fits = index.fits
    assert fits is not None, "a prepared data set has fits"
    whole = fits.resized_width.astype(np.float64) * fits.resized_height
    kept = fits.width.astype(np.float64) * fits.height
    return 1 - np.divide(kept, whole, out=np.ones_like(kept), where=whole > 0)


def _enlarged(index: Index) -> NDArray[np.float64]:
    fits, sizes = index.fits, index.sizes()
    assert fits is not None, "a prepared data set has fits"
    own = np.maximum(sizes.width, 1).astype(np.float64)
    return np.asarray(fits.resized_width / own, np.float64)


def mask_remarks(one: PreparedSet, levels: Mapping[int, tuple[int, int]]) -> Iterator[str]:
    """Sentences about masks that do nothing. levels: the darkest and brightest value, of 255, of each row's mask."""
    black = [row for row, (_, brightest) in sorted(levels.items()) if brightest == 0]
    white = [row for row, (darkest, _) in levels.items() if darkest == 255]
    if black:
        yield (
            f"{len(black)} masks are black wherever their picture is trained on, such as that of "
            f"{one.index.key(black[0])!r}: nothing is learned from these samples"
        )
    if white and len(white) == len(levels):
        yield f"all {len(white)} masks are white wherever their pictures are trained on: they have no effect"


def report_rates(sets: Iterable[PreparedSet], codec: LatentCodec, report: Report) -> None:
    """Warn of clips whose frames are not as far apart as the model knows them, where no fps is asked for."""
    wanted = codec.frames_per_second
    for one in sets:
        rate = one.index.fits.rate if one.index.fits is not None else np.zeros(0)
        other = (rate > 0) & (np.abs(rate / wanted - 1) > OTHER_RATE)
        if other.any() and not one.config.options.fps:
            row = int(other.argmax())
            report.warn(
                f"data set {one.name!r}: {int(other.sum())} clips have another rate than the {wanted:g} frames per "
                f"second of the model, {one.index.key(row)!r} {rate[row]:g}: the model learns their motion as too "
                f"slow or too fast (set fps = {wanted:g} to bring them to its rate)"
            )
