"""Mending: encode one entry again that is missing or damaged when training comes to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from st.data.cache.encoder_run import EncoderRun
from st.data.cache.inputs import mask_tensor, media_input
from st.data.cache.joint import joint_input
from st.data.cache.origins import MASK, Origins
from st.data.digest import digest_of, digest_of_file
from st.errors import SampleUnreadable

if TYPE_CHECKING:
    from torch import Tensor

    from st.data.cache.cache import Cache, Origin
    from st.data.encoder import Encoder, Input
    from st.data.sets.prepare import PreparedSet
    from st.data.sets.words import Words


class Mender:
    """Encodes single entries on the CPU, where an encoder does not take the memory that the denoiser needs.

    Slow, and rare: entries are checked for being there before training, so that this meets bytes that have changed.
    """

    def __init__(self, origins: Origins, cache: Cache, note: Callable[[str], None]) -> None:
        self._origins, self._cache, self._note = origins, cache, note

    def caption(self, encoder: Encoder, words: Words) -> Mapping[str, Tensor]:
        """The encoder's entry of a caption, with what it reads beside it."""
        return self._mend(encoder, self._origins.caption(encoder, words), words.input(encoder))

    def joint(self, encoder: Encoder, one: PreparedSet, row: int, words: Words) -> Mapping[str, Tensor]:
        """The encoder's entry of a sample and its caption. Raises SampleUnreadable, also where a file has changed."""
        origin = self._origins.joint(encoder, one, row, words)
        # Of what has changed meanwhile, no digest that is taken now is the one that names the entry.
        if origin is None or any(_has_changed(part, row) for part in (one, *one.references)):
            raise SampleUnreadable(one.index.key(row), "the file has changed since training began")
        return self._mend(encoder, origin, joint_input(one, row, encoder, words))

    def media(self, encoder: Encoder, one: PreparedSet, row: int) -> Mapping[str, Tensor]:
        """The encoder's entry of a sample. Raises SampleUnreadable, also where the file is not the one of before."""
        origin = self._origins.media(encoder, one, row)
        with one.open(row) as file:
            if origin is None or digest_of_file(file) != origin.reads["bytes"]:
                raise SampleUnreadable(one.index.key(row), "the file has changed since training began")
            given = media_input(one, row, file, encoder)
        return self._mend(encoder, origin, given)

    def mask(self, one: PreparedSet, row: int, height: int, width: int) -> Mapping[str, Tensor]:
        """The entry of a sample's mask. Raises SampleUnreadable."""
        origin, key = self._origins.mask(one, row, height, width), one.index.extras(row)[MASK]
        data = one.backend.read(key)
        if origin is None or digest_of(data) != origin.reads["bytes"]:
            raise SampleUnreadable(key, "the file has changed since training began")
        return self._kept(origin, {MASK: mask_tensor(one, row, data, height, width)})

    def _mend(self, encoder: Encoder, origin: Origin, given: Input) -> Mapping[str, Tensor]:
        with encoder.open(torch.device("cpu")) as encode:
            (answer,) = EncoderRun(encoder, encode, 1)([given])
        if isinstance(answer, SampleUnreadable):
            raise answer
        return self._kept(origin, answer)

    def _kept(self, origin: Origin, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        self._cache.put(origin, tensors)
        self._cache.flush()
        self._note(
            f"cache: the entry of {origin.sample or origin.reads.get('caption')!r} ({origin.encoder}) is encoded again"
        )
        tensors = self._cache.get(origin.key) or tensors
        return tensors


def _has_changed(one: PreparedSet, row: int) -> bool:
    with one.open(row) as file:
        return digest_of_file(file) != one.index.digest(row)
