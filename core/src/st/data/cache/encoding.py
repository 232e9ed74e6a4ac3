"""Encoding: fill the cache with what training needs, one encoder in memory at a time, shared out over ranks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from st.data.cache.encoder_run import EncoderRun
from st.data.cache.exchange import exchange_digests
from st.data.cache.inputs import ahead, mask_tensor, media_input, window
from st.data.cache.joint import lacking_pairs, read_pairs
from st.data.cache.origins import MASK, Origins, latent_size, masked_rows
from st.data.cache.sharing import batches_of, chunks, longest_first, owners
from st.data.cache.streams import tell_lacking
from st.data.digest import digest_of, digest_of_file
from st.data.media.media_reader import WINDOWED
from st.data.sets.prepare import check_unreadable
from st.data.sets.remarks import mask_remarks
from st.data.sets.words import words_for
from st.errors import SampleUnreadable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from st.data.cache.cache import Cache, CacheOptions, Origin
    from st.data.cache.exchange import Sharers
    from st.data.cache.joint import Pair
    from st.data.encoder import Encoder, Input, LatentCodec
    from st.data.geometry import Geometry
    from st.data.sets.prepare import PreparedSet
    from st.data.sets.words import Words
    from st.notes import Notes, Stage

Rows = NDArray[np.int64]
CHUNK = 16384
NAMED = 5
"""Samples that are named on the console where they cannot be used; the event log has all of them."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Data sets whose samples are all in the cache, and where in it. Samples that could not be read are gone."""

    sets: tuple[PreparedSet, ...]
    origins: Origins


@dataclass(frozen=True, slots=True)
class _Job:
    """Samples of one geometry that an encoder has to be given."""

    one: PreparedSet
    geometry: Geometry
    rows: Rows


def fill(
    sets: Sequence[PreparedSet],
    codec: LatentCodec,
    text_encoders: Sequence[Encoder],
    cache: Cache,
    *,
    device: torch.device,
    ranks: Sharers,
    report: Notes,
    options: CacheOptions,
    prompts: Sequence[Words] = (),
    references: Encoder | None = None,
    features: Sequence[Encoder] = (),
    streams: Mapping[str, LatentCodec] = MappingProxyType({}),
) -> Encoded:
    """Encode what the cache lacks of every sample, caption and mask; every rank calls it and gets the same answer.

    prompts: further texts to encode (validation); the empty caption is always encoded. references: what encodes
    reference pictures, the codec where it is None. features: encoders of techniques. streams: the codecs of several
    latents by name, ``codec`` first; a sample of which another of them can make nothing stays, and is named. Ranks
    share out the work by what is to be encoded, so that none waits for another before the end and nothing is encoded
    twice (``owners`` names an exception). An encoder that lacks nothing is not loaded. Raises DataUnusable where more
    of a data set than its ``max_unreadable`` cannot be decoded or encoded, OutOfMemory where one sample does not fit,
    StError where an encoder fails on every sample, or on a caption.
    """
    origins = Origins(codec, text_encoders, references, features, streams)
    filling = _Filling(tuple(sets), origins, cache, device, ranks, report, options)
    if options.verify == "start":
        filling.verify()
    for encoder in origins.caption_readers:
        filling.captions(encoder, partial(words_for, encoder, sets, prompts))
    for encoder in origins.media_readers:
        filling.media(encoder)
    if origins.references is not codec:
        filling.media(origins.references)
    filling.share("encoding")
    for encoder in origins.joint_readers:
        filling.joint(encoder)
    if origins.joint_readers:
        filling.share("encoding captions with their samples")
    filling.masks()
    return filling.encoded()


