"""Exchange: what each rank has found out of files made known to the others."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Protocol
from uuid import uuid4

import numpy as np
import pyarrow as pa

from st.data.digest import digest_of
from st.data.store.sealed import ENDING, seal, unseal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from st.data.cache.cache import Cache
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
    """Give the others the digests of these rows of data sets by name, and take theirs; rank 0 keeps them.

    Through the cache's store, since what ranks share beyond that is the engine's own affair.
    """
    store, written = cache.store, []
    for one in sets:
        if one.name in fresh:
            written.append(f"{_folder(one)}{uuid4().hex}{ENDING}")
            store.create(written[-1], seal(one.index.take(np.array(sorted(fresh[one.name]))).digest_table()))
    ranks.barrier(stage)
    cache.refresh()
    for one in sets:
        if tables := list(_tables(store, _folder(one))):
            one.index.recall(pa.concat_tables(tables))
            if ranks.rank == 0:
                one.save_digests()
    ranks.barrier(f"{stage}: digests")
    for key in written:
        store.delete(key)


def _tables(store: Store, prefix: str) -> Iterator[pa.Table]:
    for entry in store.list(prefix):
        # Another run that fills the same cache may take its own away at any moment, or have left one half written;
        # files that are in no table are read once more.
        with suppress(FileNotFoundError, ValueError):
            yield unseal(store.read(entry.key))


def _folder(one: PreparedSet) -> str:
    # References have the url of the data set that they belong to; digests of folders of frames go by their rate.
    identity = f"{one.config.options.url} {one.name} {one.config.backend.model_dump_json()}"
    return f"{DIGESTS}{digest_of(identity.encode())}/"
