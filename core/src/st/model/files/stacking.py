"""Stacking: several low-rank updates as one of a larger layer, and back.

A layer that stands for several stacks their outputs. One update of it holds theirs on a diagonal of blocks: the rows of
``down`` are stacked, ``up`` is zero where one's rank meets another's outputs. What has no update is zero there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from st.errors import StError
from st.model.files.formats import DOWN, MAGNITUDE, UP, LoraShape

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Update:
    """alpha / rank * up @ down. down: (rank, in). up: (out, rank). magnitude: (out,) with DoRA."""

    down: Tensor
    up: Tensor
    alpha: float
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def read_updates(state: Mapping[str, Tensor], shape: LoraShape) -> dict[str, Update]:
    """Updates by module path."""
    return {
        path: Update(
            state[f"{path}.{DOWN}"], state[f"{path}.{UP}"], shape.alphas[path], state.get(f"{path}.{MAGNITUDE}")
        )
        for path in shape.ranks
    }


def write_updates(updates: Mapping[str, Update]) -> tuple[dict[str, Tensor], LoraShape]:
    """The inverse of ``read_updates``."""
    state = {}
    for path, one in updates.items():
        state[f"{path}.{DOWN}"], state[f"{path}.{UP}"] = one.down, one.up
        if one.magnitude is not None:
            state[f"{path}.{MAGNITUDE}"] = one.magnitude
    ranks = {path: one.rank for path, one in updates.items()}
    return state, LoraShape(ranks, {path: one.alpha for path, one in updates.items()})


def stack(parts: Sequence[Update | None], shares: Sequence[int]) -> Update:
    """One update of the layer that stands for several. shares: their outputs, relative to one another.

    Each part takes as much rank as the largest has, so that readers that know no more than how many parts there are can
    take it apart. The scale is the first part's; another part's own goes into its ``up``. Raises StError where only
    some of the parts are DoRA: what is not there has no magnitude.
    """
    import torch

    present = [part for part in parts if part is not None]
    first, rank = present[0], max(part.rank for part in present)
    unit = next(len(part.up) // share for part, share in zip(parts, shares, strict=True) if part is not None)
    down = first.down.new_zeros(rank * len(parts), first.down.shape[1])
    up = first.up.new_zeros(unit * sum(shares), rank * len(parts))
    row = 0
    for place, (part, share) in enumerate(zip(parts, shares, strict=True)):
        if part is not None:
            column = place * rank
            down[column : column + part.rank] = part.down
            scaled = part.up if part.scale == first.scale else part.up * (part.scale / first.scale)
            up[row : row + unit * share, column : column + part.rank] = scaled
        row += unit * share
    magnitudes = [part.magnitude for part in present if part.magnitude is not None]
    if magnitudes and len(magnitudes) < len(parts):
        raise StError(
            "DoRA on some of the layers that are one in this format cannot be written",
            fix='name all of query, key and value in adapter.targets, or set adapter.format to "diffusers"',
        )
    # A product before the division: alpha comes back as it was where all ranks are alike.
    alpha = first.alpha * len(parts) * rank / first.rank
    return Update(down, up, alpha, torch.cat(magnitudes) if magnitudes else None)


def unstack(one: Update, shares: Sequence[int]) -> list[Update | None]:
    """The inverse of ``stack``; None for parts without an update.

    What is not on a diagonal of blocks is one ``down`` for all: each part gets it, with its own rows of ``up``.
    """
    unit = len(one.up) // sum(shares)
    ends = list(accumulate(unit * share for share in shares))
    rows = [slice(end - unit * share, end) for end, share in zip(ends, shares, strict=True)]
    ups = [one.up[part] for part in rows]
    magnitudes = [None if one.magnitude is None else one.magnitude[part] for part in rows]
    rank = one.rank // len(shares)
    if one.rank % len(shares) or not _is_diagonal(ups, rank):
        return [Update(one.down.clone(), up.clone(), one.alpha, kept) for up, kept in zip(ups, magnitudes, strict=True)]
    found: list[Update | None] = []
    for place, (up, kept) in enumerate(zip(ups, magnitudes, strict=True)):
        block = slice(place * rank, (place + 1) * rank)
        found.append(_trimmed(Update(one.down[block], up[:, block], one.alpha * rank / one.rank, kept)))
    return found


def share(parts: Sequence[Update | None]) -> Update | None:
    """One update whose ``down`` is that of all parts, where they have the same; else None."""
    import torch

    present = [part for part in parts if part is not None]
    first = present[0]
    alike = all(part.alpha == first.alpha and torch.equal(part.down, first.down) for part in present)
    magnitudes = [part.magnitude for part in present if part.magnitude is not None]
    if len(present) < len(parts) or not alike or len(magnitudes) not in (0, len(parts)):
        return None
    up = torch.cat([part.up for part in present])
    return Update(first.down, up, first.alpha, torch.cat(magnitudes) if magnitudes else None)


def split(one: Update, count: int) -> list[Update]:
    """The inverse of ``share``. Each has a ``down`` of its own: files hold no tensor twice."""
    magnitudes = one.magnitude.chunk(count) if one.magnitude is not None else [None] * count
    ups = one.up.chunk(count)
    return [Update(one.down.clone(), up.clone(), one.alpha, kept) for up, kept in zip(ups, magnitudes, strict=True)]


def _is_diagonal(ups: Iterable[Tensor], rank: int) -> bool:
    return all(
        not up[:, : place * rank].any() and not up[:, (place + 1) * rank :].any() for place, up in enumerate(ups)
    )


def _trimmed(one: Update) -> Update | None:
    """Without the rank that only filled up; None where nothing is left."""
    used = (one.down.any(1) | one.up.any(0)).nonzero()
    if not len(used):
        return None
    rank = int(used[-1]) + 1
    down, up = one.down[:rank].contiguous(), one.up[:, :rank].contiguous()
    return Update(down, up, one.alpha * rank / one.rank, one.magnitude)
