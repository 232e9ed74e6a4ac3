"""Contents: one digest of everything in a data set that a run learns from."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

if TYPE_CHECKING:
    import pyarrow as pa

    from st.data.source.index import Index


def contents_digest(index: Index) -> str:
    """Of keys, captions and the digests of files, in the order of the index; however its table came about."""
    digest = hashlib.blake2b(digest_size=16)
    known = index.digest_table()
    captions = _one(index.table["captions"])
    counts = pc.fill_null(pc.list_value_length(captions), -1)
    for texts in (_one(index.table["key"]), pc.list_flatten(captions), _one(known["key"])):
        _add_texts(digest, texts)
    digest.update(np.asarray(counts).astype(np.int64).tobytes())
    for one in known["digest"].chunks:
        size = one.type.byte_width
        digest.update(one.buffers()[1][one.offset * size : (one.offset + len(one)) * size])
    return digest.hexdigest()


def _add_texts(digest: Any, texts: pa.Array) -> None:
    """Lengths and bytes of an array of large strings; a null is told from an empty text."""
    digest.update(np.asarray(pc.fill_null(pc.binary_length(texts), -1)).astype(np.int64).tobytes())
    _, places, data = texts.buffers()
    if len(texts) and data is not None:
        bounds = np.frombuffer(places, np.int64)[texts.offset : texts.offset + len(texts) + 1]
        digest.update(data[bounds[0] : bounds[-1]])


def _one(column: pa.ChunkedArray) -> Any:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
