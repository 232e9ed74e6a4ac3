"""Places: where each token lies, in four numbers: time, row, column, and place in the text or which picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch
    from torch import Tensor

SCALE = 0.5
"""Of rows and columns: ``image_rope_scale`` of the pipeline's blocks, which the model was trained with."""


def places(latents: Tensor, picture: int = 0) -> Tensor:
    """Where each token of these latents (B, C, H, W) lies: (0, row / 2, column / 2, picture), float32 (H * W, 4)."""
    import torch

    zero, which = (torch.full((1,), float(one), device=latents.device) for one in (0, picture))
    rows, columns = (torch.arange(size, device=latents.device) * SCALE for size in latents.shape[-2:])
    return torch.cartesian_prod(zero, rows, columns, which)


def reference_places(references: Iterable[Tensor]) -> Tensor:
    """``places`` of several references, one behind the other: -1, -2 and so on are their last numbers."""
    import torch

    return torch.cat([places(one, -number) for number, one in enumerate(references, start=1)])


def text_places(count: int, device: torch.device) -> Tensor:
    """Places of text tokens: (0, 0, 0, its number), float32 (count, 4)."""
    import torch

    zero = torch.zeros(1, device=device)
    return torch.cartesian_prod(zero, zero, zero, torch.arange(count, device=device, dtype=torch.float32))
