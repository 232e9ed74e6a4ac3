"""Cache: what encoders give, addressed by content, so that nothing is encoded twice and nothing stale is used."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Literal
from uuid import uuid4

from pydantic import Field

from st.errors import StoreUnreadable
from st.options import Options

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from st.data.cache.shard import Contents, ShardIndex
    from st.data.store.store import Store

SHARDS, INDEXES = "shards/", "entries/"


class CacheOptions(Options):
    """Where encoder outputs are kept between runs."""

    url: str = ""
    """Where the cache is; empty is the folder ``cache`` in the run's output. Runs may share one, at the same time."""

    batch: int = Field(8, ge=1)
    """Captions or pictures per call of an encoder. Halved by itself when the device's memory does not suffice."""

    workers: int = Field(4, ge=1)
    """Threads that read and decode pictures while the encoder works."""

    shard_bytes: int = Field(128 * 1024 * 1024, ge=1)
    """Size in bytes at which a shard of the cache is written."""

    shard_seconds: float = Field(60.0, gt=0)
    """Time in seconds after which a shard is written although it is small: what a killed process loses at most."""

    verify: Literal["read", "start"] = "read"
    """When checksums are compared: of an entry when it is first read, or of all of them at the start of a run. "start"
    also reads every file of the data sets again, whatever its size and time."""


@dataclass(frozen=True)
class Origin:
    """What an entry is made from: an encoder, and what it reads of a sample.

    reads: part -> value, each of which changes the key. sample: for people only; a moved file keeps its entry.
    """

    encoder: str
    fingerprint: str
    reads: Mapping[str, str]
    sample: str = ""

    @cached_property
    def key(self) -> str:
        """32 hexadecimal digits, the same on any machine."""
        parts = ["1", self.encoder, self.fingerprint]
        for name, value in self.reads.items():
            # The length in front keeps two parts from being read as one, whatever characters a caption holds.
            parts.append(f"{name}:{len(value)}:{value}")
        return blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()

    def record(self) -> str:
        """JSON of all of it, kept beside the entry for ``st cache explain``."""
        plain = {"encoder": self.encoder, "fingerprint": self.fingerprint, **self.reads}
        return json.dumps({**plain, "sample": self.sample} if self.sample else plain)


@dataclass(slots=True)
class _Pending:
    """Entries of this process that no shard holds yet."""

    entries: dict[str, tuple[dict[str, Tensor], str]] = field(default_factory=dict)
    size_bytes: int = 0
    since: float = 0.0


def _silent(text: str) -> None:
    """Tell nobody."""


