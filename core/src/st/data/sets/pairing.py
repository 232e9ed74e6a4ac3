"""Pairing: the references that belong to the samples of a data set, row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from st.data.sample import REFERENCE
from st.data.shape.buckets import Bucket
from st.data.shape.fitting import Fits, fit
from st.data.source.captions import CaptionRecipe
from st.data.source.index import Index
from st.errors import DataUnusable
from st.spelling import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from st.data.backend import DataBackend
    from st.data.dataset import DatasetConfig
    from st.data.sets.prepare import PreparedSet
    from st.data.shape.rule import GeometryRule

    Draw = Callable[[str, slice], NDArray[np.uint64]]
    Dropped = Callable[[str, str], None]

_STEM = r"\.[^./]*$"
_STRETCH = 0.01
"""How far the aspect of a strict reference may be from its sample's, beside what a pixel of rounding does."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A data set with role "reference": what its backend lists, before it is known which samples need it."""

    config: DatasetConfig
    backend: DataBackend
    index: Index

    @property
    def name(self) -> str:
        return self.config.name


def check_names(datasets: Sequence[DatasetConfig]) -> None:
    """Raise DataUnusable for a reference set that does not exist, and for one that no data set names."""
    roles = {one.name: one.options.role for one in datasets}
    references = [name for name, role in roles.items() if role == REFERENCE]
    named: set[str] = set()
    for one in datasets:
        for name in one.options.reference_sets:
            named.add(name)
            if roles.get(name) == REFERENCE:
                continue
            if name in roles:
                raise DataUnusable(
                    f"data set {one.name!r}: its reference set {name!r} is there to be trained on.",
                    fix=f"Set role = 'reference' at the [[dataset]] named {name!r}.",
                )
            guess = did_you_mean(name, references)
            raise DataUnusable(
                " ".join(filter(None, (f"data set {one.name!r}: no data set is named {name!r}.", guess))),
                fix=f"Add a [[dataset]] with name = {name!r} and role = 'reference'.",
            )
    for name in references:
        if name not in named:
            raise DataUnusable(
                f"data set {name!r} has role = 'reference', and no data set names it.",
                fix=f"Write reference_sets = [{name!r}] at the data set whose samples it belongs to.",
            )


def pair(one: PreparedSet, listed: Sequence[Listed], rule: GeometryRule, draw: Draw, dropped: Dropped) -> PreparedSet:
    """``one`` with its references: of each reference set, and of a companion folder or column, one for each sample.

    Each becomes a PreparedSet whose row i belongs to row i of ``one``. Strict references have their sample's fit; loose
    ones that of their own set's options, and buckets are split so that the references of a bucket have one size too.
    dropped(key, reason) is told of samples left out by ``missing_reference = "skip"``. Raises DataUnusable naming the
    samples that lack one.
    """
    found = [_match(one, other) for other in listed]
    one, kept = _without_unpaired(one, listed, found, dropped)
    partners = [_partner(one, other, rows[kept], rule, draw) for other, rows in zip(listed, found, strict=True)]
    companions = _companions(one)
    partners = [*([companions] if companions else []), *partners]
    for other in partners:
        one = replace(one, buckets=tuple(part for bucket in one.buckets for part in _split(bucket, other)))
    return replace(one, references=tuple(_bucketed(one, other) for other in partners))


def _match(one: PreparedSet, other: Listed) -> NDArray[np.int64]:
    """For each sample of ``one`` the row of its reference, (N,); -1 where there is none."""
    stems = [
        pc.replace_substring_regex(side.table["key"], _STEM, "").combine_chunks() for side in (one.index, other.index)
    ]
    counts = pc.value_counts(stems[1])
    twice = counts.filter(pc.greater(counts.field("counts"), 1)) if len(counts) else counts
    if len(twice):
        stem = twice.field("values")[0].as_py()
        keys = other.index.table.filter(pc.equal(stems[1], stem))["key"].to_pylist()
        raise DataUnusable(
            f"reference set {other.name!r} has several files for one sample: {', '.join(map(repr, keys[:4]))}.",
            fix="Keep one file of each path.",
        )
    rows = pc.fill_null(pc.index_in(stems[0], value_set=stems[1]), -1)
    return np.asarray(rows.to_numpy(zero_copy_only=False), np.int64)


