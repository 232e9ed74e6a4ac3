"""Preparing data sets: from what a backend lists to buckets of samples, with nothing left out unsaid."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from st.data.digest import digest_of_file
from st.data.media.media_reader import reader_of
from st.data.sample import REFERENCE
from st.data.sets.memory import Memory
from st.data.sets.pairing import Listed, check_names, pair, unused
from st.data.sets.remarks import remarks
from st.data.sets.windows import check_effect, spread
from st.data.shape.buckets import Bucket, assign, in_buckets
from st.data.shape.fitting import TOO_FEW_PIXELS, TOO_LONG, TOO_NARROW, TOO_SHORT, TOO_SMALL, WRONG_ASPECT, fit
from st.data.source.captions import CaptionRecipe
from st.data.source.index import Columnar, Index
from st.errors import DataUnusable
from st.randomness import keyed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import BinaryIO

    from numpy.typing import NDArray

    from st.data.backend import DataBackend
    from st.data.dataset import DatasetConfig, DatasetOptions
    from st.data.sample import Sample
    from st.data.shape.fitting import Fits
    from st.data.shape.rule import GeometryRule
    from st.data.store.store import Store
    from st.notes import Notes

    SampleTransform = Callable[[Sample], Sample | None]


@dataclass(frozen=True, slots=True)
class PreparedSet:
    """A data set that can be trained on.

    index: the samples that are used; every row is in a bucket. buckets: by geometry, smallest first. dropped: how many
    were left out, by reason. memory: where digests of this data set are kept between runs, if anywhere. references:
    what the model is shown beside the samples; row i of each belongs to row i here.
    """

    config: DatasetConfig
    backend: DataBackend
    index: Index
    buckets: tuple[Bucket, ...]
    dropped: Mapping[str, int]
    memory: Memory | None = None
    references: tuple[PreparedSet, ...] = ()

    @property
    def name(self) -> str:
        return self.config.name

    def open(self, row: int) -> BinaryIO:
        """The sample's bytes as a file, to be closed. Raises SampleUnreadable."""
        return reader_of(self.index.kind(row)).open(self.backend, self.index.key(row))

    def digest(self, row: int) -> str:
        """Digest of the sample's bytes, 32 hexadecimal digits; read once per size and time. Raises SampleUnreadable."""
        known = self.index.digest(row)
        if known is None:
            with self.open(row) as file:
                known = digest_of_file(file)
            self.index.remember(row, known)
        return known

    def save_digests(self) -> None:
        """Keep the digests that are known now for the next run. For rank 0, once encoding is done."""
        if self.memory:
            known = self.index.digest_table()
            # Where nobody says when a file was changed, it may be another one at the next start.
            self.memory.save("digests", known.filter(pc.greater(known["modified"], 0)))


def prepare(
    datasets: Sequence[DatasetConfig],
    backends: Sequence[DataBackend],
    rule: GeometryRule,
    *,
    seed: int,
    transforms: Sequence[Sequence[SampleTransform]],
    report: Notes,
    cache_store: Store | None = None,
) -> tuple[PreparedSet, ...]:
    """List, filter and bucket every data set of a run. Raises DataUnusable.

    backends and transforms: one, and one list, per data set. seed: the run's. cache_store: where tables and digests are
    kept so that the next start only looks at sizes and times; None keeps nothing.
    """
    names = Counter(dataset.name for dataset in datasets)
    if twice := [name for name, count in names.items() if count > 1]:
        raise DataUnusable(
            f"{names[twice[0]]} data sets are named {twice[0]!r}.",
            why="Reports and random draws go by name.",
            fix="Give each [[dataset]] a name.",
        )
    check_names(datasets)
    listed: dict[str, Listed] = {}
    made: list[PreparedSet] = []
    parts = list(zip(datasets, backends, transforms, strict=True))
    parts.sort(key=lambda part: part[0].options.role != REFERENCE)
    for dataset, backend, own in parts:
        memory = Memory.of(cache_store, dataset, report.warn) if cache_store else None
        if dataset.options.role == REFERENCE:
            listed[dataset.name] = list_set(dataset, backend, report=report, transforms=own, memory=memory)
            continue
        one = prepare_set(dataset, backend, rule, seed=seed, transforms=own, report=report, memory=memory)
        made.append(with_references(one, listed, rule, seed=seed, report=report))
    return tuple(made)


def list_set(
    config: DatasetConfig,
    backend: DataBackend,
    *,
    report: Notes,
    transforms: Sequence[SampleTransform] = (),
    memory: Memory | None = None,
) -> Listed:
    """A data set with role "reference": what there is, for ``with_references``. Raises DataUnusable."""
    drops = _Drops(config.name, report)
    index = _listed(backend, drops, report, memory)
    drops.refuse_too_many_unreadable(config.options, len(index) + drops.total)
    return Listed(config, backend, _transformed(_without_doubles(index, drops), transforms, drops))


