"""From gradients to an optimizer step: clipping, and loss scaling for fp16."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from st.options import Options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class ClipOptions(Options):
    """Bounds on the gradient of one optimizer step."""

    norm: float = Field(1.0, ge=0)
    """Largest L2 norm over all trained parameters; larger gradients are scaled down. 0 does not clip."""
    value: float = Field(0.0, ge=0)
    """Largest magnitude of one element, applied before the norm. 0 does not clip."""


def clip(parameters: Sequence[Tensor], options: ClipOptions) -> Tensor:
    """Clip the gradients in place; their L2 norm as it was before. No device synchronisation."""
    import torch
    from torch.nn.utils import clip_grads_with_norm_, get_total_norm

    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = get_total_norm(gradients)
    if options.value:
        torch._foreach_clamp_min_(gradients, -options.value)
        torch._foreach_clamp_max_(gradients, options.value)
    if options.norm:
        clip_grads_with_norm_(parameters, options.norm, norm if not options.value else get_total_norm(gradients))
    return norm
