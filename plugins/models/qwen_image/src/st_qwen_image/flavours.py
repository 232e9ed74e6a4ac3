"""Flavours: the published models of the family, and what is set for any of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Self

from pydantic import Field, model_validator

from st.model.pipelines.pipeline_family import PipelineOptions

TOKENS = 512
"""Of a caption that the pipeline from text reads where nothing is said."""


@dataclass(frozen=True, slots=True)
class Flavour:
    """One published model.

    repository: on the hub. pipeline: its class in diffusers. sight: about how many pixels of each reference the text
    encoder is shown; 0 for a model that is shown none. most: references that it takes; 0 is any number. name: what
    other programs call it.
    """

    repository: str
    pipeline: str = "QwenImagePipeline"
    sight: int = 0
    most: int = 1
    name: str = "qwen-image"

    @property
    def edits(self) -> bool:
        """Whether it is shown pictures."""
        return bool(self.sight)


SEVERAL = "QwenImageEditPlusPipeline"
FLAVOURS: Mapping[str, Flavour] = MappingProxyType(
    {
        "base": Flavour("Qwen/Qwen-Image"),
        "2512": Flavour("Qwen/Qwen-Image-2512"),
        "edit": Flavour("Qwen/Qwen-Image-Edit", "QwenImageEditPipeline", 1024**2, name="qwen-image-edit"),
        "edit-2509": Flavour("Qwen/Qwen-Image-Edit-2509", SEVERAL, 384**2, 0, "qwen-image-edit-2509"),
        "edit-2511": Flavour("Qwen/Qwen-Image-Edit-2511", SEVERAL, 384**2, 0, "qwen-image-edit-2511"),
    }
)

PICTURE = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
TEXT = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out")
TEXT_MLP = ("txt_mlp.net.0.proj", "txt_mlp.net.2")
MLP = ("img_mlp.net.0.proj", "img_mlp.net.2", *TEXT_MLP)
MODULATION = ("img_mod.1", "txt_mod.1")

TARGETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "mmdit": PICTURE,
        "all": PICTURE + TEXT,
        "all+ffs": PICTURE + TEXT + MLP,
        "modulation": PICTURE + TEXT + MLP + MODULATION,
        "context": TEXT,
        "context+ffs": TEXT + TEXT_MLP,
    }
)


class QwenImageOptions(PipelineOptions):
    """Which Qwen-Image model is trained, and how it is asked."""

    flavour: Literal["base", "2512", "edit", "edit-2509", "edit-2511"] = "2512"
    """Published model that is trained, or that a checkpoint of your own comes from."""
    checkpoint: str = ""
    """Another folder in diffusers' layout, or a repository on the hub as owner/name. Empty: the flavour's own."""
    targets: Literal["mmdit", "all", "all+ffs", "modulation", "context", "context+ffs"] = "all"
    """Layers that an adapter changes: mmdit is attention where pictures pass, context where only text does, all is
    both; +ffs adds the layers between, modulation also those that the time acts through. [adapter] targets names
    others."""
    max_tokens: int | None = Field(default=None, ge=1, le=1024)
    """Tokens that are kept of a caption, for flavours that draw from text alone; the others read all of it. Unset: 512.
    Shorter captions take no more room."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.checkpoint.endswith(".safetensors"):
            raise ValueError(
                "checkpoint is a whole model; name a single file of weights in denoiser, and the flavour that it is of"
            )
        if self.max_tokens is not None and self.published.edits:
            raise ValueError(f"max_tokens has no effect: {self.flavour} reads whole captions; delete max_tokens")
        return self

    @property
    def published(self) -> Flavour:
        """What is known of the flavour."""
        return FLAVOURS[self.flavour]
