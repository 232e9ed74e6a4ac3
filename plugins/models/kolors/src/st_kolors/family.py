"""Kwai Kolors: SDXL's U-Net, which hears a language model in place of two text encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from st import StError
from st_kolors.settings import REPOSITORIES, KolorsOptions
from st_sdxl.checkpoint import check_channels
from st_sdxl.unet import UnetFamily, size_ids, weight_type

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from st import Batch

NARROWS = "encoder_hid_proj"
"""The layer from the width of the language model to that of the U-Net's attention."""


class Kolors(UnetFamily[KolorsOptions]):
    """Kwai Kolors.

    Times are the indices of a table of 1100. As SDXL's, the U-Net is told the size of a picture's file, where the
    resized picture was cropped, and what was left.
    """

    Options: ClassVar[type[KolorsOptions]] = KolorsOptions
    pipeline = "KolorsPipeline"
    encodes = ("prompt_embeds", None, "pooled_prompt_embeds", None)
    first_attends = 2  # the outermost blocks only convolve
    kohya_original = None

    def __init__(self, options: KolorsOptions) -> None:
        location = options.checkpoint or REPOSITORIES[options.flavour]
        super().__init__(options.model_copy(update={"checkpoint": location}))

    def told(self, batch: Batch, dtype: torch.dtype) -> Mapping[str, Any]:
        pooled = batch.conditions["pooled_prompt_embeds"].to(dtype)
        return {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": size_ids(batch)}}

    def make_control(self, denoiser: nn.Module, layers: Sequence[int]) -> nn.Module:
        """Upstream's control network, begun from the U-Net's first half and from how it reads text."""
        network = super().make_control(denoiser, layers)
        network.get_submodule(NARROWS).load_state_dict(denoiser.get_submodule(NARROWS).state_dict())
        return network

    def controlled(self, network: nn.Module, arguments: Mapping[str, Any], shown: Tensor) -> Mapping[str, Any]:
        """The control network's residuals. shown: (B, 3, H, W) uint8."""
        # Upstream's class has the layer that narrows text and leaves it to its caller; pipelines for Kolors apply it.
        narrowed: nn.Module = network.get_submodule(NARROWS)
        text = narrowed(arguments["encoder_hidden_states"].to(weight_type(network)))
        return super().controlled(network, {**arguments, "encoder_hidden_states": text}, shown)

    def check_denoiser(self) -> None:
        unet = self.folder.config("unet")
        if unet.get("addition_embed_type") != "text_time" or unet.get("encoder_hid_dim_type") != "text_proj":
            raise StError(
                f"model.checkpoint = {self.options.checkpoint!r} is not a model of this family",
                why="its U-Net does not read a language model and the sizes of its pictures as Kolors' does",
                fix="name another checkpoint, or the plugin of that model's family",
            )
        check_channels(self.folder, self.denoiser)

    @classmethod
    def tiny(cls, directory: Path) -> Self:
        from st_kolors.tiny import write_tiny

        write_tiny(directory)
        return cls(cls.Options(checkpoint=str(directory)))
