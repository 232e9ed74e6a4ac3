"""Flux3: FLUX.3 Image Klein as diffusers' modular pipelines have it, asked the way their blocks ask it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

from st import BlockGroup, GeometryRule, ModularFamily, StError, TokenStream
from st.diffusion.path import straight
from st.diffusion.target import velocity
from st.model.adapters.references import References, shown_latents
from st_flux2.codec import Flux2Codec
from st_flux3.flavours import FLAVOURS, TARGETS, Flux3Options, Name
from st_flux3.places import places, reference_places, text_places

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from st import Batch, Noised, Shot
    from st.model.files.formats import AdapterFormat


class Flux3(ModularFamily[Flux3Options]):
    """FLUX.3 Image Klein, base and distilled.

    Time is the model's own, 0 for clean and 1 for noise, and its answer is noise - clean.
    """

    Options: ClassVar[type[Flux3Options]] = Flux3Options
    encodes: Sequence[str | None] = ("prompt_embeds",)
    unwanted_blocks = ("prompt_upsampler",)
    reads_several = False
    codec_class = Flux2Codec
    geometry = GeometryRule(multiple=16)
    path = staticmethod(straight)
    target = staticmethod(velocity)
    full_precision = ("x_embedders.image", "x_embedders.image_cond", "context_embedder", "norm_out.linear")

    def __init__(self, options: Flux3Options) -> None:
        published = FLAVOURS[options.flavour]
        super().__init__(options.model_copy(update={"checkpoint": options.checkpoint or published.repository}))
        self.pipeline, self.few_steps = published.pipeline, published.few_steps

    def caveats(self) -> Sequence[str]:
        """What training does to a model of few steps."""
        if not self.few_steps:
            return ()
        told = f"{self.options.flavour} is distilled into few steps, and training undoes that by and by"
        guided = "its previews are drawn without guidance, whatever validation.guidance says"
        return (f"{told}; what klein-base learns can be tried on it too", guided)

    def references(self) -> References:
        """Pictures to edit or to go by: any number, none too."""
        return References(at_least=0)

    def prompt_arguments(self) -> Mapping[str, Any]:
        return {"max_sequence_length": self.options.max_tokens}

    def load_denoiser(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        denoiser = super().load_denoiser(device, dtype)
        config: Any = denoiser.config
        if bool(config.flow_map) != self.few_steps:
            raise StError(
                f"model.checkpoint = {self.options.checkpoint!r} is not a {self.options.flavour}",
                why=f"it {'is' if config.flow_map else 'is not'} told where a step leads",
                fix="set model.flavour to the one that it comes from, 'klein' or 'klein-base'",
            )
        from st_flux3.masked import hide_zeros

        hide_zeros(denoiser)
        return denoiser

    def tokens(self, latents: Tensor) -> int:
        return latents.shape[-2] * latents.shape[-1]

    def predict(self, denoiser: nn.Module, noised: Noised, batch: Batch) -> Tensor:
        import torch

        dtype = next(one for one in denoiser.parameters() if one.is_floating_point()).dtype
        references = shown_latents(batch.extras)
        text = batch.conditions["prompt_embeds"].to(dtype)
        shown: dict[str, Tensor] = {}
        if references:
            shown["image_cond_hidden_states"] = torch.cat([_flat(one) for one in references], dim=1).to(dtype)
            shown["image_cond_ids"] = reference_places(references)
        if self.few_steps:
            # A step that leads nowhere is the velocity itself, which is what is learned.
            shown["target_timestep"] = noised.told.get("target_time", noised.t)
        real = batch.conditions.get("prompt_embeds_mask")
        with nullcontext() if real is None else self._hidden(denoiser, real):
            prediction: Tensor = denoiser(
                hidden_states=_flat(noised.x).to(dtype),
                encoder_hidden_states=text,
                timestep=noised.t,
                img_ids=places(noised.x),
                txt_ids=text_places(text.shape[1], noised.x.device),
                return_dict=False,
                **shown,
            )[0]
        return prediction.transpose(1, 2).reshape(noised.x.shape)

    def _hidden(self, denoiser: nn.Module, real: Tensor) -> AbstractContextManager[None]:
        from st_flux3.masked import hidden

        return hidden(denoiser, real)

    def time_shift(self, tokens: int) -> float:
        return self._shift

    @cached_property
    def _shift(self) -> float:
        """Of the scheduler that the pipeline's blocks make, or of the checkpoint's own."""
        if "scheduler" in self.folder.components():
            return float(self.folder.config("scheduler").get("shift", 1.0))
        (found,) = (one for one in self._blocks().expected_components if one.name == "scheduler")
        return float(found.config["shift"])

    def adapter_targets(self) -> Sequence[str]:
        return TARGETS[self.options.targets]

    def adapter_formats(self) -> Mapping[str, AdapterFormat]:
        from st_flux3.formats import COMFYUI

        return {**super().adapter_formats(), "comfyui": COMFYUI}

    def blocks(self) -> Sequence[BlockGroup]:
        alone = TokenStream(select=_keep_rows)
        joint = TokenStream(returned=1, place="first", select=_keep_joint_rows)  # (text, picture and references)
        return BlockGroup("mode_blocks.image", alone), BlockGroup("single_transformer_blocks", joint)

    def render(self, denoiser: nn.Module, shot: Shot) -> Tensor:
        return super().render(denoiser, replace(shot, negative=None) if self.few_steps else shot)

    @classmethod
    def tiny(cls, directory: Path, flavour: Name = "klein-base") -> Self:
        from st_flux3.tiny import write_tiny

        write_tiny(directory, flavour)
        return cls(Flux3Options(flavour=flavour, checkpoint=str(directory), max_tokens=160, text_precision="fp32"))


def _flat(latents: Tensor) -> Tensor:
    """(B, C, H, W) as tokens (B, H * W, C)."""
    return latents.flatten(2).transpose(1, 2)


def _keep_rows(arguments: Mapping[str, Any], keep: Tensor) -> dict[str, Any]:
    """Modulation, (B, S, D), and rotary tables, (S, D), are by token."""
    table = tuple(one[keep] for one in arguments["image_rotary_emb"])
    return {"temb_mod": arguments["temb_mod"][:, keep], "image_rotary_emb": table}


def _keep_joint_rows(arguments: Mapping[str, Any], keep: Tensor) -> dict[str, Any]:
    """References follow the picture, and lose nothing; rotary tables hold text before both."""
    import torch

    modulation = arguments["temb_mod"]
    text, shown = arguments["encoder_hidden_states"].shape[1], arguments["hidden_states"].shape[1] - len(keep)
    behind = torch.arange(modulation.shape[1] - shown, modulation.shape[1], device=keep.device)
    rows = torch.cat([keep, behind])
    both = torch.cat([torch.arange(text, device=keep.device), rows + text])
    table = tuple(one[both] for one in arguments["image_rotary_emb"])
    return {"temb_mod": modulation[:, rows], "image_rotary_emb": table}
