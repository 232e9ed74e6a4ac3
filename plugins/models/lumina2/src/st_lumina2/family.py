"""Lumina2: Lumina-Image 2.0 as diffusers has it, asked the way its pipeline asks it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from st import BlockGroup, GeometryRule, StError, TokenStream
from st.diffusion.path import straight
from st.diffusion.target import velocity
from st.model.pipelines.packing import token_count
from st.model.pipelines.pipeline_family import PipelineFamily
from st.model.pipelines.schedule import scheduled_shift
from st_lumina2.flavours import TARGETS, Lumina2Options

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from st import Batch, Geometry, Noised
    from st.model.adapters.architecture import Architecture
    from st.model.files.formats import AdapterFormat

TEXT, MASK = "prompt_embeds", "prompt_attention_mask"


class Lumina2(PipelineFamily[Lumina2Options]):
    """Lumina-Image 2.0 and Neta Lumina.

    Time is 1 - the denoiser's own, which is 0 for noise; its answer is clean - noise, so the sign is turned.
    """

    Options: ClassVar[type[Lumina2Options]] = Lumina2Options
    pipeline = "Lumina2Pipeline"
    encodes = (TEXT, MASK, None, None)
    encodes_negative = (None, None, TEXT, MASK)
    trims: Mapping[str, str] = MappingProxyType({TEXT: MASK})
    geometry = GeometryRule(multiple=16)
    path = staticmethod(straight)
    target = staticmethod(velocity)
    full_precision = ("x_embedder", "time_caption_embed.*", "norm_out.*")

    def __init__(self, options: Lumina2Options) -> None:
        super().__init__(options.model_copy(update={"checkpoint": options.checkpoint or options.published.repository}))

    def prompt_arguments(self) -> Mapping[str, Any]:
        return {"max_sequence_length": self.options.max_tokens, "system_prompt": self.options.before}

    def load_denoiser(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        denoiser = super().load_denoiser(device, dtype)
        config: Any = denoiser.config
        positions = int(config.axes_lens[0])
        if self.options.max_tokens >= positions:
            raise StError(
                f"model.max_tokens = {self.options.max_tokens} is more than this model has positions for",
                why=f"{positions} of them are for the caption and the picture behind it",
                fix=f"set model.max_tokens to {positions - 1} or less",
            )
        return denoiser

    def tokens(self, latents: Tensor) -> int:
        return token_count(latents)

    def predict(self, denoiser: nn.Module, noised: Noised, batch: Batch) -> Tensor:
        dtype = next(one for one in denoiser.parameters() if one.is_floating_point()).dtype
        rows = batch.conditions[TEXT].to(dtype)
        mask = batch.conditions.get(f"{TEXT}_mask")
        answer: Tensor = denoiser(
            hidden_states=noised.x.to(dtype),
            timestep=1 - noised.t,
            encoder_hidden_states=rows,
            encoder_attention_mask=rows.new_ones(rows.shape[:2]).long() if mask is None else mask.long(),
            return_dict=False,
        )[0]
        return -answer

    def time_shift(self, tokens: int) -> float:
        return scheduled_shift(self._scheduler, tokens)

    def adapter_targets(self) -> Sequence[str]:
        return TARGETS[self.options.targets]

    def adapter_formats(self) -> Mapping[str, AdapterFormat]:
        from st.model.files.peft_layout import diffusers_format
        from st_lumina2.formats import COMFYUI, KOHYA

        return {"diffusers": diffusers_format(self.denoiser), "comfyui": COMFYUI, "kohya": KOHYA}

    def architecture(self) -> Architecture:
        from st.model.adapters.architecture import Architecture

        makers = "https://github.com/Alpha-VLLM/Lumina-Image-2.0"
        return Architecture("lumina-2", makers, "lumina2", "networks.lora_lumina")

    def blocks(self) -> Sequence[BlockGroup]:
        # Each sample's picture lies behind as many tokens as its caption has.
        stream = TokenStream(place="each", count=_count, starts=_starts, select=_keep_rows)
        return (BlockGroup("layers", stream),)

    def render_arguments(self, geometry: Geometry) -> Mapping[str, Any]:
        options = self.options
        return {"cfg_normalization": options.cfg_normalization, "cfg_trunc_ratio": options.cfg_truncation}

    def _conditions(self, conditions: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """With the padding that the pipeline gives its own texts, so that it computes the same numbers."""
        from torch.nn.functional import pad

        rows = conditions[TEXT]
        lacking = max(0, self.options.max_tokens - rows.shape[1])
        present = conditions.get(f"{TEXT}_mask", rows.new_ones(rows.shape[:2]).bool())
        padded = {TEXT: pad(rows, (0, 0, 0, lacking)), f"{TEXT}_mask": pad(present, (0, lacking))}
        return super()._conditions(padded, prefix)

    @classmethod
    def tiny(cls, directory: Path) -> Self:
        from st_lumina2.tiny import write_tiny

        write_tiny(directory)
        return cls(Lumina2Options(checkpoint=str(directory), text_precision="fp32"))

    @cached_property
    def _scheduler(self) -> Mapping[str, Any]:
        return self.folder.config("scheduler")


def _count(arguments: Mapping[str, Any]) -> int:
    """Tokens of a picture, from what the denoiser is given."""
    return token_count(arguments["hidden_states"])


def _starts(arguments: Mapping[str, Any]) -> Tensor:
    """Where they begin: behind the caption's."""
    found: Tensor = arguments["encoder_attention_mask"].sum(1)
    return found


def _keep_rows(arguments: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    """Rotary tables, (B, S, D), and masks, (B, S). rows: (B, N) of each sample's own."""
    tables, mask = arguments["image_rotary_emb"], arguments["attention_mask"]
    kept = tables.gather(1, rows[..., None].expand(-1, -1, tables.shape[-1]))
    return {"image_rotary_emb": kept, "attention_mask": None if mask is None else mask.gather(1, rows)}
