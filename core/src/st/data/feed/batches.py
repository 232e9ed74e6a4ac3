"""Batches: cache entries of samples put together as a denoiser is trained on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from st.data.cache.origins import MASK
from st.data.cache.streams import stacked
from st.data.sample import reference_name
from st.data.sets.words import DROPPED, Words
from st.diffusion.objective import Batch
from st.errors import SampleUnreadable, StError
from st.randomness import keyed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from st.data.cache.cache import Cache, Origin
    from st.data.cache.encoding import Encoded
    from st.data.cache.mending import Mender
    from st.data.encoder import Encoder
    from st.data.feed.plan import Rows
    from st.data.sets.prepare import PreparedSet
    from st.data.shape.buckets import Bucket

    Tensors = Mapping[str, Tensor]
    Collate = Callable[[Sequence[Tensors]], Tensors]

READERS = 16
"""Entries that are read at a time from a store far away."""

ATTEMPTS = 8
"""Samples of a bucket that are tried in place of one that has become unreadable."""


class Kept:
    """Entries that stay in memory, up to a number of bytes.

    What came first stays: a shuffled pass over more than fits would push out of a least-recently-used list just what it
    needs next. Thread-safe.
    """

    def __init__(self, cache: Cache, keep_bytes: int) -> None:
        self._cache, self._left = cache, keep_bytes
        self._entries: dict[str, Tensors] = {}
        self._coming: dict[str, Future[Tensors | None]] = {}
        self._lock = Lock()
        # A disk answers one request after the other as fast; a store far away takes its time for each.
        self._pool = None if cache.store.is_local else ThreadPoolExecutor(READERS, thread_name_prefix="entries")

    def ahead(self, keys: Iterable[str]) -> None:
        """Begin to read entries that ``get`` is about to be asked for, side by side where they come from far away."""
        if self._pool is None:
            return
        with self._lock:
            for key in keys:
                if key not in self._entries and key not in self._coming:
                    self._coming[key] = self._pool.submit(self._cache.get, key)

    def get(self, key: str) -> Tensors | None:
        """An entry, as the cache has it."""
        with self._lock:
            known, coming = self._entries.get(key), self._coming.pop(key, None)
        if known is not None:
            return known
        tensors = coming.result() if coming else self._cache.get(key)
        if tensors is not None:
            size_bytes = sum(tensor.nbytes for tensor in tensors.values())
            with self._lock:
                if size_bytes <= self._left:
                    self._left -= size_bytes
                    self._entries[key] = tensors
        return tensors

    def close(self) -> None:
        """Read nothing ahead any more."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


