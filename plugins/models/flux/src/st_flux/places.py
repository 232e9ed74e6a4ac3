"""Places: where each token of latents that are packed lies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from st.model.pipelines.packing import EDGE

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def places(latents: Tensor, kind: int = 0, corner: tuple[int, int] = (0, 0)) -> Tensor:
    """Where each token of these latents (B, C, H, W) lies: (kind, row, column), float32 (S, 3).

    kind: 0 for the picture itself, 1 for references. corner: row and column of the first token.
    """
    import torch

    device = latents.device
    rows = torch.arange(latents.shape[-2] // EDGE, device=device, dtype=torch.float32) + corner[0]
    columns = torch.arange(latents.shape[-1] // EDGE, device=device, dtype=torch.float32) + corner[1]
    kinds = torch.full((1,), float(kind), device=device)
    return torch.cartesian_prod(kinds, rows, columns)


def reference_places(references: Iterable[Tensor]) -> list[Tensor]:
    """``places`` of several references: kind 1, laid out so that their rectangles do not overlap.

    The first lies at the picture's own corner, as the pipeline has it; each further one at the side of all before where
    the whole stays closer to a square.
    """
    found, height, width = [], 0, 0
    for reference in references:
        rows, columns = reference.shape[-2] // EDGE, reference.shape[-1] // EDGE
        corner = (height, 0) if height + rows <= width + columns else (0, width)
        found.append(places(reference, 1, corner))
        height, width = max(height, corner[0] + rows), max(width, corner[1] + columns)
    return found


def attention_mask(text: Tensor, count: int) -> Tensor:
    """Which keys attention may look at: (B, 1, 1, T + count), bool. text: (B, T), bool, the real ones of its tokens."""
    import torch

    picture = torch.ones(len(text), count, dtype=torch.bool, device=text.device)
    return torch.cat([text, picture], dim=1)[:, None, None, :]


def no_places(count: int, device: torch.device) -> Tensor:
    """Places of text tokens: all at the origin."""
    import torch

    return torch.zeros(count, 3, device=device)
