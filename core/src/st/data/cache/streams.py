"""Streams: samples of which one of a model's several latents cannot be made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from st.errors import StError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from st.data.cache.origins import Origins
    from st.data.encoder import LatentCodec
    from st.data.geometry import Geometry
    from st.data.sets.prepare import PreparedSet
    from st.notes import Notes


def tell_lacking(
    one: PreparedSet,
    stream: str,
    rows: NDArray[np.int64],
    origins: Origins,
    *,
    why: tuple[Mapping[tuple[str, str], str], Mapping[str, str]],
    report: Notes,
) -> None:
    """Note the samples of a data set that have none of a stream, and name them.

    why: by data set and key where a sample could not be read, by the entry's key where it could not be encoded.
    """
    origins.lacking.setdefault(stream, {})[one.name] = set(rows.tolist())
    reasons: list[str] = []
    for row in rows.tolist():
        key, origin = one.index.key(row), origins.media(origins.streams[stream], one, row)
        failed = None if origin is None else why[1].get(origin.key)
        reasons.append(why[0].get((one.name, key), failed or "another rank could not encode it"))
        report.note(f"{key}: no {stream!r}: {reasons[-1]}", kind="stream", dataset=one.name, key=key, stream=stream)
    if reasons:
        report.warn(
            f"data set {one.name!r}: {len(rows)} of {len(one.index)} samples have no {stream!r}, such as "
            f"{one.index.key(int(rows[0]))!r} ({reasons[0]}); they train the other streams"
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
