"""From gradients to an optimizer step: their norms, and clipping."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Norms:
    """L2 norms of the gradients of one optimizer step, before they were clipped. They stay on the device.

    total: () float. each: (P,) float, of ``parameters`` one by one; both are empty where an engine only knows the
    total.
    """

    total: Tensor
    each: Tensor | None = None
    parameters: Sequence[Tensor] = ()

    def broken(self) -> list[Tensor]:
        """The parameters whose gradients are not finite. Reads the device."""
        if self.each is None:
            return []
        finite = self.each.isfinite().tolist()
        return [parameter for parameter, fine in zip(self.parameters, finite, strict=True) if not fine]


def clip(parameters: Sequence[Tensor], options: ClipOptions) -> Norms:
    """Clip the gradients in place; their L2 norms as they were before. No device synchronisation."""
    reached = [parameter for parameter in parameters if parameter.grad is not None]
    gradients = [parameter.grad for parameter in reached if parameter.grad is not None]
    return clip_gradients(reached, gradients, options, norm_of_each)


def clip_gradients(
    parameters: Sequence[Tensor],
    gradients: list[Tensor],
    options: ClipOptions,
    norms: Callable[[Sequence[Tensor]], Tensor],
) -> Norms:
    """Likewise, for gradients of which this process may hold a part: norms gives those of the whole ones, (P,)."""
    import torch

    each = norms(gradients)
    total = torch.linalg.vector_norm(each)
    if options.value:
        torch._foreach_clamp_min_(gradients, -options.value)
        torch._foreach_clamp_max_(gradients, options.value)
    if options.norm:
        clipped = total if not options.value else torch.linalg.vector_norm(norms(gradients))
        # As torch.nn.utils.clip_grads_with_norm_, which takes parameters and not parts of them.
        scale = torch.clamp(options.norm / (clipped + 1e-6), max=1.0)
        for device, group in _by_device(gradients).items():
            torch._foreach_mul_(group, scale.to(device))
    return Norms(total, each, parameters)


def norm_of_each(gradients: Sequence[Tensor]) -> Tensor:
    """The L2 norm of each gradient, (P,) float32, on the device of the first."""
    import torch

    found: dict[int, Tensor] = {}
    for device, group in _places_by_device(gradients).items():
        # A part of a small weight may be empty.
        filled = [place for place in group if gradients[place].numel()]
        found |= dict.fromkeys(group, torch.zeros((), device=device))
        found |= dict(zip(filled, torch._foreach_norm([gradients[place] for place in filled]), strict=True))
    if not found:
        return torch.zeros(0)
    return torch.stack([found[place].to(gradients[0].device) for place in range(len(gradients))]).float()


def _by_device(tensors: Sequence[Tensor]) -> dict[torch.device, list[Tensor]]:
    places = _places_by_device(tensors)
    return {device: [tensors[place] for place in group] for device, group in places.items()}


def _places_by_device(tensors: Sequence[Tensor]) -> dict[torch.device, list[int]]:
    found: dict[torch.device, list[int]] = {}
    for place, tensor in enumerate(tensors):
        found.setdefault(tensor.device, []).append(place)
    return found
