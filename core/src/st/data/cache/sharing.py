"""Sharing: which rank encodes what, in which batches, and how ranks learn what the others have read."""

from __future__ import annotations

from contextlib import suppress
from hashlib import blake2b
from typing import TYPE_CHECKING, Protocol
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from st.data.digest import digest_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from st.data.cache.cache import Cache, Origin
    from st.data.encoder import Input
    from st.data.sets.prepare import PreparedSet
    from st.data.store.store import Store


DIGESTS = "digests/"


class Sharers(Protocol):
    """What encoding needs to know of the other ranks."""

    rank: int
    size: int

    def barrier(self, stage: str) -> None:
        """Wait for the others."""


def exchange_digests(
    sets: Sequence[PreparedSet], fresh: Mapping[str, list[int]], cache: Cache, ranks: Sharers, stage: str
) -> None:
    """Tell the other ranks the digests of rows that this one has read, by data set, and learn theirs.

    Through the cache's store, since what ranks share beyond that is the engine's own affair.
    """
    store, written = cache.store, []
    for one in sets:
        if one.name in fresh:
            written.append(f"{_digests_of(one)}{uuid4().hex}.parquet")
            sink = pa.BufferOutputStream()
            pq.write_table(one.index.take(np.array(sorted(fresh[one.name]))).digest_table(), sink)
            store.create(written[-1], bytes(sink.getvalue()))
    ranks.barrier(stage)
    cache.refresh()
    for one in sets:
        if tables := list(_tables(store, _digests_of(one))):
            one.index.recall(pa.concat_tables(tables))
            if ranks.rank == 0:
                one.save_digests()
    ranks.barrier(f"{stage}: digests")
    for key in written:
        store.delete(key)


def _tables(store: Store, prefix: str) -> Iterator[pa.Table]:
    for entry in store.list(prefix):
        # Another run that fills the same cache may take its own away at any moment.
        with suppress(FileNotFoundError):
            yield pq.read_table(pa.BufferReader(store.read(entry.key)))


def _digests_of(one: PreparedSet) -> str:
    # References have the url of the data set that they belong to.
    return f"{DIGESTS}{digest_of(f'{one.config.options.url} {one.name}'.encode())}/"


def owners(sizes: NDArray[np.int64], ranks: int) -> NDArray[np.int64]:
    """Which rank encodes each of these files, (N,), from their sizes in bytes.

    Files of one size have one owner, so that two copies of a file are encoded once without the ranks asking one
    another. Where so many share a size that one rank would do most of the work (uncompressed pictures), they are dealt
    out, and copies among those may be encoded on two ranks.
    """
    if ranks == 1:
        return np.zeros(len(sizes), dtype=np.int64)
    distinct, place, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    owner = np.array([int(blake2b(str(size).encode(), digest_size=4).hexdigest(), 16) % ranks for size in distinct])
    crowded = counts > max(8, len(sizes) // (4 * ranks))
    return np.where(crowded[place], np.arange(len(sizes)) % ranks, owner[place])


def batches_of(pairs: Iterable[tuple[Origin, Input]], size: int) -> Iterator[list[tuple[Origin, Input]]]:
    """Consecutive inputs of one geometry, at most ``size`` of them."""
    batch: list[tuple[Origin, Input]] = []
    for pair in pairs:
        if batch and (len(batch) == size or _shape(batch[0][1]) != _shape(pair[1])):
            yield batch
            batch = []
        batch.append(pair)
    if batch:
        yield batch


def _shape(given: Input) -> tuple[object, ...]:
    """What inputs of one call share."""
    return (given.geometry, *(tuple(one.shape) for one in given.references))