def _stems(index: Index) -> pa.Array:
    return pc.replace_substring_regex(index.table["key"], _STEM, "").combine_chunks()


def _without_unpaired(
    one: PreparedSet, listed: Sequence[Listed], found: Sequence[NDArray[np.int64]], dropped: Dropped
) -> tuple[PreparedSet, NDArray[np.int64]]:
    """``one`` without the samples that lack a reference, and the rows that were kept."""
    lacking = np.zeros(len(one.index), np.bool_)
    for other, rows in zip(listed, found, strict=True):
        missing = np.flatnonzero(rows < 0)
        if len(missing) and one.config.options.missing_reference == "error":
            keys = ", ".join(repr(one.index.key(int(row))) for row in missing[:5])
            raise DataUnusable(
                f"data set {one.name!r}: {len(missing)} of {len(one.index)} samples have no reference in "
                f"{other.name!r}: {keys}{' ...' if len(missing) > 5 else ''}",
                why=f"Each needs a file of the same path, with any extension, among the {len(other.index)} in "
                f"{other.config.options.url!r}.",
                fix="Add them, or set missing_reference to 'skip'.",
            )
        for row in missing[~lacking[missing]]:
            dropped(one.index.key(int(row)), f"no reference in {other.name!r}")
        lacking[missing] = True
    kept = np.flatnonzero(~lacking)
    if len(kept) == len(one.index):
        return one, kept
    if not len(kept):
        raise DataUnusable(f"data set {one.name!r}: none of its {len(one.index)} samples has its references.")
    return replace(one, index=one.index.take(kept), buckets=_renumbered(one.buckets, kept, len(one.index))), kept


def _renumbered(buckets: Sequence[Bucket], kept: NDArray[np.int64], total: int) -> tuple[Bucket, ...]:
    """The buckets when only these rows are left."""
    place = np.full(total, -1, np.int64)
    place[kept] = np.arange(len(kept))
    left = (replace(bucket, rows=place[bucket.rows][place[bucket.rows] >= 0]) for bucket in buckets)
    return tuple(bucket for bucket in left if len(bucket.rows))


def _partner(one: PreparedSet, other: Listed, rows: NDArray[np.int64], rule: GeometryRule, draw: Draw) -> PreparedSet:
    """The references of all samples in one set, in the samples' order, with what each is resized and cropped to."""
    index, options = other.index.take(rows), other.config.options
    if options.pairing == "strict":
        assert one.index.fits is not None
        _check_aspects(one, other, index)
        fits = one.index.fits
    else:
        fits = fit(index.sizes(), options, rule, draw)
        _check_fits(other, index, fits)
    return _as_set(one, other.name, other.backend, index, fits)


def _companions(one: PreparedSet) -> PreparedSet | None:
    """The references that the backend itself has for the samples: of a folder beside them, or of a column."""
    extras = one.index.table["extras"]
    if extras.null_count == len(extras):
        return None
    keys = [one.index.extras(row).get(REFERENCE) for row in range(len(one.index))]
    lacking = [row for row, key in enumerate(keys) if key is None]
    if len(lacking) == len(keys):
        return None
    if lacking:
        raise DataUnusable(
            f"data set {one.name!r}: {len(lacking)} of {len(keys)} samples have no reference, such as "
            f"{one.index.key(lacking[0])!r}",
            fix="Add them, or set missing_companion to 'skip'.",
        )
    columns = {"key": pa.array(keys, pa.large_string())}
    for name in ("width", "height"):
        columns[name] = one.index.table[name].combine_chunks()
    assert one.index.fits is not None
    return _as_set(one, "", one.backend, Index.from_table(pa.table(columns)), one.index.fits)


