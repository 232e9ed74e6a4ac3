"""Rows: a split as samples. Only the columns that are asked for are touched, and pictures are not decoded."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from st.data.media.header import PREFIX_BYTES, read_header
from st.data.source.index import SCHEMA
from st.errors import DataUnusable, SampleUnreadable
from st_huggingface.conditions import Condition, column, missing
from st_huggingface.loading import load

if TYPE_CHECKING:
    from collections.abc import Callable

    from datasets import Dataset  # type: ignore[import-untyped]
    from numpy.typing import NDArray

    from st_huggingface.table import HubTableOptions

    Unreadable = Callable[[str, str], None]

_CHUNK = 256
_DIGITS = 8


class Rows:
    """A split, and which of its columns are pictures, captions and sizes. Thread-safe."""

    def __init__(self, split: Dataset, identity: str, facts: dict[str, str], options: HubTableOptions) -> None:
        self.options, self.facts = options, facts
        # Arrow's own values: nothing is decoded, and a slice of a memory-mapped file is not copied.
        self._split = split.with_format("arrow")
        self.stamp = float(int(blake2b(identity.encode(), digest_size=6).hexdigest(), 16))
        self.media = {"": options.image_column}
        self.media |= {
            name: chosen
            for name, chosen in (("mask", options.mask_column), ("reference", options.reference_column))
            if chosen
        }
        self._check()

    @classmethod
    def open(cls, name: str, options: HubTableOptions) -> Rows:
        """Load a split, which downloads what is not on this machine yet. Raises DataUnusable, StoreUnreachable."""
        loaded = load(name, options)
        return cls(loaded.split, loaded.identity, loaded.facts, options)

    def _check(self) -> None:
        options, names = self.options, self._split.column_names
        if bool(options.width_column) != bool(options.height_column):
            raise DataUnusable("width_column and height_column go together.", fix="Set both or neither.")
        wanted = [*self.media.values(), options.caption_column, options.fallback_caption_column]
        wanted += [options.width_column, options.height_column, *(c.column for c in self._conditions)]
        for name in filter(None, wanted):
            if name not in names and name.partition(".")[0] not in names:
                raise missing(name, names)

    @property
    def _conditions(self) -> list[Condition]:
        return [Condition.parse(text) for text in self.options.filters]

    def selected(self) -> NDArray[np.int64]:
        """The numbers of the rows for which every filter holds."""
        rows = np.arange(len(self._split))
        if not self._conditions:
            return rows
        names = sorted({self._owner(condition.column) for condition in self._conditions})
        table = self._split.select_columns(names)[:]
        for condition in self._conditions:
            rows = rows[np.asarray(condition.holds(table))[rows]]
        return rows

    def listing(self, known: pa.Table | None, unreadable: Unreadable) -> pa.Table:
        """A table of samples, sorted by key. Rows that ``known`` has of the same identity are taken from it."""
        rows = self.selected()
        kept = SCHEMA.empty_table()
        if known is not None and known.schema.equals(SCHEMA):
            kept = known.filter(pc.equal(known["modified"], self.stamp))
            keys = pa.array([_key(row) for row in rows], pa.large_string())
            kept = kept.filter(pc.is_in(kept["key"], value_set=keys))
            rows = rows[~np.asarray(pc.is_in(keys, value_set=kept["key"].combine_chunks()))]
        batches = [self._batch(rows[start : start + _CHUNK], unreadable) for start in range(0, len(rows), _CHUNK)]
        table = pa.concat_tables([kept, pa.Table.from_batches(batches, schema=SCHEMA)]).combine_chunks()
        if not len(table):
            raise DataUnusable(f"none of {len(self._split)} rows can be used.", fix="Change filters, or the split.")
        return table.take(pc.sort_indices(table["key"])) if len(kept) and batches else table

    def _batch(self, rows: NDArray[np.int64], unreadable: Unreadable) -> pa.RecordBatch:
        options = self.options
        names = [*self.media.values(), options.caption_column, options.fallback_caption_column]
        names += [options.width_column, options.height_column]
        table = self._split.select_columns(sorted({self._owner(name) for name in names if name})).select(rows)[:]
        pictures = _Pictures(column(table, options.image_column))
        captions = self._captions(table)
        sizes = self._sizes(table, rows, pictures, unreadable)
        good = [place for place, size in enumerate(sizes) if size is not None]
        others = {name: _Pictures(column(table, chosen)) for name, chosen in self.media.items() if name}
        columns: dict[str, Any] = {
            "key": [_key(rows[place]) for place in good],
            "kind": np.zeros(len(good), np.int8),
            "width": [size.width for size in sizes if size is not None],
            "height": [size.height for size in sizes if size is not None],
            "frames": np.ones(len(good), np.int32),
            "fps": np.zeros(len(good), np.float32),
            "seconds": np.zeros(len(good), np.float32),
            "size_bytes": [size.size_bytes for size in sizes if size is not None],
            "modified": np.full(len(good), self.stamp),
            "passes": np.ones(len(good), np.int32),
            "captions": [captions[place] for place in good],
            "facts": [None] * len(good),
            "extras": [
                [(name, f"{name}:{_key(rows[place])}") for name, found in others.items() if found.is_there(place)]
                or None
                for place in good
            ],
        }
        return pa.record_batch([pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)

    def _captions(self, table: pa.Table) -> list[tuple[str, ...]]:
        names = filter(None, (self.options.caption_column, self.options.fallback_caption_column))
        found = [column(table, name).to_pylist() for name in names]
        return [next(filter(None, map(_texts, values)), ()) for values in zip(*found, strict=True)] or [()] * len(table)

    def _sizes(
        self, table: pa.Table, rows: NDArray[np.int64], pictures: _Pictures, unreadable: Unreadable
    ) -> list[_Size | None]:
        if self.options.width_column:
            widths = column(table, self.options.width_column).to_pylist()
            heights = column(table, self.options.height_column).to_pylist()
        found: list[_Size | None] = []
        for place, row in enumerate(rows):
            key = _key(row)
            try:
                if self.options.width_column and widths[place] and heights[place]:
                    found.append(_Size(widths[place], heights[place], pictures.size_bytes(place)))
                else:
                    found.append(_Size(*_measured(key, pictures, place), pictures.size_bytes(place)))
            except SampleUnreadable as error:
                unreadable(error.key, error.reason)
                found.append(None)
        return found

    def read(self, key: str) -> bytes:
        """The bytes of a row's picture, or of its mask or reference. Raises SampleUnreadable."""
        name, colon, number = key.rpartition(":")
        chosen = self.media.get(name) if bool(colon) == bool(name) else None
        if chosen is None or not number.isdecimal() or int(number) >= len(self._split):
            raise SampleUnreadable(key, "there is no such row")
        row = int(number)
        table = self._split.select_columns([self._owner(chosen)])[row : row + 1]
        return _Pictures(column(table, chosen)).read(key, 0)

    def _owner(self, name: str) -> str:
        """The column that a dotted name is inside of."""
        return name if name in self._split.column_names else name.partition(".")[0]


