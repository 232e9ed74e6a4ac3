"""Flavours: the published models of the family, and what is set for any of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Self

from pydantic import Field, model_validator

from st.model.pipelines.pipeline_family import PipelineOptions


@dataclass(frozen=True, slots=True)
class Flavour:
    """One published model.

    repository: on the hub; '' where none is published. pipeline: its class in diffusers. denoiser: another repository
    that holds the denoiser only. assistant: an adapter that is there while it is trained. few_steps: how many steps it
    is distilled to; 0 for none. sees: whether it is shown reference pictures.
    """

    repository: str
    pipeline: str = "ZImagePipeline"
    denoiser: str = ""
    assistant: str = ""
    few_steps: int = 0
    sees: bool = False


Name = Literal["base", "turbo", "de-turbo", "omni"]

FLAVOURS: Mapping[str, Flavour] = MappingProxyType(
    {
        "base": Flavour("Tongyi-MAI/Z-Image"),
        "turbo": Flavour(
            "Tongyi-MAI/Z-Image-Turbo",
            assistant="ostris/zimage_turbo_training_adapter/zimage_turbo_training_adapter_v2.safetensors",
            few_steps=8,
        ),
        "de-turbo": Flavour("Tongyi-MAI/Z-Image-Turbo", denoiser="ostris/Z-Image-De-Turbo"),
        "omni": Flavour("", pipeline="ZImageOmniPipeline", sees=True),
    }
)

ATTENTION = ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0")
MLP = ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3")

TARGETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "attention": tuple(f"layers.*.{layer}" for layer in ATTENTION),
        "all": ATTENTION,
        "all+ffs": ATTENTION + MLP,
        "modulation": (*ATTENTION, *MLP, "adaLN_modulation.0"),
    }
)


class ZImageOptions(PipelineOptions):
    """Which Z-Image model is trained, and how it is asked."""

    flavour: Name = "base"
    """Published model that is trained, or that a checkpoint of your own comes from. Of omni, which is shown reference
    pictures, a checkpoint has to be named."""
    checkpoint: str = ""
    """Another folder in diffusers' layout, or a repository on the hub as owner/name. Empty: the flavour's own."""
    targets: Literal["attention", "all", "all+ffs", "modulation"] = "all"
    """Layers that an adapter changes: attention is that of the 30 joint blocks, all that of the refiners too; +ffs adds
    the layers between, modulation those that the time acts through as well. [adapter] targets names others."""
    max_tokens: int = Field(default=512, ge=1, le=512)
    """Tokens that the text encoder reads of a caption with its template. Shorter captions take no more room."""
    assistant: str = ""
    """Adapter that is there in training and not in previews, so that a distilled model stays one: a file, or a
    repository on the hub. Empty: turbo's for turbo, none for the others."""
    assistant_strength: float = Field(default=1.0, ge=0)
    """How strong the assistant is. 0 trains without."""
    cfg_normalization: float = Field(default=0.0, ge=0)
    """In previews, how far guidance may lengthen the answer, as a factor of its length without; 0 is no limit."""
    cfg_truncation: float = Field(default=1.0, ge=0, le=1)
    """In previews, how far along a picture is guided: 1 is to its end, 0.5 while it is more noise than picture."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.checkpoint.endswith(".safetensors"):
            raise ValueError(
                "checkpoint is a whole model; name a single file of weights in denoiser, and the flavour that it is of"
            )
        if not self.checkpoint and not self.published.repository:
            raise ValueError(
                f"no weights of flavour {self.flavour} are published; name a folder in the layout of "
                f"{self.published.pipeline} in checkpoint"
            )
        if "assistant_strength" in self.model_fields_set and not (self.assistant or self.published.assistant):
            raise ValueError(
                f"assistant_strength has no effect: {self.flavour} has no assistant; name one, or delete it"
            )
        return self

    @property
    def published(self) -> Flavour:
        """What is known of the flavour."""
        return FLAVOURS[self.flavour]

    @property
    def helper(self) -> str:
        """Where the assistant is; '' for none."""
        return (self.assistant or self.published.assistant) if self.assistant_strength else ""
