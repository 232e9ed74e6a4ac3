"""Stable Diffusion 1 and 2: a U-Net that hears one text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from st import Encoder, StError
from st_sd.flavours import SdOptions
from st_sdxl.checkpoint import check_channels
from st_sdxl.unet import UnetFamily

if TYPE_CHECKING:
    from st.model.adapters.architecture import Architecture
    from st.model.pipelines.text_stack import TextStack


class Sd(UnetFamily[SdOptions]):
    """Stable Diffusion 1 and 2.

    Rombach et al. 2022, arXiv:2112.10752. A caption that is dropped is the empty one, as the pipeline encodes it.
    """

    Options: ClassVar[type[SdOptions]] = SdOptions
    pipeline = "StableDiffusionPipeline"
    encodes = ("prompt_embeds", None)

    def __init__(self, options: SdOptions) -> None:
        super().__init__(options.model_copy(update={"checkpoint": options.checkpoint or options.published.repository}))

    def text_encoders(self) -> Sequence[Encoder]:
        encoder = self._skipping() if self.options.clip_skip else super().text_encoders()[0]
        stack = self.learning_text()
        return (stack.captions(encoder) if stack else encoder,)

    def learning_text(self) -> TextStack | None:
        if not self.options.train_text:
            return None
        from st.model.pipelines.text_stack import TextStack
        from st_sd.skipping import read_tokens

        name = "clip_h" if self.options.published.second else "clip_l"
        tokenizers, read = {"text_encoder": "tokenizer"}, partial(read_tokens, skip=self.options.clip_skip)
        return TextStack(self.folder, self.denoiser, tokenizers, read, in_comfyui=(name,), in_kohya=("lora_te",))

    def architecture(self) -> Architecture:
        from st.model.adapters.architecture import Architecture

        says, second = self.options.says, self.options.published.second
        name = f"v2-{'768-v' if says == 'v' else '512'}" if second else "v1"
        base = f"sd_v{2 if second else 1}{'_v' if says == 'v' else ''}"
        makers = (
            "https://github.com/Stability-AI/stablediffusion"
            if second
            else "https://github.com/CompVis/stable-diffusion"
        )
        return Architecture(
            f"stable-diffusion-{name}", f"https://github.com/{makers}", base, "networks.lora", says, v2=second
        )

    def check_denoiser(self) -> None:
        here = f"model.checkpoint = {self.options.checkpoint!r}"
        unet = self.folder.config("unet")
        if unet.get("addition_embed_type") or unet.get("encoder_hid_dim_type"):
            raise StError(
                f"{here} is not a model of this family",
                why="its U-Net is told more than a caption",
                fix="name another checkpoint, or the plugin of that model's family",
            )
        check_channels(self.folder, self.denoiser)
        second = bool(unet.get("use_linear_projection"))
        one, two = '"1.5"', '"2.1" or "2.1-base"'
        if second != self.options.published.second:
            raise StError(
                f"{here} is a Stable Diffusion {2 if second else 1}, and model.flavour is {self.options.flavour!r}",
                fix=f"set model.flavour to {two if second else one}",
            )

    @classmethod
    def tiny(cls, directory: Path) -> Self:
        from st_sd.tiny import write_tiny

        write_tiny(directory, cls.Options().published)
        return cls(cls.Options(checkpoint=str(directory)))

    def _skipping(self) -> Encoder:
        """Captions as the text encoder reads them without its last layers."""
        from st.model.pipelines.pipeline_text import PipelineText, Prompting
        from st_sd.skipping import SkippingPipeline

        self.check()
        layers = int(self.folder.config("text_encoder")["num_hidden_layers"])
        if self.options.clip_skip >= layers:
            raise StError(
                f"model.clip_skip = {self.options.clip_skip}: the text encoder has {layers} layers, none is left",
                fix=f"set model.clip_skip to {layers - 1} or less",
            )
        without = (self.denoiser, self.autoencoder, *self.unused)
        prompting = Prompting(SkippingPipeline, without, ("prompt_embeds",), {}, {"clip_skip": self.options.clip_skip})
        return PipelineText(self.folder, prompting, self.options.text_precision)
