"""Shard: many cache entries in one safetensors file, and the index file that makes them visible."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from st.data.store.sealed import seal, unseal

FORMAT = "2"
KEY_BYTES = 16
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of types in safetensors files."""

Layout = dict[str, tuple[str, list[int], int, int]]
"""Where an entry's tensors are: name -> (dtype, shape, first byte, end) counted from the beginning of the shard."""


UNREAD, VERIFIED, DAMAGED = range(3)
"""What is known of an entry's bytes. An entry is verified when a process reads it for the first time."""


@dataclass(frozen=True, slots=True)
class Packed:
    """The two files of a shard. ``index`` is written when ``data`` is complete: what no index names does not exist."""

    data: bytes
    index: bytes


@dataclass(frozen=True, slots=True, eq=False)
class ShardIndex:
    """What one shard holds, by columns. keys: (n, 2) the halves of each key. trust: (n,), this process's view."""

    name: str
    size_bytes: int
    keys: NDArray[np.uint64]
    checksums: NDArray[np.uint32]
    layouts: pa.Array
    trust: NDArray[np.uint8] = field(repr=False)

    def __len__(self) -> int:
        return len(self.checksums)

    def key(self, row: int) -> str:
        """The hexadecimal key of one entry."""
        return "".join(f"{int(half):016x}" for half in self.keys[row])

    def layout(self, row: int) -> Layout:
        """Where the tensors of one entry are."""
        return {name: tuple(place) for name, place in json.loads(self.layouts[row].as_py()).items()}

    def ends(self) -> NDArray[np.int64]:
        """(n,) the end of each entry's last byte, to be compared with the size of a shard that was cut short."""
        return np.array([max((place[3] for place in self.layout(row).values()), default=0) for row in range(len(self))])


def halves(keys: Sequence[str]) -> NDArray[np.uint64]:
    """Hexadecimal keys as (n, 2) whole numbers."""
    return np.frombuffer(bytes.fromhex("".join(keys)), dtype=">u8").reshape(-1, 2).astype(np.uint64)


def checksum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 over the tensors' bytes in the order of their names. About 2 GB/s, which a first read can spend."""
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(_bytes(tensors[name]), value)
    return value


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def pack(entries: Mapping[str, tuple[Mapping[str, Tensor], str]]) -> Packed:
    """The files of a shard with these entries: key -> (contiguous tensors on the CPU, record as JSON)."""
    data, places = _shard_file({key: tensors for key, (tensors, _) in entries.items()})
    columns: dict[str, list[object]] = {"key": [], "checksum": [], "layout": [], "record": []}
    for key, (tensors, record) in entries.items():
        columns["key"].append(bytes.fromhex(key))
        columns["checksum"].append(checksum(tensors))
        columns["layout"].append(json.dumps(places[key]))
        columns["record"].append(record)
    return Packed(data, _index_file(columns, len(data)))


def _shard_file(entries: Mapping[str, Mapping[str, Tensor]]) -> tuple[bytes, dict[str, Layout]]:
    """A safetensors file in which each entry's tensors are together, and where they are.

    Written here because the library's writer sorts by dtype, which would tear an entry apart: one read of a range is
    one entry, and a shard that was cut short loses its last entries only.
    """
    header: dict[str, object] = {}
    layouts: dict[str, Layout] = {}
    pieces: list[memoryview] = []
    end = 0
    for key, tensors in entries.items():
        layouts[key] = {}
        # Wide types first, so that whatever follows in the entry is aligned if its beginning is.
        for name, tensor in sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize):
            start, end = end, end + tensor.nbytes
            header[f"{key}.{name}"] = {
                "dtype": DTYPES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [start, end],
            }
            layouts[key][name] = (str(tensor.dtype).removeprefix("torch."), list(tensor.shape), start, end)
            pieces.append(_bytes(tensor))
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    offset = 8 + len(text)
    moved = {
        key: {name: (dtype, shape, start + offset, stop + offset) for name, (dtype, shape, start, stop) in one.items()}
        for key, one in layouts.items()
    }
    return b"".join([len(text).to_bytes(8, "little"), text, *pieces]), moved


def _index_file(columns: Mapping[str, list[object]], size_bytes: int) -> bytes:
    schema = pa.schema(
        [("key", pa.binary(KEY_BYTES)), ("checksum", pa.uint32()), ("layout", pa.string()), ("record", pa.string())],
        metadata={"format": FORMAT, "size_bytes": str(size_bytes)},
    )
    return seal(pa.table(dict(columns), schema=schema), dictionary=["record"])


def unpack_index(name: str, data: bytes) -> ShardIndex:
    """The index that ``pack`` wrote. Raises ValueError where the bytes are not those."""
    table, metadata = _table(data, ["key", "checksum", "layout"])
    keys = b"".join(table["key"].to_pylist())
    return ShardIndex(
        name,
        int(metadata[b"size_bytes"]),
        np.frombuffer(keys, dtype=">u8").reshape(-1, 2).astype(np.uint64),
        table["checksum"].to_numpy(),
        table["layout"].combine_chunks(),
        np.zeros(len(table), dtype=np.uint8),
    )


