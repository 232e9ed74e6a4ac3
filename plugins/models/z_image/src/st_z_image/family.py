"""ZImage: Z-Image as diffusers has it, asked the way its pipeline asks it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

from st import BlockGroup, GeometryRule, TokenStream, hookimpl
from st.diffusion.path import straight
from st.diffusion.target import velocity
from st.model.adapters.assistant import bring_assistant, without_assistant
from st.model.adapters.references import References
from st.model.pipelines.packing import token_count
from st.model.pipelines.pipeline_family import PipelineFamily
from st.model.pipelines.schedule import scheduled_shift
from st_z_image import omni
from st_z_image.flavours import FLAVOURS, TARGETS, Name, ZImageOptions

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from st import Batch, Encoder, Geometry, Noised, Run, Shot
    from st.model.adapters.architecture import Architecture
    from st.model.files.formats import AdapterFormat

TEXT = "prompt_embeds"
LISTS = (TEXT, f"negative_{TEXT}")
"""Arguments of the pipeline that hold one tensor for each sample."""


class ZImage(PipelineFamily[ZImageOptions]):
    """Z-Image: base, Turbo and De-Turbo, and Omni, which is shown pictures.

    Time is 1 - the denoiser's own, which is 0 for noise; its answer is clean - noise, so the sign is turned.
    """

    Options: ClassVar[type[ZImageOptions]] = ZImageOptions
    pipeline = "ZImagePipeline"
    encodes = (TEXT, None)
    geometry = GeometryRule(multiple=16)
    path = staticmethod(straight)
    target = staticmethod(velocity)
    full_precision = ("all_x_embedder.2-1", "cap_embedder.1", "siglip_embedder.1", "t_embedder.mlp.*", "2-1.linear")

    def __init__(self, options: ZImageOptions) -> None:
        own = not options.checkpoint
        published = options.published
        found = {"checkpoint": published.repository, "denoiser": options.denoiser or published.denoiser} if own else {}
        super().__init__(options.model_copy(update=found))
        self.pipeline = published.pipeline

    def check_files(self) -> None:
        super().check_files()
        if self.folder.is_here():
            self._check_flavour()

    def check(self) -> None:
        super().check()
        self._check_flavour()

    def caveats(self) -> Sequence[str]:
        """Of a model that is distilled to few steps, which training undoes."""
        steps = self.options.published.few_steps
        if not steps:
            return ()
        if self.options.helper:
            kept = "an assistant keeps training from undoing that for some thousand steps; base has no such limit"
        else:
            kept = "without an assistant training undoes that; set model.assistant_strength to 1, or take base"
        shown = f"in previews validation.steps = {steps} and guidance = 1 are what it is made for"
        return (f"{self.options.flavour} is distilled to {steps} steps without guidance: {kept}; {shown}.",)

    def prompt_arguments(self) -> Mapping[str, Any]:
        return {"max_sequence_length": self.options.max_tokens}

    def text_encoders(self) -> Sequence[Encoder]:
        if not self.options.published.sees:
            return super().text_encoders()
        from st.model.pipelines.pipeline_text import Prompting
        from st_z_image.omni import OmniText

        self.check()
        without = (self.denoiser, self.autoencoder, *self.unused)
        prompting = Prompting(self._pipeline_class(), without, self.encodes, self.trims, self.prompt_arguments())
        return (OmniText(self.folder, prompting, self.options.text_precision),)

    def references(self) -> References | None:
        """Omni is shown any number of pictures, or none."""
        return References(at_least=0) if self.options.published.sees else None

    @hookimpl
    def st_denoiser_loaded(self, run: Run) -> None:
        """Add the assistant, once weights are quantized and before anything learns."""
        options = self.options
        bring_assistant(run.denoiser, options.helper, options.assistant_strength, self.adapter_formats(), run.report)

    def tokens(self, latents: Tensor) -> int:
        return token_count(latents)

    def predict(self, denoiser: nn.Module, noised: Noised, batch: Batch) -> Tensor:
        import torch

        dtype = next(one for one in denoiser.parameters() if one.is_floating_point()).dtype
        if self.options.published.sees:
            return -omni.answer(denoiser, noised, batch, dtype)
        answers: list[Tensor] = denoiser(
            list(noised.x.to(dtype).unsqueeze(2).unbind()),
            1 - noised.t,
            _captions(batch.conditions, dtype),
            return_dict=False,
        )[0]
        return -torch.stack(answers).squeeze(2)

    def time_shift(self, tokens: int) -> float:
        return scheduled_shift(self._scheduler, tokens)

    def adapter_targets(self) -> Sequence[str]:
        return TARGETS[self.options.targets]

    def adapter_formats(self) -> Mapping[str, AdapterFormat]:
        from st.model.files.peft_layout import diffusers_format
        from st_z_image.formats import comfyui, kohya

        return {
            "diffusers": diffusers_format(self.denoiser),
            "comfyui": comfyui(),
            "kohya": kohya(self.module_paths),
        }

    def architecture(self) -> Architecture:
        from st.model.adapters.architecture import Architecture

        name = "z-image-turbo" if self.options.published.few_steps else "z-image"
        return Architecture(name, "https://github.com/Tongyi-MAI/Z-Image", "zimage", "networks.lora_zimage")

    def blocks(self) -> Sequence[BlockGroup]:
        if self.options.published.sees:
            # Each sample's picture lies behind its caption and its references.
            behind = TokenStream("x", place="each", count=omni.count, starts=omni.starts, select=omni.keep_rows)
            return (BlockGroup("layers", behind),)
        # Behind the picture's tokens lie those that fill it up to a multiple of 32, and in `layers` the caption's.
        stream = TokenStream(argument="x", place="first", count=_count, select=_keep_picture_rows)
        return tuple(BlockGroup(kind, stream) for kind in ("noise_refiner", "layers"))

    def render_arguments(self, geometry: Geometry) -> Mapping[str, Any]:
        options = self.options
        return {"cfg_normalization": options.cfg_normalization, "cfg_truncation": options.cfg_truncation}

    def render(self, denoiser: nn.Module, shot: Shot) -> Tensor:
        # The pipeline guides at any strength above 0, by a negative that it has to be given.
        shot = shot if shot.negative is not None else replace(shot, guidance=0.0)
        with without_assistant(denoiser):
            return super().render(denoiser, shot)

    def _draw(self, pipeline: Any, wanted: Mapping[str, Any], shot: Shot) -> Tensor:
        lists: dict[str, Any] = {name: list(wanted[name].unbind()) for name in LISTS if name in wanted}
        if self.options.published.sees:
            # Without pictures a caption is one piece.
            lists = {name: [[rows] for rows in texts] for name, texts in lists.items()}
        return super()._draw(pipeline, {**wanted, **lists}, shot)

    @classmethod
    def tiny(cls, directory: Path, flavour: Name = "base") -> Self:
        from st_z_image.tiny import write_tiny

        write_tiny(directory, sees=FLAVOURS[flavour].sees)
        options = ZImageOptions(flavour=flavour, checkpoint=str(directory), max_tokens=128, text_precision="fp32")
        return cls(options)

    def _check_flavour(self) -> None:
        self.require_flavour(self.options.flavour, {name: one.pipeline for name, one in FLAVOURS.items()})

    @cached_property
    def _scheduler(self) -> Mapping[str, Any]:
        return self.folder.config("scheduler")


def _captions(conditions: Mapping[str, Tensor], dtype: Any) -> list[Tensor]:
    """(T, D) of each sample: as many rows as its caption has tokens."""
    rows = conditions[TEXT].to(dtype)
    mask = conditions.get(f"{TEXT}_mask")
    return list(rows.unbind()) if mask is None else [row[real] for row, real in zip(rows, mask, strict=True)]


def _count(arguments: Mapping[str, Any]) -> int:
    """Tokens of a picture, from what the denoiser is given."""
    return token_count(arguments["x"][0])


def _keep_picture_rows(arguments: Mapping[str, Any], keep: Tensor) -> dict[str, Any]:
    """Rotary tables, (B, S, D), and masks, (B, S), hold the picture first."""
    import torch

    tables, mask = arguments["freqs_cis"], arguments["attn_mask"]
    behind = arguments["x"].shape[1] - len(keep)
    rows = torch.cat([keep, torch.arange(tables.shape[1] - behind, tables.shape[1], device=keep.device)])
    return {"freqs_cis": tables[:, rows], "attn_mask": None if mask is None else mask[:, rows]}
