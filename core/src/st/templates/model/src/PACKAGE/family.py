"""CLASS: what the model is made of, how it is asked, and where it may be changed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import st

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch import Tensor, nn

PATCH = 8
"""Pixels along the side of a token."""

CHANNELS = 3 * PATCH * PATCH
TEXT_WIDTH = 64

CONFIG: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "patch_size": 1,
    "num_layers": 4,
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "cross_attention_dim": 128,
    "caption_channels": TEXT_WIDTH,
    "norm_type": "ada_norm_single",
    "use_additional_conditions": False,
}
"""Sizes of a denoiser that learns from nothing; a checkpoint brings its own."""


def _transformer() -> Any:
    """The upstream class, which has no types."""
    from diffusers import PixArtTransformer2DModel

    return PixArtTransformer2DModel


class CLASS(st.ModelFamily["CLASS.Options"]):
    """A PixArt transformer on 8x8 patches of pixels."""

    class Options(st.Options):
        checkpoint: str = ""
        """Folder of trained weights; empty to start from random ones."""
        seed: int = 0
        """Seed of the random weights that training starts from without a checkpoint."""

    geometry = st.GeometryRule(multiple=PATCH)

    def codec(self) -> st.LatentCodec:
        from PACKAGE.encoders import PatchCodec

        return PatchCodec()

    def text_encoders(self) -> Sequence[st.Encoder]:
        from PACKAGE.encoders import ByteText

        return (ByteText(),)

    def load_denoiser(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        import torch

        if self.options.checkpoint:
            folder = Path(self.options.checkpoint) / "transformer"
            if not folder.is_dir():
                raise st.StError(f"model.checkpoint: {str(folder)!r} is not a folder")
            denoiser = _transformer().from_pretrained(folder, local_files_only=True)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.options.seed)
                denoiser = _transformer()(**CONFIG)
        module: nn.Module = denoiser.to(device, dtype).eval()
        return module

    def tokens(self, latents: Tensor) -> int:
        return latents.shape[-1] * latents.shape[-2]

    def predict(self, denoiser: nn.Module, noised: st.Noised, batch: st.Batch) -> Tensor:
        mask = batch.conditions.get("text_mask")
        answer: Tensor = denoiser(
            noised.x,
            encoder_hidden_states=batch.conditions["text"].to(noised.x.dtype),
            encoder_attention_mask=mask,
            timestep=noised.t * 1000,
            return_dict=False,
        )[0]
        return answer

    def adapter_targets(self) -> Sequence[str]:
        return "to_q", "to_k", "to_v", "to_out.0"

    def adapter_formats(self) -> Mapping[str, st.AdapterFormat]:
        return {"diffusers": st.diffusers_format("transformer")}

    def blocks(self) -> Sequence[st.BlockGroup]:
        return (st.BlockGroup("transformer_blocks"),)

    def save_checkpoint(self, denoiser: nn.Module, directory: Path) -> None:
        save: Any = denoiser
        save.save_pretrained(directory / "transformer")

    @classmethod
    def tiny(cls, directory: Path) -> Self:
        import torch

        small = CONFIG | {"num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 16}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _transformer()(**small).save_pretrained(directory / "transformer")
        return cls(cls.Options(checkpoint=str(directory)))