def unpack_records(data: bytes) -> list[dict[str, str]]:
    """What each entry was made from, in the order of the index's rows. Raises ValueError for damaged bytes."""
    return [json.loads(record) for record in _table(data, ["record"])[0]["record"].to_pylist()]


def _table(data: bytes, columns: list[str]) -> tuple[pa.Table, Mapping[bytes, bytes]]:
    table = unseal(data, columns)
    metadata = table.schema.metadata or {}
    if metadata.get(b"format") != FORMAT.encode():
        raise ValueError(f"an index of format {metadata.get(b'format', b'')!r}")
    return table, metadata


def view(buffer: Tensor, place: tuple[str, list[int], int, int], offset: int = 0) -> Tensor:
    """One tensor of a shard whose bytes from ``offset`` on are ``buffer``, (n,) uint8; a view of it where aligned."""
    dtype_name, shape, start, stop = place
    dtype: torch.dtype = getattr(torch, dtype_name)
    piece = buffer[start - offset : stop - offset]
    if piece.storage_offset() % dtype.itemsize:
        piece = piece.clone()
    return piece.view(dtype).reshape(shape)


class Contents:
    """Where every entry of a cache is: the indexes of all shards, the newest copy of an entry first.

    indexes: oldest first. Keys are sorted in runs, each at least twice as long as the next newer one, so that a shard
    that is added costs what the runs it is merged with hold, and not a sort of all that there is.
    """

    def __init__(self, indexes: Sequence[ShardIndex]) -> None:
        self._runs: list[_Run] = [_Run(indexes)] if indexes else []

    @property
    def indexes(self) -> tuple[ShardIndex, ...]:
        """The indexes of all shards, oldest first."""
        return tuple(index for run in self._runs for index in run.indexes)

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def add(self, index: ShardIndex) -> None:
        """One more shard, newer than all others."""
        newest = [index]
        while self._runs and len(self._runs[-1]) < 2 * sum(map(len, newest)):
            newest = [*self._runs.pop().indexes, *newest]
        # A new list: another thread may be going through the one that was.
        self._runs = [*self._runs, _Run(newest)]

    def has(self, keys: Sequence[str]) -> NDArray[np.bool_]:
        """Which of these keys have an undamaged entry, (n,); '' is a key that nothing has."""
        found = np.zeros(len(keys), dtype=np.bool_)
        if not len(self) or not keys:
            return found
        wanted = halves([key or "0" * 2 * KEY_BYTES for key in keys])
        for run in self._runs:
            found |= run.has(wanted)
        return found

    def find(self, key: str) -> Iterator[tuple[ShardIndex, int]]:
        """Every copy of an entry that is not known to be damaged, the newest first."""
        wanted = halves([key])[0]
        for run in reversed(self._runs):
            yield from run.find(wanted)


class _Run:
    """Indexes whose keys are sorted together. indexes: oldest first."""

    def __init__(self, indexes: Sequence[ShardIndex]) -> None:
        self.indexes = tuple(indexes)
        empty = np.zeros((0, 2), dtype=np.uint64)
        keys = np.concatenate([empty, *(index.keys for index in self.indexes)])
        shard = np.repeat(np.arange(len(self.indexes)), [len(index) for index in self.indexes]).astype(np.int32)
        row = np.concatenate(
            [np.zeros(0, np.int32), *(np.arange(len(index), dtype=np.int32) for index in self.indexes)]
        )
        self._start = np.cumsum([0, *(len(index) for index in self.indexes)])
        order = np.lexsort((-shard, keys[:, 1], keys[:, 0]))
        self._keys, self._shard, self._row = keys[order], shard[order], row[order]

    def __len__(self) -> int:
        return len(self._row)

    def has(self, wanted: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of these keys, (n, 2), have an undamaged entry, (n,)."""
        found = np.zeros(len(wanted), dtype=np.bool_)
        if not len(self):
            return found
        places = np.minimum(np.searchsorted(self._keys[:, 0], wanted[:, 0]), len(self) - 1)
        trust = np.concatenate([index.trust for index in self.indexes])[self._start[self._shard] + self._row]
        found[:] = (self._keys[places] == wanted).all(axis=1) & (trust[places] != DAMAGED)
        # Where the first candidate is another key's or damaged, a further copy may still be there.
        for place in np.flatnonzero(~found & (self._keys[places, 0] == wanted[:, 0])):
            found[place] = next(self.find(wanted[place]), None) is not None
        return found

    def find(self, wanted: NDArray[np.uint64]) -> Iterator[tuple[ShardIndex, int]]:
        """Every copy of an entry, by its key's halves (2,), that is not known to be damaged, the newest first."""
        high, low = wanted
        position = int(np.searchsorted(self._keys[:, 0], high))
        while position < len(self) and self._keys[position, 0] == high:
            index, row = self.indexes[self._shard[position]], int(self._row[position])
            if self._keys[position, 1] == low and index.trust[row] != DAMAGED:
                yield index, row
            position += 1