class Assembler:
    """Puts batches together from the cache, on the CPU. Draws for a sample depend on seed and draw index alone.

    collate: the family's. note: told of samples that cannot be used any more. An entry that is missing or damaged is
    encoded again by ``mender``.
    """

    def __init__(
        self,
        encoded: Encoded,
        entries: Kept,
        collate: Collate,
        *,
        seed: int,
        mender: Mender,
        note: Callable[[str], None],
    ) -> None:
        self._origins, self._entries, self._collate = encoded.origins, entries, collate
        self._seed, self._mender, self._note = seed, mender, note

    def batch(self, one: PreparedSet, bucket: Bucket, rows: Rows, first: int) -> Batch:
        """Training samples of one bucket. first: the draw index of the first row; the others follow it.

        One caption is drawn per sample and visit, and replaced by the empty one as often as ``caption_dropout`` says. A
        sample whose entry is gone and whose file cannot be read gives way to another of its bucket, drawn by its index.
        """
        indices = tuple(range(first, first + len(rows)))
        self._entries.ahead(self._keys(one, rows, indices))
        samples = [self._replaceable(one, bucket, int(row), index) for row, index in zip(rows, indices, strict=True)]
        captions = [self._caption(one, row, index) for (row, _), index in zip(samples, indices, strict=True)]
        return self._batch(one, samples, captions, indices)

    def _keys(self, one: PreparedSet, rows: Rows, indices: Sequence[int]) -> Iterator[str]:
        """Of the entries that a batch is made of, masks aside, where nothing has to give way to another."""
        for row, index in zip(map(int, rows), indices, strict=True):
            media = [(encoder, one) for encoder in self._origins.media_readers]
            media += [(self._origins.references, other) for other in one.references]
            for encoder, own in media:
                if (origin := self._origins.media(encoder, own, row)) is not None:
                    yield origin.key
            words = self._caption(one, row, index)
            yield from (self._origins.caption(encoder, words).key for encoder in self._origins.caption_readers)

    def close(self) -> None:
        """Read nothing ahead any more."""
        self._entries.close()

    def fixed(self, one: PreparedSet, rows: Rows, first: int) -> Batch:
        """Samples of one geometry with their first caption, which is never dropped."""
        samples = [(int(row), self._latents(one, int(row))) for row in rows]
        captions = [Words((one.index.captions(row) or ("",))[0], one.index.facts(row)) for row, _ in samples]
        return self._batch(one, samples, captions, tuple(range(first, first + len(rows))))

    def conditions(self, words: Words) -> Tensors:
        """What the text encoders give for a caption, by tensor: what ``collate`` takes of one sample."""
        merged: dict[str, Tensor] = {}
        for encoder in self._origins.caption_readers:
            origin = self._origins.caption(encoder, words)
            self._merge(merged, self._entry(origin, partial(self._mender.caption, encoder, words)))
        return merged

    def _batch(
        self,
        one: PreparedSet,
        samples: Sequence[tuple[int, Tensors]],
        captions: Sequence[Words],
        indices: tuple[int, ...],
    ) -> Batch:
        conditions = [self._conditions(one, row, words) for (row, _), words in zip(samples, captions, strict=True)]
        rows = [row for row, _ in samples]
        latents = torch.stack([tensors["latents"] for _, tensors in samples])
        further = {name: torch.stack([t[name] for _, t in samples]) for name in samples[0][1] if name != "latents"}
        streams, lacking = self._streams(one, rows, latents)
        return Batch(
            keys=tuple(one.index.key(row) for row in rows),
            indices=indices,
            dataset=one.name,
            latents=latents,
            conditions=self._collate(conditions),
            mask=self._masks(one, rows, latents),
            extras={**_sizes(one, rows), **further},
            streams=streams,
            lacking=lacking,
        )

    def _streams(
        self, one: PreparedSet, rows: Sequence[int], latents: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """All of several streams by name, and which samples lack which; nothing of one stream."""
        origins = self._origins
        if not origins.streams:
            return {}, {}
        streams, lacking = {next(iter(origins.streams)): latents}, {}
        for name, codec in origins.further_streams.items():
            absent = origins.lacking.get(name, {}).get(one.name, ())
            found = [None if row in absent else self._media(codec, one, row)["latents"] for row in rows]
            streams[name], lacks = stacked(name, found, codec, one.index.fit(rows[0]).geometry, latents)
            if lacks is not None:
                lacking[name] = lacks
        return streams, lacking

    def _conditions(self, one: PreparedSet, row: int, words: Words) -> Tensors:
        merged = dict(self.conditions(words))
        for encoder in self._origins.text_encoders:
            if encoder.reads_samples:
                self._merge(merged, self._of_sample(encoder, one, row, words))
        return merged

    def _merge(self, merged: dict[str, Tensor], tensors: Tensors) -> None:
        twice = merged.keys() & tensors.keys()
        assert not twice, f"two encoders give a tensor named {min(twice)!r}"
        merged.update(tensors)

    def _replaceable(self, one: PreparedSet, bucket: Bucket, row: int, index: int) -> tuple[int, Tensors]:
        """The sample with its latents, or another of the bucket with its own."""
        for attempt in range(ATTEMPTS):
            try:
                return row, self._latents(one, row)
            except SampleUnreadable as error:
                replacement = keyed(self._seed, index, f"replacement/{attempt}") % len(bucket.rows)
                row = int(bucket.rows[replacement])
                self._note(f"data set {one.name!r}: {error}; {one.index.key(row)!r} takes its place")
        raise StError(
            f"data set {one.name!r}: {ATTEMPTS} samples in a row can neither be read from the cache nor encoded again",
            fix="look for what has become of its files, then resume",
        )

    def _latents(self, one: PreparedSet, row: int) -> Tensors:
        """The codec's entry of a sample, and what else of it and its references goes into ``Batch.extras``."""
        own = self._media(self._origins.codec, one, row)
        if not one.references and not self._origins.features:
            return own
        merged = dict(own)
        for encoder in self._origins.features:
            self._merge(merged, self._of_sample(encoder, one, row, DROPPED))
        for number, other in enumerate(one.references):
            shown = self._media(self._origins.references, other, row)
            self._merge(merged, {reference_name(number, name): tensor for name, tensor in shown.items()})
        return merged

    def _of_sample(self, encoder: Encoder, one: PreparedSet, row: int, words: Words) -> Tensors:
        """What an encoder gives of a sample, and of its caption where it reads that too."""
        if encoder not in self._origins.joint_readers:
            return self._media(encoder, one, row)
        origin = self._origins.joint(encoder, one, row, words)
        assert origin is not None, "the digest of every sample is known once the cache is filled"
        return self._entry(origin, partial(self._mender.joint, encoder, one, row, words))

    def _media(self, encoder: Encoder, one: PreparedSet, row: int) -> Tensors:
        origin = self._origins.media(encoder, one, row)
        assert origin is not None, "the digest of every sample is known once the cache is filled"
        return self._entry(origin, partial(self._mender.media, encoder, one, row))

    def _entry(self, origin: Origin, mend: Callable[[], Tensors]) -> Tensors:
        tensors = self._entries.get(origin.key)
        return mend() if tensors is None else tensors

    def _caption(self, one: PreparedSet, row: int, index: int) -> Words:
        if keyed(self._seed, index, "caption_dropout") < one.config.options.caption_dropout * 2**64:
            return DROPPED
        captions = one.index.captions(row)
        text = captions[keyed(self._seed, index, "caption") % len(captions)] if captions else ""
        return Words(text, one.index.facts(row))

    def _masks(self, one: PreparedSet, rows: Sequence[int], latents: Tensor) -> Tensor | None:
        """(B, 1, H, W) float32 in [0, 1]; ones where a sample has no mask, None where none has one."""
        if one.name not in self._origins.masks:
            return None
        height, width = latents.shape[-2:]
        found = [self._origins.mask(one, row, height, width) for row in rows]
        if not any(found):
            return None
        masks = torch.ones(len(rows), 1, height, width)
        for place, origin in enumerate(found):
            if origin is not None:
                small = self._entry(origin, partial(self._mender.mask, one, rows[place], height, width))[MASK]
                masks[place, 0] = small.to(torch.float32) / 255
        return masks


def _sizes(one: PreparedSet, rows: list[int]) -> dict[str, Tensor]:
    """What pictures are conditioned on beside their caption, (B, 2) each: sizes (height, width), crop (top, left).

    The original size is the file's; the crop was made of the picture when it was resized, as upstream counts it.
    """
    fits = one.index.fits
    assert fits is not None, "a prepared data set has fits"

    return {
        "original_size": _pairs(*one.index.file_sizes(rows)),
        "crop": _pairs(fits.top[rows], fits.left[rows]),
        "target_size": _pairs(fits.height[rows], fits.width[rows]),
    }


def _pairs(first: NDArray[np.int32], second: NDArray[np.int32]) -> Tensor:
    return torch.from_numpy(np.stack((first, second), axis=1).astype(np.int64))


def fixed_batches(assembler: Assembler, one: PreparedSet, rows: Sequence[int], batch: int) -> Iterator[Batch]:
    """These rows of a data set in batches of one geometry, always the same ones; what is over makes a smaller batch.

    Draw indices count the rows of the data set from 0.
    """
    wanted, first = np.array(sorted(set(rows)), dtype=np.int64), 0
    for bucket in one.buckets:
        mine = wanted[np.isin(wanted, bucket.rows)]
        for start in range(0, len(mine), batch):
            part = mine[start : start + batch]
            yield assembler.fixed(one, part, first)
            first += len(part)


def pinned(batch: Batch) -> Batch:
    """The same batch in page-locked memory, from which a copy to the device does not wait."""
    return _each(batch, lambda tensor: tensor.pin_memory())


def moved(batch: Batch, device: torch.device) -> Batch:
    """The same batch on a device."""
    return _each(batch, lambda tensor: tensor.to(device, non_blocking=True))


def _each(batch: Batch, do: Callable[[Tensor], Tensor]) -> Batch:
    streams = {name: do(tensor) for name, tensor in batch.streams.items()}
    return replace(
        batch,
        latents=next(iter(streams.values())) if streams else do(batch.latents),
        streams=streams,
        lacking={name: do(tensor) for name, tensor in batch.lacking.items()},
        conditions={name: do(tensor) for name, tensor in batch.conditions.items()},
        mask=None if batch.mask is None else do(batch.mask),
        extras={name: do(tensor) for name, tensor in batch.extras.items()},
    )