class Cache:
    """Encoder outputs on a store. Many processes may read and fill one cache at a time.

    An entry is visible when its shard and then the shard's index are complete, so a killed process leaves nothing half
    there. Every entry is checked against its checksum when a process first reads it; a damaged one counts as missing
    and is passed to ``note``. Reading is safe from several threads, writing is for one.
    """

    def __init__(
        self,
        store: Store,
        *,
        note: Callable[[str], None] = _silent,
        shard_bytes: int = 128 * 1024 * 1024,
        shard_seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self._note, self._clock = note, clock
        self._shard_bytes, self._shard_seconds = shard_bytes, shard_seconds
        self._pending = _Pending()
        self._known: dict[str, ShardIndex] = {}
        self.damaged_indexes: set[str] = set()
        """Keys of indexes of shards that cannot be read: what they name is encoded again."""
        self.refresh()

    def refresh(self) -> None:
        """See what other processes have written since."""
        from st.data.cache.shard import Contents

        self.damaged_indexes.clear()
        sizes = {entry.key: entry.size_bytes for entry in self.store.list(SHARDS)}
        listed = sorted(self.store.list(INDEXES), key=lambda entry: (entry.modified, entry.key))
        names = [entry.key.removeprefix(INDEXES) for entry in listed]
        with ThreadPoolExecutor(8) as pool:
            fresh = pool.map(self._read_index, [name for name in names if name not in self._known])
            indexes = {index.name: index for index in fresh if index is not None} | self._known
        self._known = {name: indexes[name] for name in names if name in indexes}
        for index in self._known.values():
            self._check_size(index, sizes.get(SHARDS + index.name, 0))
        self.contents: Contents = Contents(list(self._known.values()))

    def _read_index(self, name: str) -> ShardIndex | None:
        from st.data.cache.shard import unpack_index

        try:
            return unpack_index(name, self.store.read(INDEXES + name))
        except FileNotFoundError:
            return None
        except (ValueError, StoreUnreadable) as error:
            self.damaged_indexes.add(INDEXES + name)
            self._note(f"cache: index {name!r} is damaged ({error}); what it names is encoded again")
            return None

    def _check_size(self, index: ShardIndex, size_bytes: int) -> None:
        from st.data.cache.shard import DAMAGED

        if size_bytes >= index.size_bytes:
            return
        lost = (index.ends() > size_bytes) & (index.trust != DAMAGED)
        if lost.any():
            index.trust[lost] = DAMAGED
            state = "is cut short" if size_bytes else "is missing"
            self._note(f"cache: shard {index.name!r} {state}; {int(lost.sum())} entries are encoded again")

    def __contains__(self, key: str) -> bool:
        return key in self._pending.entries or next(self.contents.find(key), None) is not None

    def __len__(self) -> int:
        return len(self.contents) + len(self._pending.entries)

    def lacking(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """Which of these keys, by place, have no entry. '' is a key that nothing has. Fast for many keys at a time."""
        import numpy as np

        found = self.contents.has(keys)
        places = [int(place) for place in np.flatnonzero(~found)]
        return np.array([place for place in places if keys[place] not in self._pending.entries], dtype=np.int64)

    def shapes(self, key: str) -> dict[str, tuple[int, ...]] | None:
        """The shapes of an entry's tensors, without reading them; None where there is no entry."""
        if key in self._pending.entries:
            return {name: tuple(tensor.shape) for name, tensor in self._pending.entries[key][0].items()}
        for index, row in self.contents.find(key):
            return {name: tuple(place[1]) for name, place in index.layout(row).items()}
        return None

    def get(self, key: str) -> Mapping[str, Tensor] | None:
        """An entry's tensors, on the CPU; None where it is missing or damaged. They are not to be written to."""
        if key in self._pending.entries:
            return self._pending.entries[key][0]
        for index, row in self.contents.find(key):
            tensors = self._load(index, row)
            if tensors is not None:
                return tensors
        return None

    def _load(self, index: ShardIndex, row: int) -> Mapping[str, Tensor] | None:
        from st.data.cache.shard import UNREAD, VERIFIED, checksum, view

        layout = index.layout(row)
        start = min((place[2] for place in layout.values()), default=0)
        end = max((place[3] for place in layout.values()), default=0)
        buffer = self._bytes(index, start, end)
        if len(buffer) < end - start:
            self._damaged(index, row, "it is cut short")
            return None
        tensors = {name: view(buffer, place, start) for name, place in layout.items()}
        if index.trust[row] == UNREAD:
            if checksum(tensors) != index.checksums[row]:
                self._damaged(index, row, "its bytes are not those that were written")
                return None
            index.trust[row] = VERIFIED
        return tensors

    def _damaged(self, index: ShardIndex, row: int, reason: str) -> None:
        from st.data.cache.shard import DAMAGED

        index.trust[row] = DAMAGED
        self._note(f"cache: entry {row} of shard {index.name!r} is damaged ({reason}); it is encoded again")

    def _bytes(self, index: ShardIndex, start: int, end: int) -> Tensor:
        """Bytes [start, end) of a shard, as many of them as there are."""
        import torch

        # Read, not mapped: where a mapped file is cut short or its disk fails, the process is killed without a word.
        try:
            data = bytearray(self.store.read_range(SHARDS + index.name, start, end - start))
        except FileNotFoundError:
            data = bytearray()
        return torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)

    def put(self, origin: Origin, tensors: Mapping[str, Tensor]) -> None:
        """Add an entry. Other processes see it once its shard is written: large or old enough, or by ``flush``."""
        # A clone, not a view: a row of a batch would keep the whole batch in memory.
        own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        self._add(origin.key, own, origin.record())

    def copy(self, entries: Iterable[tuple[str, Mapping[str, str]]]) -> None:
        """Write entries that are there, given by key and record, once more, and flush."""
        for key, record in entries:
            tensors = self.get(key)
            if tensors is not None:
                self._add(key, dict(tensors), json.dumps(record))
        self.flush()

    def _add(self, key: str, tensors: dict[str, Tensor], record: str) -> None:
        if not self._pending.entries:
            self._pending.since = self._clock()
        self._pending.entries[key] = (tensors, record)
        self._pending.size_bytes += sum(tensor.nbytes for tensor in tensors.values())
        full = self._pending.size_bytes >= self._shard_bytes
        if full or self._clock() - self._pending.since >= self._shard_seconds:
            self.flush()

    def flush(self) -> None:
        """Write what is pending."""
        from st.data.cache.shard import pack, unpack_index

        if not self._pending.entries:
            return
        packed = pack(self._pending.entries)
        name = f"{uuid4().hex}.safetensors"
        self.store.write(SHARDS + name, packed.data)
        self.store.create(INDEXES + name, packed.index)
        self._known[name] = unpack_index(name, packed.index)
        self.contents.add(self._known[name])
        self._pending = _Pending()

    def verify(self) -> Iterator[tuple[str, int, int]]:
        """Read every entry of every shard: (shard, entries, damaged entries) of each."""
        from st.data.cache.shard import DAMAGED, UNREAD

        for index in list(self._known.values()):
            for row in range(len(index)):
                if index.trust[row] == UNREAD:
                    self._load(index, row)
            yield index.name, len(index), int((index.trust == DAMAGED).sum())
