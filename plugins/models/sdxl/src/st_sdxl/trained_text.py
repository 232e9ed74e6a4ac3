"""A U-Net that learns together with both text encoders, as one module."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from st.model.checkpoint.networks import check_config, load_component

if TYPE_CHECKING:
    from st.model.checkpoint.checkpoint_folder import CheckpointFolder

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
INSIDE = "text_model."
"""Begins the names of a text encoder's weights in files, whether or not the class has a module of that name."""


class UnetWithText(nn.Module):
    """A U-Net and the two text encoders that read for it.

    zeros: whether what has no caption is read as zeros. Training asks through ``forward``, which is where sharded
    weights are gathered.
    """

    def __init__(self, unet: nn.Module, text_encoder: nn.Module, text_encoder_2: nn.Module, zeros: bool) -> None:
        super().__init__()
        self.unet, self.text_encoder, self.text_encoder_2 = unet, text_encoder, text_encoder_2
        self.zeros = zeros

    def forward(self, x: Tensor, index: Tensor, conditions: dict[str, Tensor], time_ids: Tensor) -> Tensor:
        """The U-Net's answer, like x. conditions: ``tokens``, ``tokens_2`` (B, 77) and ``captioned`` (B, 1)."""
        read = self.read(conditions)
        answer: Tensor = self.unet(
            x,
            index,
            encoder_hidden_states=read["prompt_embeds"],
            added_cond_kwargs={"text_embeds": read["pooled_prompt_embeds"], "time_ids": time_ids},
            return_dict=False,
        )[0]
        return answer

    def read(self, conditions: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the pipeline's ``encode_prompt`` gives for these tokens: ``prompt_embeds``, ``pooled_prompt_embeds``."""
        first = self.text_encoder(conditions["tokens"], output_hidden_states=True)
        second = self.text_encoder_2(conditions["tokens_2"], output_hidden_states=True)
        embeds = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        pooled: Tensor = second.text_embeds
        if self.zeros:
            captioned = conditions["captioned"].to(embeds.dtype)
            embeds, pooled = embeds * captioned[:, :, None], pooled * captioned
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}


def load_text_encoder(folder: CheckpointFolder, component: str, dtype: torch.dtype) -> nn.Module:
    """One text encoder with its weights."""
    loaded: nn.Module = load_component(folder, component, dtype)
    return loaded


def text_modules(folder: CheckpointFolder, component: str) -> list[str]:
    """Every module path of a text encoder, found without its weights."""
    import transformers

    kind: Any = getattr(transformers, folder.components()[component])
    check_config(folder.root([component]) / component, f"model.checkpoint = {folder.location!r}")
    with torch.device("meta"):
        encoder: nn.Module = kind(kind.config_class(**folder.config(component)))
    return [path for path, _ in encoder.named_modules()]


def save_text_encoder(encoder: nn.Module, directory: Path) -> None:
    """Write a text encoder with the names that every version of transformers, and other programs, read."""
    from safetensors.torch import save_file

    shutil.rmtree(directory, ignore_errors=True)
    config: Any = encoder.config
    config.architectures = [type(encoder).__name__]
    config.save_pretrained(directory)
    named = {
        name if name.startswith((INSIDE, "text_projection")) else f"{INSIDE}{name}": tensor.detach().cpu().contiguous()
        for name, tensor in encoder.state_dict().items()
    }
    save_file(named, directory / "model.safetensors", metadata={"format": "pt"})
