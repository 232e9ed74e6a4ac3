"""Flux: Flux.1 as diffusers has it, asked the way its pipeline asks it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

from st import BlockGroup, GeometryRule, StError, TokenStream, hookimpl
from st.diffusion.path import straight
from st.diffusion.target import velocity
from st.model.adapters.assistant import bring_assistant, without_assistant
from st.model.adapters.references import References, shown_latents
from st.model.pipelines.packing import pack, token_count, unpack
from st.model.pipelines.pipeline_family import PipelineFamily
from st.model.pipelines.schedule import scheduled_shift
from st_flux import control
from st_flux.flavours import TARGETS, FluxOptions
from st_flux.places import attention_mask, no_places, places, reference_places
from st_flux.projections import fuse, fused_names, split_state

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from st import Batch, Encoder, Geometry, Noised, Run, Shot
    from st.model.adapters.architecture import Architecture
    from st.model.files.formats import AdapterFormat
    from st.model.pipelines.text_stack import TextStack


class Flux(PipelineFamily[FluxOptions]):
    """Flux.1: dev, Krea, schnell, Kontext and their relatives.

    Time is the model's own, 0 for clean and 1 for noise, and its answer is noise - clean.
    """

    Options: ClassVar[type[FluxOptions]] = FluxOptions
    pipeline = "FluxPipeline"
    encodes: Sequence[str | None] = ("prompt_embeds", "pooled_prompt_embeds", None)
    geometry = GeometryRule(multiple=16)
    path = staticmethod(straight)
    target = staticmethod(velocity)
    full_precision = ("x_embedder", "context_embedder", "norm_out.linear")

    def __init__(self, options: FluxOptions) -> None:
        super().__init__(options.model_copy(update={"checkpoint": options.checkpoint or options.published.repository}))
        if options.published.edits:
            self.pipeline = "FluxKontextPipeline"
        if options.masks:
            self.encodes = ("prompt_embeds", "pooled_prompt_embeds", "mask")
            self.trims = {"prompt_embeds": "mask"}

    def text_encoders(self) -> Sequence[Encoder]:
        read = self._pipeline_text()
        # T5's embeddings are cached beside CLIP's tokens.
        return (*read, self.text_stack().captions(read[0])) if self.options.train_clip else read

    def text_stack(self) -> TextStack:
        """CLIP, where it learns too; T5 stays as it is."""
        from st.model.pipelines.text_stack import TextStack

        return TextStack(self.folder, self.denoiser, {"text_encoder": "tokenizer"}, read_clip)

    def _pipeline_text(self) -> Sequence[Encoder]:
        if not self.options.masks:
            return super().text_encoders()
        from st.model.pipelines.pipeline_text import PipelineText, Prompting
        from st_flux.masked import MaskedFluxPipeline

        self.check()
        prompting = Prompting(
            MaskedFluxPipeline,
            (self.denoiser, self.autoencoder, *self.unused),
            self.encodes,
            self.trims,
            self.prompt_arguments(),
        )
        return (PipelineText(self.folder, prompting, self.options.text_precision),)

    def references(self) -> References | None:
        """Kontext is shown pictures to edit: one, or several beside one another."""
        return References() if self.options.published.edits else None

    def prompt_arguments(self) -> Mapping[str, Any]:
        return {"max_sequence_length": self.options.tokens}

    def load_denoiser(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        denoiser = super().load_denoiser(device, dtype)
        config: Any = denoiser.config
        if config.in_channels != 4 * self._latent_channels:
            raise StError(
                f"model.checkpoint = {self.options.checkpoint!r} is a model for filling or control",
                why=f"its denoiser takes {config.in_channels} channels, {4 * self._latent_channels} are a picture's",
                fix="name one that draws from text, or from text and references",
            )
        if "guidance" in self.options.model_fields_set and not config.guidance_embeds:
            raise StError("model.guidance has no effect: this model is told no guidance", fix="delete model.guidance")
        if self.options.fuse_qkv:
            fuse(denoiser)
        return self.text_stack().join(denoiser, device, dtype) if self.options.train_clip else denoiser

    @hookimpl
    def st_denoiser_loaded(self, run: Run) -> None:
        """Add the assistant, once weights are quantized and before anything learns."""
        from st.model.pipelines.learning_text import plain

        location = self.options.assistant or self.options.published.assistant
        strength = self.options.assistant_strength
        bring_assistant(plain(run.denoiser), location, strength, self._denoiser_formats(), run.report)

    def tokens(self, latents: Tensor) -> int:
        return token_count(latents)

    def predict(self, denoiser: nn.Module, noised: Noised, batch: Batch) -> Tensor:
        from st.model.pipelines.learning_text import predict_with_text

        return predict_with_text(self._answer, denoiser, noised, batch)

    def _answer(self, denoiser: nn.Module, noised: Noised, batch: Batch) -> Tensor:
        import torch

        dtype = next(one for one in denoiser.parameters() if one.is_floating_point()).dtype
        references = shown_latents(batch.extras)
        text = batch.conditions["prompt_embeds"].to(dtype)
        picture = torch.cat([pack(one).to(dtype) for one in (noised.x, *references)], dim=1)
        mask = batch.conditions.get("prompt_embeds_mask")
        attention = None if mask is None else {"attention_mask": attention_mask(mask, picture.shape[1])}
        prediction: Tensor = denoiser(
            hidden_states=picture,
            encoder_hidden_states=text,
            pooled_projections=batch.conditions["pooled_prompt_embeds"].to(dtype),
            timestep=noised.t,
            guidance=self._guidance(denoiser, batch, noised.t),
            img_ids=torch.cat([places(noised.x), *reference_places(references)]),
            txt_ids=no_places(text.shape[1], noised.x.device),
            joint_attention_kwargs=attention,
            return_dict=False,
        )[0]
        height, width = noised.x.shape[-2:]
        return unpack(prediction[:, : self.tokens(noised.x)], height, width)

    def time_shift(self, tokens: int) -> float:
        return scheduled_shift(self._scheduler, tokens)

    def adapter_targets(self) -> Sequence[str]:
        targets = TARGETS[self.options.targets]
        text = self.text_stack().targets if self.options.train_clip else ()
        return (*(fused_names(targets) if self.options.fuse_qkv else targets), *text)

    def adapter_formats(self) -> Mapping[str, AdapterFormat]:
        if not self.options.train_clip:
            return self._denoiser_formats()
        from st.model.files.format_parts import Part, Parts

        formats, stack, ours = self._denoiser_formats(), self.text_stack(), f"{self.denoiser}."
        plain, kohya = formats["diffusers"], formats["kohya"]
        return {
            "diffusers": Parts(partial(stack.parts, "diffusers", Part(ours, "", (ours,), plain)), plain),
            "kohya": Parts(partial(stack.parts, "kohya", Part(ours, "", ("lora_unet_",), kohya)), kohya),
        }

    def _denoiser_formats(self) -> Mapping[str, AdapterFormat]:
        from st.model.files.peft_layout import diffusers_format
        from st_flux.formats import KOHYA, ComfyUI, Unfused

        formats = {"diffusers": diffusers_format(self.denoiser), "comfyui": ComfyUI(), "kohya": KOHYA}
        return {name: Unfused(one) for name, one in formats.items()} if self.options.fuse_qkv else formats

    def architecture(self) -> Architecture:
        from st.model.adapters.architecture import Architecture

        makers = "https://github.com/black-forest-labs/flux"
        return Architecture(self.options.published.architecture, makers, "flux1", "networks.lora_flux")

    def blocks(self) -> Sequence[BlockGroup]:
        stream = TokenStream(returned=1, select=_keep_picture_rows)  # both kinds return (text, picture)
        inside = f"{self.denoiser}." if self.options.train_clip else ""
        kinds = ("transformer_blocks", "single_transformer_blocks")
        return tuple(BlockGroup(f"{inside}{kind}", stream) for kind in kinds)

    def control_encoder(self) -> None:
        """Control pictures are encoded by the autoencoder."""

    def make_control(self, denoiser: nn.Module, layers: Sequence[int]) -> nn.Module:
        """Upstream's control network, begun from the denoiser."""
        self._refuse_clip("a control network")
        if self.options.fuse_qkv:
            raise StError("model.fuse_qkv does not go with a control network", fix="set model.fuse_qkv to false")
        return control.make_control(denoiser, layers)

    def controlled(self, network: nn.Module, arguments: Mapping[str, Any], shown: Tensor) -> Mapping[str, Any]:
        """The control network's residuals."""
        return control.controlled(network, arguments, shown)

    def widen_input(self, denoiser: nn.Module) -> str:
        """Make room for the latents of a control picture."""
        self._refuse_clip("control pictures")
        return control.widen_input(denoiser)

    def widened(self, arguments: Mapping[str, Any], shown: Tensor | None) -> Mapping[str, Any]:
        """Noise and control picture side by side."""
        return control.widened(arguments, shown)

    def save_checkpoint(self, denoiser: nn.Module, directory: Path) -> None:
        import torch

        from st.model.pipelines.learning_text import plain

        alone: Any = plain(denoiser)
        if self.options.fuse_qkv:
            with torch.device("meta"):
                unfused: nn.Module = type(alone).from_config(alone.config)
            unfused.load_state_dict(split_state(alone.state_dict()), assign=True)
            alone = unfused
        super().save_checkpoint(alone, directory)
        if self.options.train_clip:
            self.text_stack().save(denoiser, directory)

    def render_arguments(self, geometry: Geometry) -> Mapping[str, Any]:
        # The pipeline that edits moves any size to about a megapixel, unless it is told this one.
        return {"true_cfg_scale": self.options.real_guidance, "max_area": geometry.height * geometry.width}

    def render(self, denoiser: nn.Module, shot: Shot) -> Tensor:
        from st.model.pipelines.learning_text import plain, read_text

        guided = self.options.real_guidance > 1
        if guided and shot.negative is None:
            raise StError("model.real_guidance needs a negative prompt", fix="set validation.guidance above 1")
        negative = None if shot.negative is None else read_text(denoiser, shot.negative)
        shot = replace(shot, conditions=read_text(denoiser, shot.conditions), negative=negative)
        denoiser = plain(denoiser)
        with ExitStack() as stack:
            stack.enter_context(without_assistant(denoiser))
            if guided and self.options.masks:
                from st_flux.masked import zeros_hidden

                stack.enter_context(zeros_hidden(denoiser))
            return super().render(denoiser, shot if guided else replace(shot, negative=None))

    @classmethod
    def tiny(cls, directory: Path) -> Self:
        from st_flux.tiny import write_tiny

        write_tiny(directory)
        return cls(FluxOptions(checkpoint=str(directory), max_tokens=48, text_precision="fp32"))

    def _refuse_clip(self, what: str) -> None:
        if self.options.train_clip:
            raise StError(f"model.train_clip does not go with {what}", fix="set model.train_clip to false")

    def _guidance(self, denoiser: nn.Module, batch: Batch, like: Tensor) -> Tensor | None:
        """(B,) of what a distilled model is told; None for others. A range is drawn by the samples' draw indices."""
        config: Any = denoiser.config
        if not config.guidance_embeds:
            return None
        if not isinstance(self.options.guidance, tuple):
            return like.new_full((len(like),), self.options.guidance)
        from st.randomness import Draws

        low, high = self.options.guidance
        return low + (high - low) * Draws(0, batch.indices, like.device).uniform("guidance")

    @cached_property
    def _scheduler(self) -> Mapping[str, Any]:
        return self.folder.config("scheduler")

    @cached_property
    def _latent_channels(self) -> int:
        return int(self.folder.config(self.autoencoder)["latent_channels"])


def read_clip(encoders: Mapping[str, nn.Module], conditions: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """What the pipeline's ``encode_prompt`` takes of CLIP: ``pooled_prompt_embeds``, from ``tokens`` (B, 77)."""
    return {"pooled_prompt_embeds": encoders["text_encoder"](conditions["tokens"]).pooler_output}


def _keep_picture_rows(arguments: Mapping[str, Any], keep: Tensor) -> dict[str, Any]:
    """Rotary tables, (T + S, D), and masks, (B, 1, 1, T + S), hold text first."""
    import torch

    text = arguments["encoder_hidden_states"].shape[1]
    rows = torch.cat([torch.arange(text, device=keep.device), keep + text])
    narrowed: dict[str, Any] = {"image_rotary_emb": tuple(table[rows] for table in arguments["image_rotary_emb"])}
    attention = arguments.get("joint_attention_kwargs")
    if attention and "attention_mask" in attention:
        mask = attention["attention_mask"][..., rows]
        narrowed["joint_attention_kwargs"] = {**attention, "attention_mask": mask}
    return narrowed
