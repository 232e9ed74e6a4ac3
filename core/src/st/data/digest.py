"""Digests: what stands for a file's bytes in cache keys."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import BinaryIO

PIECE_BYTES = 1 << 20


def digest_of(data: bytes) -> str:
    """BLAKE2b of some bytes, 128 bits, as 32 hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def digest_of_file(file: BinaryIO) -> str:
    """The same of an open file's bytes, from its beginning and a piece at a time."""
    file.seek(0)
    digest = hashlib.blake2b(digest_size=16)
    while piece := file.read(PIECE_BYTES):
        digest.update(piece)
    return digest.hexdigest()
