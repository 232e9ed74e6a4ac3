"""From gradients to an optimizer step: clipping, and loss scaling for fp16."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from st.options import Options

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from torch import Tensor


class ClipOptions(Options):
    """Bounds on the gradient of one optimizer step."""

    norm: float = Field(1.0, ge=0)
    """Largest L2 norm over all trained parameters; larger gradients are scaled down. 0 does not clip."""
    value: float = Field(0.0, ge=0)
    """Largest magnitude of one element, applied before the norm. 0 does not clip."""


def clip(parameters: Sequence[Tensor], options: ClipOptions) -> Tensor:
    """Clip the gradients in place; their L2 norm as it was before. No device synchronisation."""
    from torch.nn.utils import get_total_norm

    return clip_gradients([p.grad for p in parameters if p.grad is not None], options, get_total_norm)


def clip_gradients(
    gradients: list[Tensor], options: ClipOptions, total_norm: Callable[[Sequence[Tensor]], Tensor]
) -> Tensor:
    """Likewise, for gradients of which this process may hold a part: total_norm gives the norm of all parts."""
    import torch

    norm = total_norm(gradients)
    if options.value:
        torch._foreach_clamp_min_(gradients, -options.value)
        torch._foreach_clamp_max_(gradients, options.value)
    if options.norm:
        clipped = norm if not options.value else total_norm(gradients)
        # As torch.nn.utils.clip_grads_with_norm_, which takes parameters and not parts of them.
        scale = torch.clamp(options.norm / (clipped + 1e-6), max=1.0)
        for device, group in _by_device(gradients).items():
            torch._foreach_mul_(group, scale.to(device))
    return norm


def _by_device(tensors: Sequence[Tensor]) -> dict[torch.device, list[Tensor]]:
    found: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        found.setdefault(tensor.device, []).append(tensor)
    return found
