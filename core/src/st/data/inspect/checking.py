"""Checking data sets as training would use them: every file is decoded, every caption measured, nothing is written."""

from __future__ import annotations

from collections import Counter, defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from st.data.cache.cache import Cache, CacheOptions
from st.data.cache.encoding import fill
from st.data.encoder import LatentCodec
from st.data.sets.prepare import check_unreadable, prepare_set, with_references
from st.data.sets.remarks import cut_shares
from st.data.shape.buckets import check_batches, in_buckets
from st.data.store.store import Store
from st.errors import DataUnusable
from st.report.console import NoConsole
from st.report.report import Report, ReportOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor

    from st.data.backend import DataBackend
    from st.data.cache.origins import Origins
    from st.data.dataset import DatasetConfig
    from st.data.encoder import Encode, Encoder, Input
    from st.data.sets.pairing import Listed
    from st.data.sets.prepare import PreparedSet, SampleTransform
    from st.data.shape.buckets import BatchShape
    from st.data.shape.rule import GeometryRule
    from st.errors import StError

_READERS = 4

_DEMANDS: tuple[tuple[str, object], ...] = (
    ("", None),
    ("max_unreadable", 1.0),
    ("missing_companion", "keep"),
    ("missing_reference", "skip"),
    ("missing_caption", "empty"),
)
"""Settings by which a data set is refused, and the value of each that refuses nothing; the first changes none."""


@dataclass(slots=True)
class Findings:
    """What is known of one data set. failures: what training would stop at. lost: (key, reason) of what is left out.

    unreadable: (key, reason) found when decoding. doubles: keys with the same bytes. long: (key, encoder, tokens,
    how many of them the encoder reads).
    """

    name: str
    prepared: PreparedSet | None = None
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lost: list[tuple[str, str]] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    doubles: list[tuple[str, ...]] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    long: list[tuple[str, str, int, int]] = field(default_factory=list)


class _Listener(Report):
    """A report that keeps what it is told of one data set."""

    def __init__(self, findings: Findings) -> None:
        super().__init__(ReportOptions(), None, NoConsole())
        self.findings = findings
        self.decoding = False

    def note(self, text: str, kind: str = "note", **facts: object) -> None:
        # What cannot be decoded is listed by name.
        if kind == "warning" and not text.startswith(f"data set {self.findings.name!r}: left out"):
            self.findings.notes.append(text)

    def dropped(self, dataset: str, key: str, reason: str) -> None:
        (self.findings.unreadable if self.decoding else self.findings.lost).append((key, reason))


def check_set(
    config: DatasetConfig,
    backend: DataBackend,
    rule: GeometryRule,
    readers: Origins,
    *,
    shape: BatchShape,
    seed: int,
    transforms: Sequence[SampleTransform] = (),
    listed: Mapping[str, Listed] = MappingProxyType({}),
) -> Findings:
    """Prepare one data set, decode all of it, and note everything that training would stop at or leave out.

    What is run is what training runs, ``prepare_set`` and ``fill``, with doubles in place of the encoders that
    ``readers`` names. listed: the data sets with role "reference" by name.
    """
    found = Findings(config.name)
    listener = _Listener(found)

    def prepared(config: DatasetConfig, backend: DataBackend) -> PreparedSet:
        one = prepare_set(config, backend, rule, seed=seed, report=listener, transforms=transforms)
        return with_references(one, listed, rule, seed=seed, report=listener)

    one = _prepared(config, backend, prepared, found)
    if one is None:
        return found
    found.prepared = one
    left = _decoded(one, readers, listener)
    first = "{!r} ({})".format(*found.unreadable[0]) if found.unreadable else ""
    total = len(one.index)
    _note_failure(found, lambda: check_unreadable(one.name, config.options, len(found.unreadable), total, first))
    if config.options.role == "train":
        _note_failure(found, lambda: check_batches(one.name, config.options, left.buckets, shape))
    if not left.buckets:
        found.failures.append(f"data set {one.name!r}: no sample is left")
    found.doubles = _doubles(one)
    _measure_captions(one, readers.text_encoders, found)
    return found


def _prepared(
    config: DatasetConfig,
    backend: DataBackend,
    prepared: Callable[[DatasetConfig, DataBackend], PreparedSet],
    found: Findings,
) -> PreparedSet | None:
    """The data set, if need be with its demands given up one after the other, so that all that is wrong is found."""
    for demand, further in _DEMANDS:
        if demand in type(config.options).model_fields:
            config = replace(config, options=config.options.model_copy(update={demand: further}))
        elif demand in type(backend.options).model_fields:
            backend = type(backend)(backend.url, backend.options.model_copy(update={demand: further}))
        found.lost.clear()
        found.notes.clear()
        try:
            return prepared(config, backend)
        except DataUnusable as error:
            if str(error) not in found.failures:
                found.failures.append(str(error))
    return None


def _note_failure(found: Findings, check: Callable[[], None]) -> None:
    try:
        check()
    except DataUnusable as error:
        found.failures.append(str(error))


