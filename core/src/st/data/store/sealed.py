"""Sealed tables: Parquet behind a digest of its bytes, so that what is read back is what was written or an error."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Sequence

MAGIC = b"st sealed 1\n"
DIGEST_BYTES = 16
ENDING = ".table"
"""Of sealed tables in stores. Not that of Parquet files: other programs would not find one behind the digest."""


def seal(table: pa.Table, dictionary: Sequence[str] | bool = True) -> bytes:
    """A table as bytes. dictionary: columns whose values repeat, or whether any may."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", use_dictionary=dictionary)
    data = bytes(sink.getvalue())
    return MAGIC + _digest(data) + data


def unseal(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The table that ``seal`` wrote, or some of its columns. Raises ValueError where the bytes are not those.

    The digest is over everything, since checksums of Parquet's pages leave out lengths, types and names.
    """
    start = len(MAGIC) + DIGEST_BYTES
    if not data.startswith(MAGIC):
        raise ValueError("it is no sealed table")
    whole = memoryview(data)[start:]
    if _digest(whole) != data[len(MAGIC) : start]:
        raise ValueError("its bytes are not those that were written")
    try:
        # The bytes are here: threads that read ahead gain nothing, and may be torn down while a short command ends.
        file = pq.ParquetFile(pa.BufferReader(pa.py_buffer(whole)), pre_buffer=False)
        table = file.read(columns=None if columns is None else list(columns), use_threads=False)
        # What is not there would be left out.
        return table if columns is None else table.select(list(columns))
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ValueError(f"it is no table: {error}") from error


def _digest(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()
