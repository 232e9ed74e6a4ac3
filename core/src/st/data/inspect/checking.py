"""Checking data sets as training would use them: every file is decoded, every caption measured, nothing is written."""

from __future__ import annotations

from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from st.data.digest import digest_of_file
from st.data.media.media_reader import reader_of
from st.data.media.picture import decode_mask
from st.data.sets.prepare import check_unreadable, prepare_set, with_references
from st.data.shape.buckets import check_batches
from st.errors import DataUnusable, SampleUnreadable
from st.report.console import NoConsole
from st.report.report import Report, ReportOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from st.data.backend import DataBackend
    from st.data.dataset import DatasetConfig
    from st.data.encoder import Encoder
    from st.data.sets.pairing import Listed
    from st.data.sets.prepare import PreparedSet, SampleTransform
    from st.data.shape.buckets import BatchShape
    from st.data.shape.rule import GeometryRule
    from st.errors import StError

_READERS = 4
_AHEAD = 32


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

    def note(self, text: str, kind: str = "note", **facts: object) -> None:
        if kind == "warning":
            self.findings.notes.append(text)

    def dropped(self, dataset: str, key: str, reason: str) -> None:
        self.findings.lost.append((key, reason))


def check_set(
    config: DatasetConfig,
    backend: DataBackend,
    rule: GeometryRule,
    encoders: Sequence[Encoder],
    *,
    shape: BatchShape,
    seed: int,
    transforms: Sequence[SampleTransform] = (),
    listed: Mapping[str, Listed] = MappingProxyType({}),
    advance: Callable[[], object] = lambda: None,
) -> Findings:
    """Prepare one data set, decode all of it, and note everything that training would stop at or leave out.

    listed: the data sets with role "reference" by name. advance is called once per sample.
    """
    found = Findings(config.name)
    listener = _Listener(found)
    try:
        one = prepare_set(config, backend, rule, seed=seed, report=listener, transforms=transforms)
        one = with_references(one, listed, rule, seed=seed, report=listener)
    except DataUnusable as error:
        found.failures.append(str(error))
        return found
    found.prepared = one
    if config.options.role == "train":
        _note_failure(found, lambda: check_batches(one.name, config.options, one.buckets, shape))
    _decode_all(one, found, advance)
    first = "{!r} ({})".format(*found.unreadable[0]) if found.unreadable else ""
    total = len(one.index)
    _note_failure(found, lambda: check_unreadable(one.name, config.options, len(found.unreadable), total, first))
    _measure_captions(one, encoders, found)
    return found


def _note_failure(found: Findings, check: Callable[[], None]) -> None:
    try:
        check()
    except DataUnusable as error:
        found.failures.append(str(error))


def _decode_all(one: PreparedSet, found: Findings, advance: Callable[[], object]) -> None:
    keys_by_digest: defaultdict[str, list[str]] = defaultdict(list)
    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(one.index), _AHEAD):
            rows = range(start, min(start + _AHEAD, len(one.index)))
            for row, answer in zip(rows, pool.map(lambda row: _decoded(one, row), rows), strict=True):
                if isinstance(answer, SampleUnreadable):
                    found.unreadable.append((answer.key, answer.reason))
                else:
                    keys_by_digest[answer].append(one.index.key(row))
                advance()
    # Several windows of a file are one file.
    distinct = (tuple(dict.fromkeys(keys)) for keys in keys_by_digest.values())
    found.doubles = [keys for keys in distinct if len(keys) > 1]


def _decoded(one: PreparedSet, row: int) -> str | SampleUnreadable:
    """The digest of a sample whose picture, mask and other companions can be decoded."""
    key, extras = one.index.key(row), one.index.extras(row)
    try:
        fit = one.index.fit(row)
        with one.open(row) as file:
            digest = digest_of_file(file)
            reader_of(one.index.kind(row)).check(key, file, fit)
        if "mask" in extras:
            decode_mask(extras["mask"], one.backend.read(extras["mask"]), fit)
    except SampleUnreadable as error:
        return error if error.key == key else SampleUnreadable(key, f"its mask: {error.reason}")
    for other in one.references:
        answer = _decoded(other, row)
        if isinstance(answer, SampleUnreadable):
            return SampleUnreadable(key, f"its reference {answer.key!r}: {answer.reason}")
    return digest


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
        yield f"data set {found.name!r} ({url}): {len(one.index)} samples in {len(one.buckets)} buckets"
        most = max(len(bucket) for bucket in one.buckets)
        for bucket in one.buckets:
            bar = "#" * max(1, round(40 * len(bucket) / most))
            yield f"  {bucket.geometry!s:>14}  aspect {bucket.aspect:<5.4g} {len(bucket):>8}  {bar}"
    else:
        yield f"data set {found.name!r}: cannot be used"
    yield from (f"  note: {note}" for note in found.notes)
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
