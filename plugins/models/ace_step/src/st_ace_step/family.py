"""AceStep: ACE-Step 1.5 as diffusers has it, asked the way its pipeline asks it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

from st import BlockGroup, StError, TokenStream, hookimpl
from st.diffusion.path import straight
from st.diffusion.target import velocity
from st.errors import Problem
from st.model.pipelines.pipeline_family import PipelineFamily
from st_ace_step.codec import SoundCodec
from st_ace_step.conditions import NAME, Conditions
from st_ace_step.flavours import DISTILLED, TARGETS, UNDISTILLED, AceStepOptions
from st_ace_step.masked import padding_hidden

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from st import Batch, Encoder, Geometry, Noised, Run, Shot
    from st.model.adapters.architecture import Architecture
    from st.model.files.formats import AdapterFormat
    from st.settings.config import RunConfig

AWAY = "ACE-Step is guided away from being told nothing at all, and from no text"
FIXED = ("silence_latent", "null_condition_emb")
"""Tensors of the condition encoder that the denoiser is given as they are."""


class AceStep(PipelineFamily[AceStepOptions]):
    """ACE-Step 1.5: sounds from text, lyrics and facts, nothing of them given.

    Time is the model's own, 0 for clean and 1 for noise, and its answer is noise - clean. Beside the latents it is
    shown what is to be kept of them: silence, and a mask that is 1 where sound is to be made, which is everywhere.
    """

    Options: ClassVar[type[AceStepOptions]] = AceStepOptions
    pipeline = "AceStepPipeline"
    codec_class = SoundCodec
    encodes = (NAME,)
    path = staticmethod(straight)
    target = staticmethod(velocity)
    full_precision = ("proj_in_conv", "proj_out_conv", "condition_embedder", "time_proj")

    def __init__(self, options: AceStepOptions) -> None:
        super().__init__(options.model_copy(update={"checkpoint": options.checkpoint or options.published.repository}))
        self.defaults = DISTILLED if options.published.distilled else UNDISTILLED
        self._silences: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def codec(self) -> SoundCodec:
        self.check()
        options = self.options
        return SoundCodec(
            self.folder, self.autoencoder, options.autoencoder_precision, options.latents, tiling=options.tiling
        )

    def text_encoders(self) -> Sequence[Encoder]:
        self.check()
        codec, nothing = self.codec(), not self.options.published.distilled
        rows_per_second = codec.sample_rate / codec.samples_per_latent
        return (Conditions(self.folder, self.options.text_precision, self.options.language, rows_per_second, nothing),)

    def load_denoiser(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        denoiser = super().load_denoiser(device, dtype)
        config: Any = denoiser.config
        distilled = bool(config.is_turbo or config.model_version == "turbo")
        if distilled != self.options.published.distilled:
            raise StError(
                f"model.flavour = {self.options.flavour!r}, but the denoiser is {'' if distilled else 'not '}distilled",
                why="a distilled model is trained at other times than one that is not, and guided otherwise",
                fix=f"set model.flavour to {'turbo' if distilled else 'base'!r}, or name another checkpoint",
            )
        denoiser.get_submodule("proj_in_conv").register_forward_hook(_one_token_after_the_other)
        return denoiser

    @hookimpl
    def st_check(self, config: RunConfig) -> Iterator[Problem]:
        """Refuse what says nothing about sounds."""
        options = config.validation
        for name in sorted({"resolutions", "frames"} & options.model_fields_set):
            yield Problem(
                f"validation.{name}",
                f"validation.{name} has no effect: sounds are rendered.",
                fix="Set seconds instead.",
            )
        if options.negative or any(getattr(one, "negative", None) for one in options.prompts):
            yield Problem(
                "validation.negative", f"{AWAY}.", fix="Delete validation.negative, and negative from prompts."
            )

    @hookimpl
    def st_denoiser_loaded(self, run: Run) -> None:
        """Say what has no effect on a distilled model."""
        if self.options.published.distilled and run.config.validation.every:
            run.report.note("previews are rendered without guidance: this model is distilled", kind="guidance")

    def tokens(self, latents: Tensor) -> int:
        return -(-latents.shape[-1] // int(self._denoiser_config["patch_size"]))

    def predict(self, denoiser: nn.Module, noised: Noised, batch: Batch) -> Tensor:
        dtype = next(one for one in denoiser.parameters() if one.is_floating_point()).dtype
        x, t = noised.x.transpose(1, 2).to(dtype), noised.t.to(dtype)
        with padding_hidden(denoiser, batch.conditions.get(f"{NAME}_mask")):
            prediction: Tensor = denoiser(
                hidden_states=x,
                timestep=t,
                timestep_r=t,
                encoder_hidden_states=batch.conditions[NAME].to(dtype),
                context_latents=self._context(x),
                return_dict=False,
            )[0]
        return prediction.transpose(1, 2)

    def adapter_targets(self) -> Sequence[str]:
        return TARGETS[self.options.targets]

    def adapter_formats(self) -> Mapping[str, AdapterFormat]:
        from st.model.files.peft_layout import diffusers_format
        from st_ace_step.formats import MakersFormat

        return {"diffusers": diffusers_format(self.denoiser), "comfyui": MakersFormat()}

    def architecture(self) -> Architecture:
        from st.model.adapters.architecture import Architecture

        return Architecture(
            "ace-step-v1.5", "https://github.com/ace-step/ACE-Step-1.5", "ace_step_v1.5", "networks.lora"
        )

    def blocks(self) -> Sequence[BlockGroup]:
        return (BlockGroup("layers", TokenStream(select=_keep_moments)),)

    def render_arguments(self, geometry: Geometry) -> Mapping[str, Any]:
        return {"audio_duration": geometry.seconds, "shift": self.options.preview_shift}

    def render(self, denoiser: nn.Module, shot: Shot) -> Tensor:
        """What the pipeline gives whoever loads the result: (1, channels, samples) in [-1, 1].

        It makes whole latents; what they last longer than was asked for is cut off.
        """
        from st_ace_step.given import GivenConditions

        distilled = self.options.published.distilled
        if shot.negative is not None and not distilled and shot.negative[NAME].shape[1] != 1:
            raise StError(AWAY, fix="leave the negative prompt out")
        pipeline = self._rendering()
        # The pipeline asks the denoiser when it is made, and it is made without one.
        pipeline.is_turbo = distilled
        pipeline.vae.use_tiling = self.options.tiling
        weight = next(one for one in denoiser.parameters() if one.is_floating_point())
        pipeline.register_modules(condition_encoder=GivenConditions(self._fixed).to(weight.device, weight.dtype))
        strength = 1.0 if distilled else shot.guidance
        sound = super().render(denoiser, replace(shot, negative=None, guidance=strength))
        return sound[..., : round(shot.geometry.seconds * self.codec().sample_rate)]

    @classmethod
    def tiny(cls, directory: Path) -> Self:
        from st_ace_step.tiny import write_tiny

        write_tiny(directory)
        return cls(AceStepOptions(checkpoint=str(directory), flavour="base", text_precision="fp32"))

    def _pipeline_class(self) -> Any:
        from st_ace_step.given import GivenPipeline

        return GivenPipeline

    def _context(self, x: Tensor) -> Tensor:
        """What the denoiser is shown beside x (B, S, C): silence, repeated where x is longer, then ones; (B, S, 2C)."""
        import torch

        known = (x.device, x.dtype)
        if known not in self._silences:
            self._silences[known] = self._fixed["silence_latent"].to(*known)
        silence = self._silences[known]
        repeats = -(-x.shape[1] // silence.shape[1])
        silence = silence.repeat(1, repeats, 1)[:, : x.shape[1]].expand(len(x), -1, -1)
        return torch.cat([silence, torch.ones_like(silence)], dim=-1)

    @cached_property
    def _fixed(self) -> Mapping[str, Tensor]:
        """silence_latent (1, N, C) and null_condition_emb (1, 1, D), without the network that they lie beside."""
        from safetensors import safe_open

        found: dict[str, Tensor] = {}
        folder = self.folder.root(["condition_encoder"]) / "condition_encoder"
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                found |= {name: file.get_tensor(name) for name in FIXED if name in file.keys()}  # noqa: SIM118
        if absent := [name for name in FIXED if name not in found]:
            raise StError(
                f"model.checkpoint = {self.folder.location!r}: its condition encoder has no {absent[0]!r}",
                fix="convert the published model again with convert_ace_step_to_diffusers.py of diffusers",
            )
        return found

    @cached_property
    def _denoiser_config(self) -> Mapping[str, Any]:
        return self.folder.config(self.denoiser)


def _one_token_after_the_other(layer: nn.Module, given: object, tokens: Tensor) -> Tensor:
    """The same (B, D, S), in memory by token: a product adds in another order otherwise once tokens are selected."""
    return tokens.transpose(1, 2).contiguous().transpose(1, 2)


def _keep_moments(arguments: Mapping[str, Any], keep: Tensor) -> dict[str, Any]:
    """Rotary tables, (S, D), and the band that some blocks attend in, (1, 1, S, S): tokens keep their place in time."""
    cosines, sines = arguments["position_embeddings"]
    narrowed: dict[str, Any] = {"position_embeddings": (cosines[keep], sines[keep])}
    band = arguments.get("attention_mask")
    if band is not None:
        narrowed["attention_mask"] = band[:, :, keep][:, :, :, keep]
    return narrowed
