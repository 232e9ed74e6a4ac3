"""Origins: which cache entries a sample is trained from, and what each of them is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from st.data.cache.cache import Origin
from st.data.geometry import Geometry
from st.data.media.media_reader import DECODERS, WINDOWED
from st.data.sample import reference_name

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
    features: encoders of techniques. streams: the codec of each of several latents by name, the first being ``codec``;
    empty where there is one. masks: data set -> row -> digest of the mask's bytes. lacking: stream -> data set -> rows
    of which its codec can make nothing.
    """

    def __init__(
        self,
        codec: LatentCodec,
        text_encoders: Sequence[Encoder],
        references: Encoder | None = None,
        features: Sequence[Encoder] = (),
        streams: Mapping[str, LatentCodec] = MappingProxyType({}),
    ) -> None:
        self.codec, self.text_encoders, self.features = codec, tuple(text_encoders), tuple(features)
        self.streams, self.further_streams = dict(streams), dict(list(streams.items())[1:])
        self.encoders: tuple[Encoder, ...] = (
            codec,
            *self.further_streams.values(),
            *self.text_encoders,
            *self.features,
        )
        self.references: Encoder = references or codec
        self.masks: dict[str, dict[int, str]] = {}
        self.lacking: dict[str, dict[str, set[int]]] = {}
        self._fingerprints = {encoder.name: encoder.fingerprint for encoder in (*self.encoders, self.references)}

    @property
    def caption_readers(self) -> tuple[Encoder, ...]:
        """The encoders that are given texts alone."""
        return tuple(one for one in self.encoders if not one.reads_samples)

    @property
    def media_readers(self) -> tuple[Encoder, ...]:
        """The encoders that are given pixels or sound: codecs, and feature extractors."""
        return tuple(one for one in self.encoders if not _reads_more(one) and one.reads_samples)

    @property
    def joint_readers(self) -> tuple[Encoder, ...]:
        """The encoders that are given a sample's caption or references together with what else they read of it."""
        return tuple(one for one in self.encoders if _reads_more(one) and one.reads_samples)

    def caption(self, encoder: Encoder, words: Words) -> Origin:
        """What the encoder's entry of a caption is made of."""
        return Origin(encoder.name, self._fingerprints[encoder.name], words.parts(encoder))

    def joint(self, encoder: Encoder, one: PreparedSet, row: int, words: Words) -> Origin | None:
        """What the encoder's entry of a caption and its sample is made of; None while a digest is not known."""
        parts = words.parts(encoder)
        if "pixels" in encoder.reads or "audio" in encoder.reads:
            digest = one.index.digest(row)
            if digest is None:
                return None
            parts |= _place(one.index, row, digest)
        for number, other in enumerate(one.references if "references" in encoder.reads else ()):
            digest = other.index.digest(row)
            if digest is None:
                return None
            name = reference_name(number)
            parts |= {f"{name} {part}": value for part, value in _place(other.index, row, digest).items()}
        return Origin(encoder.name, self._fingerprints[encoder.name], parts, one.index.key(row))

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


def _reads_more(encoder: Encoder) -> bool:
    """Whether it reads more than the file of a sample: a caption, or what the model is shown beside it."""
    return encoder.reads_captions or "references" in encoder.reads


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
