"""Given: the upstream pipeline, told what its texts are encoded to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers.pipelines.ace_step.pipeline_ace_step import AceStepPipeline
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Mapping


class GivenConditions(nn.Module):
    """Stands where the pipeline has its condition encoder: answers what it was told, and has its fixed tensors."""

    silence_latent: Tensor
    null_condition_emb: Tensor

    def __init__(self, fixed: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in fixed.items():
            self.register_buffer(name, tensor)
        self.answer: Tensor | None = None

    @property
    def device(self) -> torch.device:
        return self.silence_latent.device

    def forward(self, **asked: Any) -> tuple[Tensor, None]:
        assert self.answer is not None, "the pipeline was called without what its texts are encoded to"
        return self.answer, None


class GivenPipeline(AceStepPipeline):
    """``AceStepPipeline`` that takes encoded texts in place of texts; all else is its own."""

    def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        return None, None, None, None

    def __call__(
        self,
        encoder_hidden_states: Tensor,
        *,
        audio_duration: float,
        num_inference_steps: int,
        guidance_scale: float,
        shift: float,
        generator: torch.Generator,
        output_type: str = "pt",
        return_dict: bool = False,
    ) -> Any:
        """Sound (1, channels, samples) in [-1, 1]; with output_type "latent", latents (1, S, C).

        encoder_hidden_states: (1, L, D), what the condition encoder gave of one text.
        """
        stand_in: Any = self.condition_encoder
        stand_in.answer = encoder_hidden_states
        try:
            return super().__call__(
                prompt="",
                audio_duration=audio_duration,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                shift=shift,
                generator=generator,
                output_type=output_type,
                return_dict=return_dict,
            )
        finally:
            stand_in.answer = None
