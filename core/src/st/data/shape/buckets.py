"""Buckets: samples of one geometry, and whether they fill a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from st.data.geometry import Geometry
from st.data.shape.fitting import aspect_of
from st.errors import DataUnusable
from st.spelling import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from st.data.dataset import DatasetOptions
    from st.data.shape.fitting import Fits


@dataclass(frozen=True, slots=True)
class Bucket:
    """The samples of a data set that share one geometry, and whose references do.

    aspect: width / height to two decimals. rows: rows of the index, (N,) int64, ascending; a sample that its folder
    shows several times in a pass is there as often. The loader permutes a copy. references: the geometry of each
    reference of a sample, in the order of the data set's.
    """

    geometry: Geometry
    aspect: float
    rows: NDArray[np.int64]
    references: tuple[Geometry, ...] = ()

    @property
    def label(self) -> str:
        """What the bucket is called between runs; no other bucket of its data set has the same."""
        return "+".join(one.label for one in (self.geometry, *self.references))

    def __len__(self) -> int:
        return len(self.rows)


def assign(fits: Fits, passes: NDArray[np.int32]) -> tuple[Bucket, ...]:
    """Group samples by the size they get, smallest first.

    A bucket is that size itself, so its members share it by definition: a size is a function of a picture's aspect and
    of the options, and needs no table that is filled in the order in which pictures were met. passes: how often each
    sample is seen in one pass, (N,).
    """
    if not len(fits):
        return ()
    columns = (fits.height, fits.width, fits.frames, fits.seconds)
    order = np.lexsort(columns[::-1])
    ordered = [column[order] for column in columns]
    changed = np.logical_or.reduce([column[1:] != column[:-1] for column in ordered])
    starts = np.flatnonzero(np.concatenate(([True], changed)))
    buckets = []
    for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
        height, width, frames, seconds = (column[start].item() for column in ordered)
        geometry = Geometry(height, width, frames, seconds)
        rows = np.sort(order[start:stop]).astype(np.int64)
        buckets.append(Bucket(geometry, aspect_of(geometry), np.repeat(rows, passes[rows])))
    return tuple(buckets)


@dataclass(frozen=True, slots=True)
class BatchShape:
    """How many samples an optimizer step takes: ``batch`` per rank and microbatch."""

    batch: int = 1
    ranks: int = 1
    accumulate: int = 1

    @property
    def unit(self) -> int:
        """Samples that must come from one bucket: one microbatch of every rank."""
        return self.batch * self.ranks

    @property
    def effective(self) -> int:
        return self.unit * self.accumulate


def check_batches(name: str, options: DatasetOptions, buckets: Sequence[Bucket], shape: BatchShape) -> None:
    """Raise DataUnusable where a bucket has fewer samples in a pass than one microbatch of all ranks takes.

    Accumulated microbatches may come from different buckets and are not counted.
    """
    needed = shape.unit
    short = [bucket for bucket in buckets if len(bucket) * (options.repeats + 1) < needed]
    set_by_user = "repeats" in options.model_fields_set
    if not short or (options.oversubscribe and not set_by_user):
        return
    smallest = min(len(bucket) for bucket in short)
    enough = -(-needed // smallest) - 1
    listed = "\n".join(
        f"    {bucket.geometry!s:>12}  aspect {bucket.aspect:<5}  {len(bucket)} samples" for bucket in short[:20]
    )
    rest = f"\n    and {len(short) - 20} more" if len(short) > 20 else ""
    plural = "buckets have" if len(short) > 1 else "bucket has"
    raise DataUnusable(
        f"data set {name!r}: {len(short)} {plural} too few samples to fill a batch.\n{listed}{rest}",
        why=(
            f"A batch takes {needed} samples of one bucket: batch = {shape.batch} on {shape.ranks} "
            f"{'ranks' if shape.ranks > 1 else 'rank'} (accumulate = {shape.accumulate}, {shape.effective} in all); "
            f"repeats = {options.repeats}."
        ),
        fix=_remedies(options, enough),
    )


def _remedies(options: DatasetOptions, enough: int) -> str:
    ways = [f"Set repeats = {enough}", "a smaller batch", "fewer ranks"]
    if options.oversubscribe:
        ways.append("or take repeats out: oversubscribe does not change repeats that were set")
    else:
        ways.append("oversubscribe = true to show samples again" + (" (without repeats)" if options.repeats else ""))
    if not options.crop:
        ways.append("or crop = true for fewer shapes")
    return ", ".join(ways) + "."


def in_buckets(samples: int, buckets: Sequence[Bucket]) -> str:
    """``72 samples in 3 buckets``"""
    return f"{counted(samples, 'sample')} in {counted(len(buckets), 'bucket')}"