class _Size(NamedTuple):
    width: int
    height: int
    size_bytes: int


class _Pictures:
    """Files of pictures in a column: bytes, or a struct of bytes and of the path where they are instead."""

    def __init__(self, pictures: Any) -> None:
        pictures = pictures.combine_chunks() if isinstance(pictures, pa.ChunkedArray) else pictures
        if pa.types.is_struct(pictures.type) and {"bytes", "path"} <= {field.name for field in pictures.type}:
            self._bytes, self._paths = pc.struct_field(pictures, "bytes"), pc.struct_field(pictures, "path")
        elif pa.types.is_binary(pictures.type) or pa.types.is_large_binary(pictures.type):
            self._bytes, self._paths = pictures, None
        else:
            raise DataUnusable(
                f"a column of {pictures.type} holds no pictures.",
                fix="Set image_column to a column of the type Image, or of bytes of picture files.",
            )

    def is_there(self, place: int) -> bool:
        return self._bytes[place].is_valid or self._path(place) is not None

    def _path(self, place: int) -> str | None:
        return None if self._paths is None else self._paths[place].as_py()

    def size_bytes(self, place: int) -> int:
        """0 where the bytes are elsewhere."""
        return len(self._bytes[place].as_buffer()) if self._bytes[place].is_valid else 0

    def prefix(self, key: str, place: int) -> bytes:
        if self._bytes[place].is_valid:
            return bytes(memoryview(self._bytes[place].as_buffer())[:PREFIX_BYTES])
        return self.read(key, place)

    def read(self, key: str, place: int) -> bytes:
        if self._bytes[place].is_valid:
            return bytes(memoryview(self._bytes[place].as_buffer()))
        path = self._path(place)
        if path is None:
            raise SampleUnreadable(key, "the row has no picture")
        try:
            with fsspec.open(path, "rb") as file:
                return bytes(file.read())
        except (OSError, ValueError) as error:
            raise SampleUnreadable(key, f"{path!r} cannot be read: {error}") from error


def _measured(key: str, pictures: _Pictures, place: int) -> tuple[int, int]:
    data = pictures.prefix(key, place)
    header = read_header(key, data, complete=len(data) < PREFIX_BYTES)
    header = header or read_header(key, pictures.read(key, place))
    assert header is not None
    return header.upright


def _key(row: Any) -> str:
    return f"{int(row):0{_DIGITS}}"


def _extras(key: str, names: list[str]) -> list[tuple[str, str]] | None:
    return [(name, f"{name}:{key}") for name in names] or None


def _texts(value: Any) -> tuple[str, ...]:
    """Captions of a cell: a text or a list of texts; empty ones do not count."""
    values = value if isinstance(value, list) else [value]
    return tuple(text for text in values if isinstance(text, str) and text.strip())