@dataclass(slots=True)
class _Filling:
    """One call of ``fill``."""

    sets: tuple[PreparedSet, ...]
    origins: Origins
    cache: Cache
    device: torch.device
    ranks: Sharers
    report: Notes
    options: CacheOptions
    digested: dict[str, list[int]] = field(default_factory=dict)
    reasons: dict[tuple[str, str], str] = field(default_factory=dict)
    without: dict[str, dict[tuple[str, str], str]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    levels: dict[str, dict[int, tuple[int, int]]] = field(default_factory=dict)
    lacked: bool = False

    @property
    def every(self) -> tuple[PreparedSet, ...]:
        """The data sets and the references of each."""
        return tuple(chain.from_iterable((one, *one.references) for one in self.sets))

    def _read_by(self, encoder: Encoder) -> tuple[PreparedSet, ...]:
        """The data sets whose samples an encoder of pixels or sound is given."""
        own = self.sets if encoder in self.origins.encoders else ()
        shown = encoder is self.origins.references
        return (*own, *(other for one in self.sets for other in one.references if shown))

    def verify(self) -> None:
        """Compare every checksum now, and read every file again. What is damaged counts as missing from here on."""
        for one in self.every:
            one.index.forget()
        with self.report.stage("verifying the cache", len(self.cache)) as stage:
            for _, entries, _ in self.cache.verify():
                stage.advance(entries)

    def captions(self, encoder: Encoder, texts: Callable[[], Iterator[Words]]) -> None:
        """Encode this rank's share of the texts that the cache lacks. texts: gives all of them, the same each time.

        They are gone through twice, since ten million of them with their keys would take gigabytes.
        """
        lacking = [np.zeros(0, dtype=np.int64)]
        for start, chunk in chunks(texts(), CHUNK):
            keys = [self.origins.caption(encoder, words).key for words in chunk]
            places = self.cache.lacking(keys)
            mine = [int(keys[place], 16) % self.ranks.size == self.ranks.rank for place in places]
            lacking.append(start + places[np.array(mine, dtype=np.bool_)])
        places = np.concatenate(lacking)
        with ExitStack() as stack:
            if len(places):
                stage = stack.enter_context(self.report.stage(f"encoding {encoder.name}", len(places)))
                self._encode(encoder, longest_first(encoder, self.origins, texts(), places), stage, stack)
        self.cache.flush()

    def media(self, encoder: Encoder) -> None:
        """Encode this rank's share of the samples that the cache lacks, largest first."""
        jobs = self._jobs(encoder)
        self.lacked |= bool(jobs)
        total = sum(len(job.rows) for job in jobs)
        with ExitStack() as stack:
            if total:
                pool = stack.enter_context(ThreadPoolExecutor(self.options.workers))
                stage = stack.enter_context(self.report.stage(f"encoding {encoder.name}", total))
                self._encode(encoder, self._inputs(encoder, jobs, pool, stage), stage, stack)
        self.cache.flush()

    def joint(self, encoder: Encoder) -> None:
        """Encode this rank's share of what the cache lacks of captions that are read with their samples."""
        todo: list[Pair] = []
        for one in self.sets:
            for bucket in sorted(one.buckets, key=lambda bucket: bucket.geometry, reverse=True):
                mine = self._mine(one, np.unique(bucket.rows))
                todo += [(one, *pair) for pair in lacking_pairs(encoder, self.origins, self.cache, one, mine)]
        self.lacked |= bool(todo)
        with ExitStack() as stack:
            if todo:
                pool = stack.enter_context(ThreadPoolExecutor(self.options.workers))
                stage = stack.enter_context(self.report.stage(f"encoding {encoder.name}", len(todo)))
                read = read_pairs(encoder, self.origins, todo, pool, self.options.batch)
                self._encode(encoder, self._unknown(read, stage), stage, stack)
        self.cache.flush()

    def _unknown(
        self, read: Iterable[tuple[Pair, Origin | None, Input | str]], stage: Stage
    ) -> Iterator[tuple[Origin, Input]]:
        """What is to be encoded of what was read; the rest is passed over, and why is remembered."""
        recent: deque[str] = deque(maxlen=2 * self.options.batch)
        for (one, row, _), origin, given in read:
            if isinstance(given, str):
                self.reasons[one.name, one.index.key(row)] = given
            # Without a digest another encoder could not read the sample, which is left out for that.
            elif origin is not None and origin.key not in recent and origin.key not in self.cache:
                recent.append(origin.key)
                yield origin, given
                continue
            stage.advance()

    def _jobs(self, encoder: Encoder) -> list[_Job]:
        jobs = []
        for one in self._read_by(encoder):
            for bucket in one.buckets:
                lacking = self._lacking(encoder, one, self._mine(one, np.unique(bucket.rows)))
                if len(lacking):
                    jobs.append(_Job(one, bucket.geometry, lacking))
        return sorted(jobs, key=lambda job: job.geometry, reverse=True)

    def _mine(self, one: PreparedSet, rows: Rows) -> Rows:
        """The rows that this rank encodes."""
        mine: Rows = rows[owners(one.index.table["size_bytes"].to_numpy()[rows], self.ranks.size) == self.ranks.rank]
        return mine

    def _lacking(self, encoder: Encoder, one: PreparedSet, rows: Rows) -> Rows:
        """The rows without an entry of this encoder. In chunks, since a million keys would take a gigabyte."""
        places = [np.zeros(0, dtype=np.int64)]
        for start in range(0, len(rows), CHUNK):
            known = [self.origins.media(encoder, one, int(row)) for row in rows[start : start + CHUNK]]
            places.append(start + self.cache.lacking([origin.key if origin else "" for origin in known]))
        return rows[np.concatenate(places)]

    def _inputs(
        self, encoder: Encoder, jobs: Sequence[_Job], pool: ThreadPoolExecutor, stage: Stage
    ) -> Iterator[tuple[Origin, Input]]:
        """What the encoder is given, decoded ahead of it; what turns out to be cached or unreadable is passed over."""

        def read(work: tuple[_Job, int]) -> tuple[Origin, Input | None]:
            job, row = work
            index = job.one.index
            with job.one.open(row) as file:
                # Of a file that gives several windows, all bytes are read for the first of them only.
                if index.digest(row) is None or index.kind(row) not in WINDOWED:
                    index.remember(row, digest_of_file(file))
                origin = self.origins.media(encoder, job.one, row)
                assert origin is not None
                return origin, None if origin.key in self.cache else media_input(job.one, row, file, encoder)

        work = ((job, int(row)) for job in jobs for row in job.rows)
        # Copies of one file may follow one another: what was given out last may not be in the cache yet.
        recent: deque[str] = deque(maxlen=2 * self.options.batch)
        for (job, row), future in ahead(pool, work, read, lambda work: window(work[0].geometry, self.options.batch)):
            try:
                origin, given = future.result()
            except SampleUnreadable as error:
                self._unreadable(encoder)[job.one.name, error.key] = error.reason
                stage.advance()
                continue
            self.digested.setdefault(job.one.name, []).append(row)
            if given is None or origin.key in recent or origin.key in self.cache:
                stage.advance()
                continue
            recent.append(origin.key)
            yield origin, given

    def _encode(self, encoder: Encoder, pairs: Iterable[tuple[Origin, Input]], stage: Stage, stack: ExitStack) -> None:
        """Give the encoder its inputs in batches of one geometry. It is loaded when there is a first one."""
        run: EncoderRun | None = None
        for batch in batches_of(pairs, self.options.batch):
            if run is None:
                run = EncoderRun(encoder, stack.enter_context(encoder.open(self.device)), self.options.batch)
            for (origin, _), answer in zip(batch, run([given for _, given in batch]), strict=True):
                if isinstance(answer, SampleUnreadable):
                    self.failed[origin.key] = answer.reason
                else:
                    self.cache.put(origin, answer)
            stage.advance(len(batch))

    def share(self, stage: str) -> None:
        """Make this rank's entries and digests visible to the others, and theirs to this one."""
        self.cache.flush()
        fresh = {one.name: self.digested.pop(one.name) for one in self.every if one.name in self.digested}
        if self.ranks.size > 1:
            exchange_digests(self.every, fresh, self.cache, self.ranks, stage)
        elif fresh:
            for one in self.every:
                one.save_digests()

    def masks(self) -> None:
        """Shrink this rank's share of the masks to the size of their latents.

        Every rank reads all masks, since a mask's bytes name its entry and an index keeps no digests of masks.
        """
        masked = [(one, row) for one in self.sets for row in masked_rows(one)]
        if not masked:
            return
        with (
            ThreadPoolExecutor(self.options.workers) as pool,
            self.report.stage("reading masks", len(masked)) as stage,
        ):
            for (one, row), future in ahead(pool, masked, self._mask, lambda _: 4 * self.options.workers):
                stage.advance()
                try:
                    made = future.result()
                except SampleUnreadable as error:
                    self.reasons[one.name, one.index.key(row)] = f"its mask: {error.reason}"
                    continue
                if made is not None:
                    self.cache.put(*made)
        self.share("masks")
        for one in self.sets:
            for text in mask_remarks(one, self.levels.get(one.name, {})):
                self.report.warn(f"data set {one.name!r}: {text}")

    def _mask(self, work: tuple[PreparedSet, int]) -> tuple[Origin, Mapping[str, Tensor]] | None:
        """A mask's entry where it is this rank's to make. Notes the digest in any case."""
        one, row = work
        size = latent_size(self.origins, self.cache, one, row)
        if size is None:
            return None
        data = one.backend.read(one.index.extras(row)[MASK])
        self.origins.masks.setdefault(one.name, {})[row] = digest_of(data)
        origin = self.origins.mask(one, row, *size)
        assert origin is not None
        known = self.cache.get(origin.key)
        # Decoded on every rank: one that cannot be is then gone on every rank.
        tensor = known[MASK] if known else mask_tensor(one, row, data, *size)
        self.levels.setdefault(one.name, {})[row] = (int(tensor.min()), int(tensor.max()))
        if known:
            return None
        return (origin, {MASK: tensor}) if int(origin.key, 16) % self.ranks.size == self.ranks.rank else None

    def encoded(self) -> Encoded:
        """The sets without the samples that could not be encoded, which are reported."""
        if self.ranks.size == 1 and not self.lacked and not self.reasons:
            # A warm start of a large data set is made of looking keys up: once is enough.
            return Encoded(self.sets, self.origins)
        left = tuple(self._without_unreadable(one) for one in self.sets)
        for one in left:
            for name, codec in self.origins.further_streams.items():
                rows = self._lacking(codec, one, np.unique(np.concatenate([bucket.rows for bucket in one.buckets])))
                why = (self._unreadable(codec), self.failed)
                tell_lacking(one, name, rows, self.origins, why=why, report=self.report)
        return Encoded(left, self.origins)

    def _without_unreadable(self, one: PreparedSet) -> PreparedSet:
        gone = {row for bucket in one.buckets for row in self._unencoded(one, bucket.rows)}
        if not gone:
            return one
        name, keys = one.name, [one.index.key(row) for row in sorted(gone)]
        for key, row in zip(keys, sorted(gone), strict=True):
            self.report.dropped(name, key, self._reason(one, row))
        first = f"{keys[0]!r} ({self.reasons[name, keys[0]]})"
        check_unreadable(name, one.config.options, len(gone), len(one.index), first)
        named = "; ".join(f"{key!r}: {self.reasons[name, key]}" for key in keys[:NAMED])
        more = f"; and {len(gone) - NAMED} more" if len(gone) > NAMED else ""
        self.report.warn(f"data set {name!r}: left out, since they cannot be used: {len(gone)} samples ({named}{more})")
        lost = np.array(sorted(gone))
        buckets = (replace(bucket, rows=bucket.rows[~np.isin(bucket.rows, lost)]) for bucket in one.buckets)
        return replace(one, buckets=tuple(bucket for bucket in buckets if len(bucket.rows)))

    def _unreadable(self, encoder: Encoder) -> dict[tuple[str, str], str]:
        """Why samples could not be given to an encoder: without its stream they train on, otherwise they are out."""
        further = encoder in self.origins.further_streams.values()
        return self.without.setdefault(encoder.name, {}) if further else self.reasons

    def _unencoded(self, one: PreparedSet, rows: Rows) -> Iterator[int]:
        """Rows without an entry of some encoder, or whose mask could not be read."""
        rows = np.unique(rows)
        for encoder in self.origins.media_readers:
            if encoder not in self.origins.further_streams.values():
                yield from map(int, self._lacking(encoder, one, rows))
        for encoder in self.origins.joint_readers:
            for row, words in lacking_pairs(encoder, self.origins, self.cache, one, rows):
                origin = self.origins.joint(encoder, one, row, words)
                if origin is not None and origin.key in self.failed:
                    self.reasons[one.name, one.index.key(row)] = self.failed[origin.key]
                yield row
        for other in one.references:
            for row in map(int, self._lacking(self.origins.references, other, rows)):
                self.reasons[one.name, one.index.key(row)] = f"its reference: {self._reason(other, row)}"
                yield row
        masks = self.origins.masks.get(one.name, {})
        for row in masked_rows(one, rows):
            if row not in masks or (one.name, one.index.key(row)) in self.reasons:
                yield row

    def _reason(self, one: PreparedSet, row: int) -> str:
        """Why a sample was left out; tried again here where another rank had it."""
        name, key = one.name, one.index.key(row)
        for encoder in (*self.origins.media_readers, self.origins.references):
            origin = self.origins.media(encoder, one, row)
            if origin is not None and origin.key in self.failed:
                return self.reasons.setdefault((name, key), self.failed[origin.key])
        if (name, key) not in self.reasons:
            try:
                with one.open(row) as file:
                    media_input(one, row, file, self.origins.codec)
            except SampleUnreadable as error:
                self.reasons[name, key] = error.reason
        return self.reasons.setdefault((name, key), "another rank could not encode it")