def _as_set(one: PreparedSet, name: str, backend: DataBackend, index: Index, fits: Fits) -> PreparedSet:
    """name: of the reference set; "" for companions."""
    options = one.config.options.model_copy(update={"name": f"{one.name}/{name or REFERENCE}"})
    # Sizes and times of companions are not known, so that a digest of an earlier run might be of other bytes.
    memory = replace(one.memory, name=f"{one.memory.name}-{name}") if one.memory and name else None
    made = replace(
        one,
        config=replace(one.config, options=options),
        backend=backend,
        index=index.with_fits(fits, CaptionRecipe()),
        dropped={},
        memory=memory,
    )
    if memory and (digests := memory.load("digests")) is not None:
        made.index.recall(digests)
    return made


def _check_aspects(one: PreparedSet, other: Listed, index: Index) -> None:
    own, theirs = one.index.sizes(), index.sizes()
    known = (own.height > 0) & (theirs.height > 0)
    ratio = (theirs.width / np.maximum(theirs.height, 1)) / (np.maximum(own.width, 1) / np.maximum(own.height, 1))
    allowed = _STRETCH + 1.0 / np.maximum(np.minimum(theirs.width, theirs.height), 1)
    wrong = np.flatnonzero(known & (np.abs(ratio - 1) > allowed))
    if len(wrong):
        row = int(wrong[0])
        raise DataUnusable(
            f"reference set {other.name!r}: {len(wrong)} of {len(index)} have another aspect than their sample: "
            f"{index.key(row)!r} with {theirs.width[row]}x{theirs.height[row]} for {own.width[row]}x{own.height[row]}",
            why="With pairing = 'strict' a reference is resized and cropped as its sample is, and would be distorted.",
            fix=f"Crop them alike, or set pairing = 'loose' at data set {other.name!r}.",
        )


def _check_fits(other: Listed, index: Index, fits: Fits) -> None:
    out = np.flatnonzero(fits.reason)
    if len(out):
        raise DataUnusable(
            f"reference set {other.name!r}: its options leave out {len(out)} references that samples need, such as "
            f"{index.key(int(out[0]))!r}",
            fix="Change minimum_size, max_upscale, min_aspect or max_aspect there.",
        )


def _split(bucket: Bucket, other: PreparedSet) -> list[Bucket]:
    """The bucket's samples by the size of their references."""
    fits = other.index.fits
    assert fits is not None
    columns = np.stack([getattr(fits, name)[bucket.rows].astype(np.float64) for name in _GEOMETRY], axis=1)
    _, place = np.unique(columns, axis=0, return_inverse=True)
    place = place.reshape(-1)
    parts = [bucket.rows[place == number] for number in range(int(place.max()) + 1)]
    return [
        replace(bucket, rows=rows, references=(*bucket.references, other.index.fit(int(rows[0])).geometry))
        for rows in parts
    ]


def _bucketed(one: PreparedSet, other: PreparedSet) -> PreparedSet:
    """``other`` with the buckets of ``one``, at its own sizes."""
    buckets = []
    for bucket in one.buckets:
        geometry = other.index.fit(int(bucket.rows[0])).geometry
        buckets.append(replace(bucket, geometry=geometry, references=()))
    return replace(other, buckets=tuple(buckets))


_GEOMETRY = ("height", "width", "frames", "seconds")


def unused(one: PreparedSet, listed: Sequence[Listed]) -> Mapping[str, int]:
    """How many references of each set belong to no sample of this data set."""
    left: dict[str, int] = {}
    partners = one.references[len(one.references) - len(listed) :]
    for other, partner in zip(listed, partners, strict=True):
        left[other.name] = len(other.index) - len(partner.index)
    return left
