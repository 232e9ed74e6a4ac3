"""Masked: captions encoded without their padding, and previews that keep attention from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

from st_flux.places import attention_mask

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class MaskedFluxPipeline(FluxPipeline):
    """``encode_prompt`` also tells which tokens of T5 are real, (B, T); the embeddings are the pipeline's own."""

    def encode_prompt(  # type: ignore[override]
        self, prompt: list[str], *, device: torch.device | None = None, max_sequence_length: int = 512
    ) -> tuple[Tensor, Tensor, Tensor]:
        tokens: Any = self.tokenizer_2
        asked = tokens(
            prompt, padding="max_length", max_length=max_sequence_length, truncation=True, return_tensors="pt"
        )
        embeds, pooled, _ = super().encode_prompt(prompt, device=device, max_sequence_length=max_sequence_length)
        return embeds, pooled, asked.attention_mask.to(embeds.device)


@contextmanager
def zeros_hidden(denoiser: nn.Module) -> Iterator[None]:
    """Keep attention from text that is all zeros. The pipeline has one mask for a prompt and its negative."""

    def hide(denoiser: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        real = given["encoder_hidden_states"].any(-1)
        mask = attention_mask(real, given["hidden_states"].shape[1])
        return args, {**given, "joint_attention_kwargs": {"attention_mask": mask}}

    hook = denoiser.register_forward_pre_hook(hide, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
