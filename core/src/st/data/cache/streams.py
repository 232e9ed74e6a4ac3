"""Streams: samples of which one of a model's several latents cannot be made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from st.errors import StError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from st.data.encoder import LatentCodec
    from st.data.geometry import Geometry
    from st.data.sets.prepare import PreparedSet
    from st.notes import Notes


def tell_lacking(
    one: PreparedSet, stream: str, rows: Sequence[int], why: Mapping[tuple[str, str], str], report: Notes
) -> None:
    """Name the samples of a data set that have none of a stream. why: by data set and key."""
    if not rows:
        return
    for row in rows:
        key = one.index.key(row)
        reason = why.get((one.name, key), "another rank could not decode it")
        report.note(f"{key}: no {stream!r}: {reason}", kind="stream", dataset=one.name, key=key, stream=stream)
    first = one.index.key(rows[0])
    report.warn(
        f"data set {one.name!r}: {len(rows)} of {len(one.index)} samples have no {stream!r}, such as {first!r} "
        f"({why.get((one.name, first), 'another rank could not decode it')}); they train the other streams"
    )


def stacked(
    stream: str, found: Sequence[Tensor | None], codec: LatentCodec, geometry: Geometry, like: Tensor
) -> tuple[Tensor, Tensor | None]:
    """A stream of B samples, (B, ...), zeros for those that lack it, and which these are, (B,) bool; None for none.

    like: of the type that the zeros have where nobody has any. Raises StError for samples of different sizes.
    """
    there = [one for one in found if one is not None]
    if len({one.shape for one in there}) > 1:
        raise StError(
            f"samples at {geometry} have {stream!r} of {' and '.join(str(tuple(s)) for s in {o.shape for o in there})}",
            why="samples of one batch are stacked",
            fix="give all of them one rate: set fps of the data set",
        )
    if there:
        nothing = torch.zeros_like(there[0])
    else:
        shape = codec.latent_shape(geometry)
        assert shape is not None, f"codec {codec.name!r} of a further stream says its latent_shape"
        nothing = like.new_zeros(shape)
    lacks = torch.tensor([one is None for one in found])
    return torch.stack([nothing if one is None else one for one in found]), lacks if lacks.any() else None
