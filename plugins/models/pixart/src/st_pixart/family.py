"""PixArt Sigma: a transformer that hears T5, whole or as two experts of a stage each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from st import BlockGroup, GeometryRule, StError, TokenStream
from st.model.pipelines.packing import token_count
from st_pixart.flavours import TARGETS, PixArtOptions
from st_sdxl.checkpoint import check_channels
from st_sdxl.table_family import TableFamily

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from st import Batch, Geometry, Noised, Shot
    from st.model.files.formats import AdapterFormat


class PixArt(TableFamily[PixArtOptions]):
    """PixArt Sigma. Chen et al. 2024, arXiv:2403.04692.

    Its answer is the noise, and beside it a variance that nothing here or in the pipeline reads.
    """

    Options: ClassVar[type[PixArtOptions]] = PixArtOptions
    pipeline = "PixArtSigmaPipeline"
    encodes = ("prompt_embeds", "prompt_attention_mask", None, None)
    geometry = GeometryRule(multiple=16)
    full_precision = ("pos_embed.proj", "adaln_single.linear", "linear_1", "linear_2", "proj_out")

    def __init__(self, options: PixArtOptions) -> None:
        super().__init__(options.model_copy(update={"checkpoint": options.checkpoint or options.published.repository}))
        self._partner: nn.Module | None = None

    def prompt_arguments(self) -> Mapping[str, Any]:
        # The pipeline's own cleaning needs two more libraries, and without them does this and says nothing.
        return {"max_sequence_length": self.options.max_tokens, "clean_caption": False}

    def tokens(self, latents: Tensor) -> int:
        return token_count(latents)

    def predict(self, denoiser: nn.Module, noised: Noised, batch: Batch) -> Tensor:
        dtype = next(one for one in denoiser.parameters() if one.is_floating_point()).dtype
        answer: Tensor = denoiser(
            noised.x.to(dtype),
            encoder_hidden_states=batch.conditions["prompt_embeds"].to(dtype),
            encoder_attention_mask=batch.conditions["prompt_attention_mask"],
            timestep=self.path.index(noised.t).clamp(min=0),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        return self.meant(answer[:, : noised.x.shape[1]], noised)

    def adapter_targets(self) -> Sequence[str]:
        return TARGETS[self.options.targets]

    def adapter_formats(self) -> Mapping[str, AdapterFormat]:
        from st.model.files.peft_layout import diffusers_format
        from st_pixart.formats import COMFYUI

        return {"diffusers": diffusers_format(self.denoiser), "comfyui": COMFYUI}

    def blocks(self) -> Sequence[BlockGroup]:
        return (BlockGroup("transformer_blocks", TokenStream()),)

    def render_arguments(self, geometry: Geometry) -> Mapping[str, Any]:
        # The pipeline moves any size to one of a list, unless it is told not to.
        return {**super().render_arguments(geometry), "use_resolution_binning": False}

    def render(self, denoiser: nn.Module, shot: Shot) -> Tensor:
        if not self.options.partner:
            return super().render(denoiser, shot)
        from st_pixart.experts import Experts

        weight = next(one for one in denoiser.parameters() if one.is_floating_point())
        partner = self._other(weight.dtype).to(weight.device)
        noisy, clean = (denoiser, partner) if self.options.learnt == "first" else (partner, denoiser)
        try:
            return super().render(Experts(noisy, clean, self.options.border * self.path.steps), shot)
        finally:
            partner.to("cpu")

    def check_denoiser(self) -> None:
        config = self.folder.config(self.denoiser)
        if config.get("use_additional_conditions"):
            raise StError(
                f"model.checkpoint = {self.options.checkpoint!r} is a PixArt Alpha, which is told sizes",
                fix="name a checkpoint of PixArt Sigma",
            )
        check_channels(self.folder, self.denoiser)

    @classmethod
    def tiny(cls, directory: Path) -> Self:
        from st_pixart.tiny import write_tiny

        write_tiny(directory)
        return cls(cls.Options(checkpoint=str(directory), max_tokens=48))

    def _other(self, dtype: torch.dtype) -> nn.Module:
        """The expert of the other stage; on the CPU from one preview to the next."""
        if self._partner is None:
            from st.model.checkpoint.checkpoint_folder import CheckpointFolder
            from st.model.checkpoint.networks import load_component

            loaded: nn.Module = load_component(CheckpointFolder(self.options.partner), self.denoiser, dtype)
            self._partner = loaded.eval().requires_grad_(False)
        return self._partner