def with_references(
    one: PreparedSet, listed: Mapping[str, Listed], rule: GeometryRule, *, seed: int, report: Notes
) -> PreparedSet:
    """The data set with the references of its samples. Raises DataUnusable naming the samples that lack one."""
    drops = _Drops(one.name, report)
    mine = [listed[name] for name in one.config.options.reference_sets]

    def draw(stream: str, rows: slice) -> NDArray[np.uint64]:
        return keyed_each(seed, f"{stream}/{one.name}/references/", one.index.keys(rows))

    paired = pair(one, mine, rule, draw, drops.one)
    drops.tell()
    for name, number in unused(paired, mine).items():
        if number:
            report.note(f"reference set {name!r}: {number} belong to no sample of {one.name!r}")
    return paired


def prepare_set(
    config: DatasetConfig,
    backend: DataBackend,
    rule: GeometryRule,
    *,
    seed: int,
    report: Notes,
    transforms: Sequence[SampleTransform] = (),
    memory: Memory | None = None,
) -> PreparedSet:
    """One data set, from its listing to its buckets.

    Order: list, transforms, captions, sizes, max_samples. Crops are drawn here, keyed by (seed, data set, key), and by
    nothing else: the same sample gets the same crop whatever else is in the data set. Raises DataUnusable.
    """
    options = config.options
    drops = _Drops(config.name, report)
    index = _listed(backend, drops, report, memory)
    total = len(index) + drops.total
    drops.refuse_too_many_unreadable(options, total)
    index = _transformed(_without_doubles(index, drops), transforms, drops)
    check_effect(config.name, options, index)
    recipe = CaptionRecipe.of(options, seed)
    index = _with_captions(index, options, drops)

    def draw(stream: str, rows: slice) -> NDArray[np.uint64]:
        return keyed_each(seed, f"{stream}/{config.name}/", index.keys(rows))

    for sentence in rule.capped(options.resolution, options.area):
        report.warn(f"data set {config.name!r}: {sentence}")
    fits = fit(index.sizes(), options, rule, draw)
    index = _fitting(index.with_fits(fits, recipe), fits, options, drops)
    if options.max_samples and len(index) > options.max_samples:
        order = np.random.Generator(np.random.Philox(keyed(0, 0, f"subset/{config.name}"))).permutation(len(index))
        drops.count("not in max_samples", len(index) - options.max_samples)
        index = index.take(np.sort(order[: options.max_samples]))
    if not len(index):
        raise _nothing_left(config, total, drops)
    index = spread(index, options, lambda number, keys: keyed_each(seed, f"window {number}/{config.name}/", keys))
    for text in remarks(index, options):
        report.warn(f"data set {config.name!r}: {text}")
    assert index.fits is not None
    buckets = assign(index.fits, index.passes())
    _tell(config, index, buckets, drops, report)
    return PreparedSet(config, backend, index, buckets, dict(drops.by_reason), memory)


def keyed_each(seed: int, prefix: str, names: Sequence[str]) -> NDArray[np.uint64]:
    """``keyed(seed, 0, prefix + name)`` for each name, (N,), at a fifth of the cost: what is common is hashed once."""
    common = hashlib.blake2b(f"{seed}:0:{prefix}".encode(), digest_size=8)
    answer = bytearray()
    for name in names:
        own = common.copy()
        own.update(name.encode())
        answer += own.digest()
    return np.frombuffer(bytes(answer), "<u8").astype(np.uint64)


class _Drops:
    """What is left out of one data set: every sample is reported, and counted by reason."""

    def __init__(self, dataset: str, report: Notes) -> None:
        self.dataset, self.report = dataset, report
        self.by_reason: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    @property
    def total(self) -> int:
        return self.by_reason.total()

    def one(self, key: str, reason: str, detail: str = "") -> None:
        self.by_reason[reason] += 1
        self.first.setdefault(reason, f"{key!r}{f' ({detail})' if detail else ''}")
        self.report.dropped(self.dataset, key, f"{reason}: {detail}" if detail else reason)

    def count(self, reason: str, number: int) -> None:
        self.by_reason[reason] += number

    def tell(self) -> None:
        """Say how many were left out, by reason."""
        if self.total:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.by_reason.most_common())
            self.report.note(f"data set {self.dataset!r}: left out: {reasons}", kind="warning")

    def unreadable(self, key: str, reason: str) -> None:
        self.one(key, "unreadable", reason)

    def refuse_too_many_unreadable(self, options: DatasetOptions, total: int) -> None:
        check_unreadable(self.dataset, options, self.by_reason["unreadable"], total, self.first.get("unreadable", ""))


def check_unreadable(name: str, options: DatasetOptions, unreadable: int, total: int, first: str) -> None:
    """Raise DataUnusable where more files are unreadable than ``max_unreadable`` allows. first: one, and why."""
    if unreadable > options.max_unreadable * total:
        raise DataUnusable(
            f"data set {name!r}: {unreadable} of {total} files cannot be used, such as {first}.",
            why=f"max_unreadable = {options.max_unreadable:g} allows {int(options.max_unreadable * total)}.",
            fix="Repair or remove them (`st data check` lists all), or raise max_unreadable.",
        )


