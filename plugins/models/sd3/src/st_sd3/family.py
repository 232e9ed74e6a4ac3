"""Sd3: Stable Diffusion 3 and 3.5 as diffusers has them, asked the way their pipeline asks them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

from st import BlockGroup, GeometryRule, TokenStream
from st.diffusion.path import straight
from st.diffusion.shift import exponential_shift
from st.diffusion.target import velocity
from st.model.pipelines.packing import token_count
from st.model.pipelines.pipeline_family import PipelineFamily
from st_sd3 import control
from st_sd3.flavours import TARGETS, Sd3Options

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from st import Batch, Encoder, Geometry, Noised
    from st.model.adapters.architecture import Architecture
    from st.model.files.formats import AdapterFormat

PLACE = 16
"""Pixels along an edge of what is one token."""
T5 = ("text_encoder_3", "tokenizer_3")


class Sd3(PipelineFamily[Sd3Options]):
    """Stable Diffusion 3: 3 medium and 3.5 medium, large and large turbo.

    Time is 0 for clean and 1 for noise, told as a thousand steps, and the model's answer is noise - clean.
    """

    Options: ClassVar[type[Sd3Options]] = Sd3Options
    pipeline = "StableDiffusion3Pipeline"
    encodes = ("prompt_embeds", None, "pooled_prompt_embeds", None)
    path = staticmethod(straight)
    target = staticmethod(velocity)
    full_precision = ("pos_embed.proj", "context_embedder", "norm_out.linear")

    def __init__(self, options: Sd3Options) -> None:
        super().__init__(options.model_copy(update={"checkpoint": options.checkpoint or options.published.repository}))
        self.geometry = GeometryRule(multiple=PLACE, max_edge=PLACE * options.published.places)

    def text_encoders(self) -> Sequence[Encoder]:
        if self.options.t5:
            return super().text_encoders()
        from st.model.pipelines.pipeline_text import PipelineText, Prompting

        self.check()
        without = (self.denoiser, self.autoencoder, *self.unused, *T5)
        prompting = Prompting(self._pipeline_class(), without, self.encodes, self.trims, self.prompt_arguments())
        return (PipelineText(self.folder, prompting, self.options.text_precision),)

    def prompt_arguments(self) -> Mapping[str, Any]:
        return {"max_sequence_length": self.options.max_tokens}

    def caveats(self) -> Sequence[str]:
        """What a distilled flavour needs."""
        if not self.options.published.distilled:
            return ()
        return (
            f"model.flavour = {self.options.flavour!r} is distilled into a few steps, which training undoes little by "
            'little: train on "3.5-large" and use the adapter here, or keep the run short',
        )

    def tokens(self, latents: Tensor) -> int:
        return token_count(latents)

    def predict(self, denoiser: nn.Module, noised: Noised, batch: Batch) -> Tensor:
        dtype = next(one for one in denoiser.parameters() if one.is_floating_point()).dtype
        prediction: Tensor = denoiser(
            hidden_states=noised.x.to(dtype),
            timestep=noised.t * float(self._scheduler.get("num_train_timesteps", 1000)),
            encoder_hidden_states=batch.conditions["prompt_embeds"].to(dtype),
            pooled_projections=batch.conditions["pooled_prompt_embeds"].to(dtype),
            return_dict=False,
        )[0]
        return prediction

    def time_shift(self, tokens: int) -> float:
        scheduler = self._scheduler
        if not scheduler.get("use_dynamic_shifting", False):
            return float(scheduler.get("shift", 1.0))
        low = (scheduler.get("base_image_seq_len", 256), scheduler.get("base_shift", 0.5))
        high = (scheduler.get("max_image_seq_len", 4096), scheduler.get("max_shift", 1.16))
        return exponential_shift(tokens, low, high)

    def adapter_targets(self) -> Sequence[str]:
        return TARGETS[self.options.targets]

    def adapter_formats(self) -> Mapping[str, AdapterFormat]:
        from st_sd3 import formats

        counted = partial(formats.Counted, blocks=self._num_blocks)
        further = {"comfyui": counted(formats.comfyui), "kohya": counted(formats.kohya)}
        return {**super().adapter_formats(), **further}

    def architecture(self) -> Architecture:
        from st.model.adapters.architecture import Architecture

        published, makers = self.options.published, "https://github.com/Stability-AI/sd3.5"
        return Architecture(published.architecture, makers, published.base, "networks.lora_sd3")

    def blocks(self) -> Sequence[BlockGroup]:
        # A block answers (text, picture), the last one (None, picture).
        return (BlockGroup("transformer_blocks", TokenStream(returned=1)),)

    def control_encoder(self) -> None:
        """Control pictures are encoded by the autoencoder."""

    def make_control(self, denoiser: nn.Module, layers: Sequence[int]) -> nn.Module:
        """Upstream's control network, begun from the denoiser."""
        return control.make_control(denoiser, layers)

    def controlled(self, network: nn.Module, arguments: Mapping[str, Any], shown: Tensor) -> Mapping[str, Any]:
        """The control network's residuals."""
        statistics = self.folder.config(self.autoencoder)
        shift = float(statistics.get("shift_factor") or 0.0) * float(statistics.get("scaling_factor") or 1.0)
        return control.controlled(network, arguments, shown, shift)

    def render_arguments(self, geometry: Geometry) -> Mapping[str, Any]:
        if not self.options.skip_layers:
            return {}
        return {
            "skip_guidance_layers": list(self.options.skip_layers),
            "skip_layer_guidance_scale": self.options.skip_strength,
        }

    @classmethod
    def tiny(cls, directory: Path) -> Self:
        from st_sd3.tiny import write_tiny

        write_tiny(directory)
        return cls(Sd3Options(checkpoint=str(directory), max_tokens=48, text_precision="fp32"))

    def _num_blocks(self) -> int:
        """Of the denoiser, without asking a hub."""
        if not self.folder.is_here():
            return self.options.published.blocks
        return int(self.folder.config(self.denoiser)["num_layers"])

    @cached_property
    def _scheduler(self) -> Mapping[str, Any]:
        return self.folder.config("scheduler")
