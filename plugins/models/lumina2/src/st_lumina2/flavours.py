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

    repository: on the hub. system_prompt: what stands before a caption; '' for the pipeline's own.
    """

    repository: str
    system_prompt: str = ""


FLAVOURS: Mapping[str, Flavour] = MappingProxyType(
    {
        "2.0": Flavour("Alpha-VLLM/Lumina-Image-2.0"),
        "neta-lumina": Flavour(
            "neta-art/Neta-Lumina-diffusers",
            system_prompt="You are an assistant designed to generate anime images based on textual prompts.",
        ),
    }
)

ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
MLP = ("feed_forward.linear_1", "feed_forward.linear_2", "feed_forward.linear_3")

TARGETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "attention": tuple(f"layers.*.{layer}" for layer in ATTENTION),
        "all": ATTENTION,
        "all+ffs": ATTENTION + MLP,
        "modulation": (*ATTENTION, *MLP, "norm1.linear"),
    }
)


class Lumina2Options(PipelineOptions):
    """Which Lumina 2 model is trained, and how it is asked."""

    flavour: Literal["2.0", "neta-lumina"] = "2.0"
    """Published model that is trained, or that a checkpoint of your own comes from."""
    checkpoint: str = ""
    """Another folder in diffusers' layout, or a repository on the hub as owner/name. Empty: the flavour's own."""
    targets: Literal["attention", "all", "all+ffs", "modulation"] = "all"
    """Layers that an adapter changes: attention is that of the 26 joint blocks, all that of the refiners too; +ffs adds
    the layers between, modulation those that the time acts through as well. [adapter] targets names others."""
    max_tokens: int = Field(default=256, ge=1, le=512)
    """Tokens that the text encoder reads of a caption with its system prompt; at most the positions that the model has
    for text, which are 299 of the published ones."""
    system_prompt: str = ""
    """What stands before every caption, and not before negative prompts and dropped captions. Empty: the flavour's."""
    cfg_normalization: bool = True
    """In previews, whether guidance leaves the length of the answer as it is without."""
    cfg_truncation: float = Field(default=1.0, ge=0, le=1)
    """In previews, the share of the sampling steps that are guided, from the first on."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.checkpoint.endswith(".safetensors"):
            raise ValueError(
                "checkpoint is a whole model; name a single file of weights in denoiser, and the flavour that it is of"
            )
        return self

    @property
    def published(self) -> Flavour:
        """What is known of the flavour."""
        return FLAVOURS[self.flavour]

    @property
    def before(self) -> str | None:
        """The system prompt; None for the pipeline's own."""
        return self.system_prompt or self.published.system_prompt or None