def _listed(backend: DataBackend, drops: _Drops, report: Notes, memory: Memory | None) -> Index:
    if not isinstance(backend, Columnar):
        index = Index.from_samples(backend.samples(drops.unreadable))
    else:
        known = memory.load("table") if memory else None
        table, notes = backend.table(known, drops.unreadable)
        for note in notes:
            report.note(f"data set {drops.dataset!r}: {note}", kind="warning")
        if memory and (known is None or not table.equals(known)):
            memory.save("table", table)
        index = Index.from_table(table)
        del table
        pa.default_memory_pool().release_unused()
    if memory and (digests := memory.load("digests")) is not None:
        index.recall(digests)
    return index


def _without_doubles(index: Index, drops: _Drops) -> Index:
    keys = index.table["key"]
    # A backend's table is sorted: neighbours tell, and no hash of a million keys is needed.
    if pc.all(pc.less(keys[:-1], keys[1:])).as_py() is not False or pc.count_distinct(keys).as_py() == len(index):
        return index
    places = pc.index_in(keys, value_set=pc.unique(keys)).to_numpy()
    kept = np.sort(np.unique(places, return_index=True)[1])
    for row in np.setdiff1d(np.arange(len(index)), kept):
        drops.one(index.key(int(row)), "listed twice")
    return index.take(kept)


def _transformed(index: Index, transforms: Sequence[SampleTransform], drops: _Drops) -> Index:
    if not transforms:
        return index
    rows: list[int] = []

    def changed() -> Iterator[Sample]:
        for row, sample in enumerate(index.samples()):
            current: Sample | None = sample
            for transform in transforms:
                current = transform(current) if current else None
            if current is None:
                drops.one(sample.key, "dropped by a plugin")
            else:
                rows.append(row)
                yield current

    made = Index.from_samples(changed())
    return index.take(np.array(rows, np.int64)).edited(made)


def _with_captions(index: Index, options: DatasetOptions, drops: _Drops) -> Index:
    if options.instance_prompts or options.missing_caption == "empty":
        return index
    has = index.has_caption()
    lacking = np.flatnonzero(~has)
    if not len(lacking):
        return index
    if options.missing_caption == "error":
        first = ", ".join(repr(index.key(int(row))) for row in lacking[:10])
        raise DataUnusable(
            f"data set {drops.dataset!r}: {len(lacking)} of {len(index)} samples have no caption: {first}"
            f"{' ...' if len(lacking) > 10 else ''}",
            fix="Write them, set instance_prompt for all, or set missing_caption to 'empty' or 'skip'.",
        )
    for row in lacking:
        drops.one(index.key(int(row)), "no caption")
    return index.take(np.flatnonzero(has))


def _fitting(index: Index, fits: Fits, options: DatasetOptions, drops: _Drops) -> Index:
    out = np.flatnonzero(fits.reason)
    if not len(out):
        return index
    sizes = index.sizes()
    for row in map(int, out):
        own = f"{sizes.width[row]}x{sizes.height[row]}"
        resized = f"{fits.resized_width[row]}x{fits.resized_height[row]}"
        wanted = f"{fits.width[row]}x{fits.height[row]}"
        length = f"{sizes.frames[row]} frames" if sizes.height[row] else f"{sizes.seconds[row]:.2f} s"
        reason, detail = {
            TOO_SMALL: ("too small", f"{own}, minimum_size = {options.minimum_size:g}"),
            TOO_FEW_PIXELS: ("enlarged too much", f"{own} to {wanted}, max_upscale = {options.max_upscale}"),
            WRONG_ASPECT: ("wrong aspect", f"{own} would be {wanted}"),
            TOO_SHORT: ("too short", length),
            TOO_LONG: ("too long", length),
            TOO_NARROW: ("too narrow", f"{own} would be resized to {resized}"),
        }[int(fits.reason[row])]
        drops.one(index.key(row), reason, detail)
    return index.take(np.flatnonzero(fits.reason == 0))


def _nothing_left(config: DatasetConfig, total: int, drops: _Drops) -> DataUnusable:
    listed = "\n".join(
        f"    {count:>8}  {reason}{f', such as {drops.first[reason]}' if reason in drops.first else ''}"
        for reason, count in drops.by_reason.most_common()
    )
    return DataUnusable(
        f"data set {config.name!r}: none of its {total} samples can be trained on.\n{listed}".rstrip(),
        fix="Change the options that leave them out; `st data check` shows what each one does.",
    )


def _tell(config: DatasetConfig, index: Index, buckets: Sequence[Bucket], drops: _Drops, report: Notes) -> None:
    drops.tell()
    report.note(
        f"data set {config.name!r}: {in_buckets(len(index), buckets)}",
        kind="dataset",
        dataset=config.name,
        role=config.options.role,
        url=config.options.url,
        samples=len(index),
        buckets={bucket.label: len(bucket) for bucket in buckets},
    )
