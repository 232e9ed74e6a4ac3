"""Stable Diffusion XL: a U-Net that hears two text encoders and is told how its pictures were cropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from st import Encoder
from st_sdxl.captions import read_tokens
from st_sdxl.checkpoint import check_sizes_told
from st_sdxl.settings import REPOSITORIES, SdxlOptions
from st_sdxl.unet import UnetFamily, size_ids

if TYPE_CHECKING:
    import torch

    from st import Batch, Geometry
    from st.model.adapters.architecture import Architecture
    from st.model.pipelines.text_stack import TextStack

UNCONDITIONAL_SCORE = 2.5
"""The score that the refiner's pipeline tells its unconditional branch (negative_aesthetic_score)."""


class Sdxl(UnetFamily[SdxlOptions]):
    """Stable Diffusion XL: base and refiner.

    Podell et al. 2023, arXiv:2307.01952. The U-Net is told the size of a picture's file, where the resized picture was
    cropped, and what was left; also where the caption was dropped, as the pipeline tells its unconditional branch.
    """

    Options: ClassVar[type[SdxlOptions]] = SdxlOptions
    pipeline = "StableDiffusionXLPipeline"
    encodes = ("prompt_embeds", None, "pooled_prompt_embeds", None)
    first_attends = 2  # the outermost blocks only convolve
    kohya_original = True

    def __init__(self, options: SdxlOptions) -> None:
        location = options.checkpoint or REPOSITORIES[options.flavour]
        super().__init__(options.model_copy(update={"checkpoint": location}))
        if options.is_refiner:
            self.pipeline = "StableDiffusionXLImg2ImgPipeline"

    def text_encoders(self) -> Sequence[Encoder]:
        from st_sdxl.captions import EncodedCaptions, MarkedCaptions

        (encoder,) = super().text_encoders()
        if stack := self.learning_text():
            return (MarkedCaptions(stack.captions(encoder), zeros=False),)
        return (EncodedCaptions(encoder, self._zeros()),)

    def learning_text(self) -> TextStack | None:
        if not self.options.train_text:
            return None
        from st.model.pipelines.text_stack import TextStack

        tokenizers = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
        return TextStack(self.folder, self.denoiser, tokenizers, partial(read_tokens, zeros=self._zeros()))

    def told(self, batch: Batch, dtype: torch.dtype) -> Mapping[str, Any]:
        score = None
        if self.options.is_refiner:
            captioned = batch.conditions["captioned"].float()
            score = captioned * self.options.aesthetic_score + (1 - captioned) * UNCONDITIONAL_SCORE
        pooled = batch.conditions["pooled_prompt_embeds"].to(dtype)
        return {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": size_ids(batch, score)}}

    def architecture(self) -> Architecture:
        from st.model.adapters.architecture import Architecture

        name = "refiner" if self.options.is_refiner else "base"
        makers = "https://github.com/Stability-AI/generative-models"
        version = self.options.flavour.partition("-")[2].replace(".", "-")
        base = f"sdxl_{name}_v{version}"
        return Architecture(f"stable-diffusion-xl-v1-{name}", makers, base, "networks.lora", self.options.says)

    def render_arguments(self, geometry: Geometry) -> Mapping[str, Any]:
        import torch

        arguments = super().render_arguments(geometry)
        if not self.options.is_refiner:
            return arguments
        # A refiner's pipeline begins from a picture; from this one at full strength, it begins from noise.
        nothing = torch.zeros(1, 4, geometry.height // 8, geometry.width // 8)
        return {**arguments, "image": nothing, "strength": 1.0}

    def check_denoiser(self) -> None:
        check_sizes_told(self.folder, self.options)

    @classmethod
    def tiny(cls, directory: Path) -> Self:
        from st_sdxl.tiny import write

        write(directory)
        return cls(cls.Options(checkpoint=str(directory)))

    def _zeros(self) -> bool:
        """Whether the pipeline's users get zeros where they give no negative prompt."""
        return bool(self.folder.index().get("force_zeros_for_empty_prompt", True))
