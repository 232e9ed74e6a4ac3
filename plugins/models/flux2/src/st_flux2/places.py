"""Places: where each token lies, in four numbers: which picture, row, column, and place in the text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch
    from torch import Tensor

APART = 10
"""How far references lie from the picture, and from one another, in the first number."""


def places(latents: Tensor, picture: int = 0) -> Tensor:
    """Where each token of these latents (B, C, H, W) lies: (picture, row, column, 0), (H * W, 4)."""
    import torch

    rows, columns = (torch.arange(size, device=latents.device) for size in latents.shape[-2:])
    one, zero = (torch.full((1,), number, device=latents.device) for number in (picture, 0))
    return torch.cartesian_prod(one, rows, columns, zero)


def reference_places(references: Iterable[Tensor]) -> list[Tensor]:
    """``places`` of several references: 10, 20, 30 and so on are their first numbers."""
    return [places(one, APART * number) for number, one in enumerate(references, start=1)]


def text_places(count: int, device: torch.device) -> Tensor:
    """Places of text tokens: (0, 0, 0, its number), (count, 4)."""
    import torch

    zero = torch.zeros(1, dtype=torch.int64, device=device)
    return torch.cartesian_prod(zero, zero, zero, torch.arange(count, device=device))
