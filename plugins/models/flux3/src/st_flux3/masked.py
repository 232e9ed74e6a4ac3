"""Masked: captions of other lengths in one batch, for a model that knows no mask and sees all of a caption's window.

Rows behind a shorter caption are not part of its window. Their modulation makes zeros of them inside of each block, and
attention looks at no zeros: what it is given of real tokens has passed a layer norm. So all that a block needs to know
is in its arguments, also where it is computed again in backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from diffusers.models.transformers.transformer_flux3 import Flux3Attention, Flux3AttnProcessor

if TYPE_CHECKING:
    from torch import Tensor, nn

MODULATIONS = ("early_stream_modulations.txt", "single_stream_modulations.txt")


class ZerosHidden(Flux3AttnProcessor):
    """Attention that looks at no token of a batch whose features are all zero."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        # A mask costs the fastest kernels, and one caption needs none.
        if len(hidden_states) > 1:
            attention_mask = (hidden_states != 0).any(-1)[:, None, None, :]
        answer: Tensor = super().__call__(attn, hidden_states, attention_mask, image_rotary_emb)
        return answer


def hide_zeros(denoiser: nn.Module) -> None:
    """Have every attention of a denoiser look at no zeros."""
    for module in denoiser.modules():
        if isinstance(module, Flux3Attention):
            processor: Any = ZerosHidden()
            module.set_processor(processor)


@contextmanager
def hidden(denoiser: nn.Module, real: Tensor) -> Iterator[None]:
    """Inside of it, text rows of a forward pass that are not real are zeros in every block. real: (B, T) bool."""
    import torch

    def hide(module: nn.Module, args: tuple[Any, ...], modulation: Tensor) -> Tensor:
        shift, scale, gate = (
            part.new_full((), one).expand_as(part)
            for part, one in zip(modulation.chunk(3, dim=-1), (0.0, -1.0, 0.0), strict=True)
        )
        return torch.where(real[..., None], modulation, torch.cat([shift, scale, gate], dim=-1))

    with ExitStack() as stack:
        for name, module in denoiser.named_modules():
            if name.endswith(MODULATIONS):
                stack.callback(module.register_forward_hook(hide).remove)
        yield