def _decoded(one: PreparedSet, readers: Origins, listener: _Listener) -> PreparedSet:
    """What training would be left with: everything is read and decoded as it would be, and nothing encoded."""
    doubles = {encoder.name: _Double(encoder) for encoder in (*readers.media_readers, readers.references)}
    forgiving = replace(one.config, options=one.config.options.model_copy(update={"max_unreadable": 1.0}))
    listener.decoding = True
    with TemporaryDirectory(prefix="st-check-") as folder:
        encoded = fill(
            [replace(one, config=forgiving, memory=None)],
            doubles[readers.codec.name],
            (),
            Cache(Store.at(folder)),
            device=torch.device("cpu"),
            ranks=_Alone(),
            report=listener,
            options=CacheOptions.model_validate({"workers": _READERS}),
            references=doubles[readers.references.name],
            features=[doubles[encoder.name] for encoder in readers.media_readers if encoder is not readers.codec],
        )
    listener.decoding = False
    return encoded.sets[0]


class _Alone:
    """No other process takes part."""

    rank, size = 0, 1

    def barrier(self, stage: str) -> None:
        """There is nobody to wait for."""


class _Double(LatentCodec):
    """Is given what an encoder would be given, and answers at once."""

    fingerprint = ""

    def __init__(self, own: Encoder) -> None:
        self._own = own
        self.name, self.reads, self.facts = own.name, own.reads, own.facts
        self.sample_rate, self.channels = own.sample_rate, own.channels

    @contextmanager
    def open(self, device: torch.device) -> Iterator[Encode]:
        yield lambda inputs: [{"latents": torch.zeros(self._size(one), dtype=torch.uint8)} for one in inputs]

    def _size(self, given: Input) -> tuple[int, ...]:
        assert given.geometry is not None, "samples have a geometry"
        known = self._own.latent_shape(given.geometry) if isinstance(self._own, LatentCodec) else None
        # Masks are shrunk to the last two edges; an eighth is what most autoencoders make of a picture.
        return known[-2:] if known else (-(-given.geometry.height // 8), -(-given.geometry.width // 8))

    def decoder(self, device: torch.device) -> AbstractContextManager[Callable[[Tensor], Tensor]]:
        raise AssertionError("nothing is decoded from what a double gives")


def _doubles(one: PreparedSet) -> list[tuple[str, ...]]:
    keys_by_digest: defaultdict[str, list[str]] = defaultdict(list)
    for row in range(len(one.index)):
        if (digest := one.index.digest(row)) is not None:
            keys_by_digest[digest].append(one.index.key(row))
    # Several windows of a file are one file.
    distinct = (tuple(dict.fromkeys(keys)) for keys in keys_by_digest.values())
    return [keys for keys in distinct if len(keys) > 1]


def _measure_captions(one: PreparedSet, encoders: Sequence[Encoder], found: Findings) -> None:
    """Captions that are empty, and the longest one of each sample that an encoder does not read to its end."""
    readers = [encoder for encoder in encoders if encoder.reads_captions]
    measured: dict[tuple[str, str], tuple[int, int] | None] = {}
    for row in range(len(one.index)):
        texts = one.index.captions(row)
        if not any(text.strip() for text in texts):
            found.empty.append(one.index.key(row))
        for encoder in readers:
            longest = (0, 0)
            for text in texts:
                if (encoder.name, text) not in measured:
                    measured[encoder.name, text] = encoder.count_tokens(text)
                longest = max(longest, measured[encoder.name, text] or (0, 0))
            if longest[0] > longest[1]:
                found.long.append((one.index.key(row), encoder.name, *longest))


def lines(found: Findings, listed: int = 20) -> Iterator[str]:
    """What was found, a line each, with at most ``listed`` names per kind; failures last."""
    one = found.prepared
    if one is not None:
        url = one.config.options.url
        yield f"data set {found.name!r} ({url}): {in_buckets(len(one.index), one.buckets)}"
        longest = max(len(bucket) for bucket in one.buckets)
        for bucket in one.buckets:
            bar = "#" * max(1, round(40 * len(bucket) / longest))
            yield f"  {bucket.geometry!s:>14}  aspect {bucket.aspect:<5.4g} {len(bucket):>8}  {bar}"
    else:
        yield f"data set {found.name!r}: cannot be used"
    yield from (f"  note: {note}" for note in found.notes)
    if one is not None and (lost := cut_shares(one.index)).any():
        worst = int(lost.argmax())
        most = f"at most {lost[worst]:.0%} ({one.index.key(worst)})"
        yield f"  cut off at the edges: {lost.mean():.0%} of the area, {most}"
    reasons = Counter(reason.partition(":")[0] for _, reason in found.lost)
    for reason, number in reasons.most_common():
        names = [f"{key}: {why}" for key, why in found.lost if why.partition(":")[0] == reason]
        yield from _named(f"left out, {reason}", names, listed, number)
    yield from _named("cannot be decoded", [f"{key}: {why}" for key, why in found.unreadable], listed)
    yield from _named("the same bytes", [" = ".join(keys) for keys in found.doubles], listed)
    yield from _named("empty captions", found.empty, listed)
    cut = [f"{key}: {tokens} tokens, {name} reads {read}" for key, name, tokens, read in found.long]
    yield from _named("captions that are cut off", cut, listed)
    yield from (f"  TRAINING WOULD STOP: {failure}" for failure in found.failures)
    if not found.failures:
        yield "  training would start"


def _named(title: str, names: Sequence[str], listed: int, number: int | None = None) -> Iterator[str]:
    if not names:
        return
    yield f"  {title}: {number or len(names)}"
    yield from (f"    {name}" for name in names[:listed])
    if len(names) > listed:
        yield f"    and {len(names) - listed} more (--all lists them)"


def failure(error: StError, name: str) -> Findings:
    """A data set of which nothing is known but why."""
    return Findings(name, failures=[str(error)])
