"""Safetensors files byte by byte: the same tensors and texts give the same file; and its hashes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

LEGACY_OFFSET, LEGACY_BYTES = 0x100000, 0x10000


@dataclass(frozen=True, slots=True)
class Body:
    """The tensors of a file. entries: dtype, shape and place in ``data`` of each, as the header has them."""

    entries: Mapping[str, Any]
    data: memoryview

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Of contiguous tensors on the CPU that share no memory."""
        from safetensors.torch import save

        whole = memoryview(save(dict(tensors)))
        end = 8 + int.from_bytes(whole[:8], "little")
        entries = json.loads(bytes(whole[8:end]))
        entries.pop("__metadata__", None)
        return cls(entries, whole[end:])

    def header(self, metadata: Mapping[str, str]) -> bytes:
        """What comes before the data. Texts are in the order of their names; safetensors' own order is another in each
        process."""
        texts = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
        text = json.dumps({**texts, **self.entries}, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def hashes(self, metadata: Mapping[str, str]) -> dict[str, str]:
        """What a file with this metadata says of itself.

        ``sshs_model_hash``: SHA-256 of the data. ``sshs_legacy_hash``: the first eight digits of that of 64 KiB after
        the first MiB of a file whose header has no texts but those that begin with ``ss_``. Both are
        sd-webui-additional-networks'. ``modelspec.hash_sha256``: that of the data, as ModelSpec 1.0.0 writes it.
        """
        found: dict[str, str] = {}
        whole = hashlib.sha256(self.data).hexdigest()
        trained = {key: text for key, text in metadata.items() if key.startswith("ss_")}
        if trained:
            begin = self.header(trained)
            window = begin[LEGACY_OFFSET : LEGACY_OFFSET + LEGACY_BYTES]
            start = max(LEGACY_OFFSET - len(begin), 0)
            rest = self.data[start : start + LEGACY_BYTES - len(window)]
            legacy = hashlib.sha256(window + bytes(rest)).hexdigest()
            found |= {"sshs_model_hash": whole, "sshs_legacy_hash": legacy[:8]}
        if any(key.startswith("modelspec.") for key in metadata):
            found["modelspec.hash_sha256"] = f"0x{whole}"
        return found
