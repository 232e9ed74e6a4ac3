"""Flavours: the published models of the family, and what is set for any of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from pydantic import Field

from st.model.pipelines.pipeline_family import PipelineOptions


@dataclass(frozen=True, slots=True)
class Flavour:
    """One published model.

    repository: on the hub. pipeline: its class in diffusers. few_steps: whether it is distilled into few steps: it is
    told where a step leads, and takes no guidance.
    """

    repository: str
    pipeline: str = "Flux3ModularPipeline"
    few_steps: bool = False


FLAVOURS: Mapping[str, Flavour] = MappingProxyType(
    {
        "klein-base": Flavour("black-forest-labs/flux-3-image-klein-base"),
        "klein": Flavour("black-forest-labs/flux-3-image-klein", "Flux3DistilledModularPipeline", few_steps=True),
    }
)
Name = Literal["klein-base", "klein"]

LAYERS = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
MLP = ("ff.linear_in", "ff.linear_out")


def _inside(*lists: str) -> tuple[str, ...]:
    return tuple(f"{blocks}.*.{layer}" for blocks in lists for layer in LAYERS)


TARGETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "picture": _inside("mode_blocks.image", "single_transformer_blocks"),
        "joint": _inside("single_transformer_blocks"),
        "all": LAYERS,
        "all+ffs": LAYERS + MLP,
    }
)


class Flux3Options(PipelineOptions):
    """Which FLUX.3 model is trained, and how it is asked."""

    flavour: Name = "klein-base"
    """Published model that is trained, or that a checkpoint of your own comes from."""
    checkpoint: str = ""
    """Another folder in diffusers' modular layout, or a repository on the hub as owner/name. Empty: the flavour's
    own."""
    targets: Literal["picture", "joint", "all", "all+ffs"] = "picture"
    """Layers that an adapter changes: picture is attention where the picture passes, joint that of joint blocks alone,
    all is all attention, that of text and references too; +ffs adds the layers between. [adapter] targets names
    others."""
    max_tokens: int = Field(default=512, ge=80, le=8192)
    """Tokens that are read of a caption, with the template around it. Shorter captions take no more than they need, in
    steps of 80."""
