"""Skipping: the pipeline's text side with the last layers of its text encoder left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn


class SkippingPipeline(StableDiffusionPipeline):
    """The pipeline with a reading of captions that skips layers, for negatives too, as other programs have it.

    Upstream's own ``clip_skip`` asks CLIP for a module that it does not have any more (transformers 5), and reads
    negatives without skipping.
    """

    def encode_prompt(self, prompt: Sequence[str], device: torch.device, clip_skip: int = 0) -> tuple[Tensor]:
        """Embeddings, (B, 77, D), of each prompt."""
        parts: Any = self
        asked = parts.tokenizer(list(prompt), padding="max_length", truncation=True, return_tensors="pt")
        read = read_tokens({"text_encoder": parts.text_encoder}, {"tokens": asked.input_ids.to(device)}, skip=clip_skip)
        return (read["prompt_embeds"],)


def read_tokens(
    encoders: Mapping[str, nn.Module], conditions: Mapping[str, Tensor], *, skip: int
) -> Mapping[str, Tensor]:
    """``prompt_embeds``, (B, 77, D), of ``tokens`` (B, 77): what is behind the last layer but ``skip``, normalised."""
    encoder: Any = encoders["text_encoder"]
    read = encoder(conditions["tokens"], output_hidden_states=bool(skip))
    if not skip:
        return {"prompt_embeds": read.last_hidden_state}
    # Some versions of transformers have the layers in a module of their own.
    inner: Any = getattr(encoder, "text_model", encoder)
    return {"prompt_embeds": inner.final_layer_norm(read.hidden_states[-1 - skip])}
