"""Origins: which cache entries a sample is trained from, and what each of them is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from st.data.cache.cache import Origin
from st.data.geometry import Geometry
from st.data.media.media_reader import DECODERS, WINDOWED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from st.data.cache.cache import Cache
    from st.data.encoder import Encoder, LatentCodec
    from st.data.sets.prepare import PreparedSet
    from st.data.sets.words import Words
    from st.data.source.index import Index

MASK = "mask"


class Origins:
    """What an entry of each encoder is made of, for every sample of a run.

    An encoder's fingerprint is asked for once. references: what encodes reference pictures; the codec where it is None.
    features: encoders of techniques. masks: data set -> row -> digest of the mask's bytes.
    """

    def __init__(
        self,
        codec: LatentCodec,
        text_encoders: Sequence[Encoder],
        references: Encoder | None = None,
        features: Sequence[Encoder] = (),
    ) -> None:
        self.codec, self.text_encoders, self.features = codec, tuple(text_encoders), tuple(features)
        self.encoders: tuple[Encoder, ...] = (codec, *self.text_encoders, *self.features)
        self.references: Encoder = references or codec
        self.masks: dict[str, dict[int, str]] = {}
        self._fingerprints = {encoder.name: encoder.fingerprint for encoder in (*self.encoders, self.references)}

    @property
    def caption_readers(self) -> tuple[Encoder, ...]:
        """The encoders that are given captions."""
        return tuple(encoder for encoder in self.encoders if encoder.reads == "caption")

    @property
    def media_readers(self) -> tuple[Encoder, ...]:
        """The encoders that are given pixels or sound: the codec, and feature extractors."""
        return tuple(encoder for encoder in self.encoders if encoder.reads != "caption")

    def caption(self, encoder: Encoder, words: Words) -> Origin:
        """What the encoder's entry of a caption is made of."""
        facts = {f"fact {name}": value for name, value in words.read_by(encoder).items()}
        return Origin(encoder.name, self._fingerprints[encoder.name], {"caption": words.caption, **facts})

    def media(self, encoder: Encoder, one: PreparedSet, row: int) -> Origin | None:
        """What the encoder's entry of a sample is made of; None while the digest of the sample's bytes is not known."""
        index = one.index
        digest = index.digest(row)
        if digest is None:
            return None
        reads = _place(index, row, digest)
        if one.config.options.keep_silence and "audio" in encoder.reads:
            # Entries of silent sounds must not be found by data sets that leave them out.
            reads["silence"] = "kept"
        return Origin(encoder.name, self._fingerprints[encoder.name], reads, index.key(row))

    def mask(self, one: PreparedSet, row: int, height: int, width: int) -> Origin | None:
        """What the entry of a sample's mask is made of, at latents of a size; None where it has no mask."""
        digest = self.masks.get(one.config.name, {}).get(row)
        if digest is None:
            return None
        reads = {**_place(one.index, row, digest), "latents": f"{width}x{height}"}
        return Origin(MASK, "1", reads, one.index.extras(row)[MASK])


def _place(index: Index, row: int, digest: str) -> dict[str, str]:
    # From the columns: a Fit object costs more than the rest of a key.
    fits = index.fits
    assert fits is not None, "a prepared data set has fits"
    kind = index.kind(row)
    geometry = Geometry(*(column[row].item() for column in (fits.height, fits.width, fits.frames, fits.seconds)))
    place = {
        "bytes": digest,
        "geometry": geometry.label,
        "resized": f"{fits.resized_width[row]}x{fits.resized_height[row]}",
        "crop": f"{fits.top[row]},{fits.left[row]}",
        "decoder": DECODERS[kind],
    }
    if kind in WINDOWED:
        place["window"] = f"{fits.start[row]:.6f}s at {fits.rate[row]:.6f}/s"
    return place


def latent_size(origins: Origins, cache: Cache, one: PreparedSet, row: int) -> tuple[int, int] | None:
    """(H, W) of a sample's latents, without reading them; None where they are not in the cache."""
    origin = origins.media(origins.codec, one, row)
    shapes = cache.shapes(origin.key) if origin else None
    return None if shapes is None else (shapes["latents"][-2], shapes["latents"][-1])


def masked_rows(one: PreparedSet, rows: NDArray[np.int64] | None = None) -> list[int]:
    """The rows with a mask, of those given or of all buckets."""
    extras = one.index.table["extras"]
    if extras.null_count == len(extras):
        return []
    if rows is None:
        rows = np.unique(np.concatenate([bucket.rows for bucket in one.buckets] or [np.zeros(0, np.int64)]))
    return [int(row) for row in rows if MASK in one.index.extras(int(row))]
