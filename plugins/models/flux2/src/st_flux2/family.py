"""Flux2: Flux.2 as diffusers has it, asked the way its pipelines ask it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

from st import BlockGroup, GeometryRule, Problem, StError, TokenStream, hookimpl
from st.diffusion.path import straight
from st.diffusion.target import velocity
from st.model.adapters.references import References, shown_latents
from st.model.pipelines.pipeline_family import PipelineFamily
from st_flux2.codec import Flux2Codec
from st_flux2.flavours import DEV, FLAVOURS, TARGETS, Flux2Options, Name
from st_flux2.places import places, reference_places, text_places

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from st import Batch, Noised, Shot
    from st.model.adapters.architecture import Architecture
    from st.model.files.formats import AdapterFormat
    from st.settings.config import RunConfig


MANY = 200
"""Steps for which the pipeline moves times the least, before its rule is no more than extended. Fewer steps are moved
further, to be taken where they are needed most; training takes all times."""


class Flux2(PipelineFamily[Flux2Options]):
    """Flux.2: dev and klein.

    Time is the model's own, 0 for clean and 1 for noise, and its answer is noise - clean.
    """

    Options: ClassVar[type[Flux2Options]] = Flux2Options
    encodes: Sequence[str | None] = ("prompt_embeds", None)
    codec_class = Flux2Codec
    geometry = GeometryRule(multiple=16)
    path = staticmethod(straight)
    target = staticmethod(velocity)
    full_precision = ("x_embedder", "context_embedder", "norm_out.linear")

    def __init__(self, options: Flux2Options) -> None:
        super().__init__(options.model_copy(update={"checkpoint": options.checkpoint or options.published.repository}))
        self.pipeline = options.published.pipeline

    @hookimpl
    def st_check(self, config: RunConfig) -> Iterable[Problem]:
        """A negative that a distilled model does not look at."""
        one = self.options.published
        if (one.few_steps or one.pipeline == DEV) and config.validation.negative:
            why = f"{self.options.flavour} is distilled: " + (
                "it is not guided." if one.few_steps else "it is told guidance."
            )
            yield Problem("validation.negative", "validation.negative has no effect.", why, "Delete it.")

    def caveats(self) -> Sequence[str]:
        """What training does to a model of few steps."""
        one = self.options.published
        if not one.few_steps:
            return ()
        told = f"{self.options.flavour} is distilled into few steps, and training undoes that by and by"
        guided = "its previews are drawn without guidance, whatever validation.guidance says"
        return (f"{told}; what {one.base} learns can be used on it too", guided)

    def check(self) -> None:
        super().check()
        index, one = self.folder.index(), self.options.published
        reader = self.folder.components().get("text_encoder", "")
        others = {name for name, other in FLAVOURS.items() if other.pipeline != one.pipeline}
        if not _takes(self._pipeline_class(), "text_encoder", reader):
            raise self._of_another(f"it reads captions with {reader}", ", ".join(map(repr, sorted(others))))
        if bool(index.get("is_distilled")) != one.few_steps:
            found = "is" if index.get("is_distilled") else "is not"
            same = (name for name, other in FLAVOURS.items() if other.pipeline == one.pipeline)
            names = [name for name in same if FLAVOURS[name].few_steps != one.few_steps]
            raise self._of_another(f"it {found} distilled into few steps", ", ".join(map(repr, sorted(names))))

    def _of_another(self, why: str, names: str) -> StError:
        return StError(
            f"model.checkpoint = {self.options.checkpoint!r} is not a {self.options.flavour}",
            why=why,
            fix=f"set model.flavour to the one that it comes from, such as {names}",
        )

    def references(self) -> References:
        """Pictures to edit or to go by: any number, none too."""
        return References(at_least=0)

    def prompt_arguments(self) -> Mapping[str, Any]:
        return {"max_sequence_length": self.options.max_tokens}

    def load_denoiser(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        denoiser = super().load_denoiser(device, dtype)
        config: Any = denoiser.config
        channels = 4 * int(self.folder.config(self.autoencoder)["latent_channels"])
        if config.in_channels != channels:
            raise StError(
                f"model.checkpoint = {self.options.checkpoint!r} is not a model that draws",
                why=f"its denoiser takes {config.in_channels} channels, {channels} are a picture's",
                fix="name one that draws from text, or from text and references",
            )
        return denoiser

    def tokens(self, latents: Tensor) -> int:
        return latents.shape[-2] * latents.shape[-1]

    def predict(self, denoiser: nn.Module, noised: Noised, batch: Batch) -> Tensor:
        import torch

        dtype = next(one for one in denoiser.parameters() if one.is_floating_point()).dtype
        references = shown_latents(batch.extras)
        text = batch.conditions["prompt_embeds"].to(dtype)
        picture = [one.to(dtype).flatten(2).transpose(1, 2) for one in (noised.x, *references)]
        prediction: Tensor = denoiser(
            hidden_states=torch.cat(picture, dim=1),
            encoder_hidden_states=text,
            timestep=noised.t,
            guidance=self._guidance(denoiser, batch, noised.t),
            img_ids=torch.cat([places(noised.x), *reference_places(references)]),
            txt_ids=text_places(text.shape[1], noised.x.device),
            return_dict=False,
        )[0]
        return prediction[:, : self.tokens(noised.x)].transpose(1, 2).reshape(noised.x.shape)

    def time_shift(self, tokens: int) -> float:
        if not self._scheduler.get("use_dynamic_shifting", False):
            return float(self._scheduler.get("shift", 1.0))
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

        return math.exp(compute_empirical_mu(tokens, MANY))

    def adapter_targets(self) -> Sequence[str]:
        return TARGETS[self.options.targets]

    def adapter_formats(self) -> Mapping[str, AdapterFormat]:
        from st_flux2.formats import COMFYUI, KOHYA

        return {**super().adapter_formats(), "comfyui": COMFYUI, "kohya": KOHYA}

    def architecture(self) -> Architecture:
        from st.model.adapters.architecture import Architecture

        one, makers = self.options.published, "https://github.com/black-forest-labs/flux2"
        return Architecture(one.architecture, makers, one.version, "networks.lora_flux_2")

    def blocks(self) -> Sequence[BlockGroup]:
        both = TokenStream(returned=1, select=_keep_picture_rows)  # (text, picture)
        behind = TokenStream(place="last", select=_keep_rows_behind)
        return BlockGroup("transformer_blocks", both), BlockGroup("single_transformer_blocks", behind)

    def render(self, denoiser: nn.Module, shot: Shot) -> Tensor:
        guided = self.options.published.pipeline != DEV and not self.options.published.few_steps
        return super().render(denoiser, shot if guided else replace(shot, negative=None))

    @classmethod
    def tiny(cls, directory: Path, flavour: Name = "klein-base-4b") -> Self:
        from st_flux2.tiny import write_tiny

        write_tiny(directory, flavour)
        checkpoint = str(directory)
        return cls(Flux2Options(flavour=flavour, checkpoint=checkpoint, max_tokens=48, text_precision="fp32"))

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


def _takes(pipeline: Any, component: str, kind: str) -> bool:
    """Whether a pipeline has a component of this class, as its own signature says."""
    import inspect

    return kind in str(inspect.signature(pipeline.__init__).parameters[component].annotation)


def _keep_picture_rows(arguments: Mapping[str, Any], keep: Tensor) -> dict[str, Any]:
    """Rotary tables, (T + S, D), hold text first."""
    return _kept_rows(arguments, keep, arguments["encoder_hidden_states"].shape[1])


def _keep_rows_behind(arguments: Mapping[str, Any], keep: Tensor) -> dict[str, Any]:
    """The same where text is in the sequence itself: what was not kept is gone from it."""
    return _kept_rows(arguments, keep, arguments["hidden_states"].shape[1] - len(keep))


def _kept_rows(arguments: Mapping[str, Any], keep: Tensor, text: int) -> dict[str, Any]:
    import torch

    rows = torch.cat([torch.arange(text, device=keep.device), keep + text])
    return {"image_rotary_emb": tuple(table[rows] for table in arguments["image_rotary_emb"])}
