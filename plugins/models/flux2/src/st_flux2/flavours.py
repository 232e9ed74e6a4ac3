"""Flavours: the published models of the family, and what is set for any of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Self

from pydantic import Field, model_validator

from st.model.pipelines.pipeline_family import PipelineOptions

DEV, KLEIN = "Flux2Pipeline", "Flux2KleinPipeline"


@dataclass(frozen=True, slots=True)
class Flavour:
    """One published model.

    repository: on the hub. pipeline: its class in diffusers; the two read captions with different language models.
    architecture, version: what other programs call it. few_steps: whether it is distilled into few steps, and takes no
    guidance. base: of such a one, the flavour that it was distilled from.
    """

    repository: str
    architecture: str
    version: str
    pipeline: str = KLEIN
    few_steps: bool = False
    base: str = ""


Name = Literal["dev", "klein-base-4b", "klein-base-9b", "klein-4b", "klein-9b"]
SMALL, LARGE = ("Flux.2-klein-4b", "flux_2_klein_4b"), ("Flux.2-klein-9b", "flux_2_klein_9b")

FLAVOURS: Mapping[str, Flavour] = MappingProxyType(
    {
        "dev": Flavour("black-forest-labs/FLUX.2-dev", "Flux.2-dev", "flux_2_dev", DEV),
        "klein-base-4b": Flavour("black-forest-labs/FLUX.2-klein-base-4B", *SMALL),
        "klein-base-9b": Flavour("black-forest-labs/FLUX.2-klein-base-9B", *LARGE),
        "klein-4b": Flavour("black-forest-labs/FLUX.2-klein-4B", *SMALL, few_steps=True, base="klein-base-4b"),
        "klein-9b": Flavour("black-forest-labs/FLUX.2-klein-9B", *LARGE, few_steps=True, base="klein-base-9b"),
    }
)

# Written out: "attn.to_out" is one layer in single blocks, and a list of two modules in the others.
SINGLE = ("attn.to_qkv_mlp_proj", "single_transformer_blocks.*.attn.to_out")
PICTURE = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", *SINGLE)
TEXT = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out")
TEXT_MLP = ("ff_context.linear_in", "ff_context.linear_out")
MLP = ("ff.linear_in", "ff.linear_out", *TEXT_MLP)

TARGETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "mmdit": PICTURE,
        "all": PICTURE + TEXT,
        "all+ffs": PICTURE + TEXT + MLP,
        "context": TEXT,
        "context+ffs": TEXT + TEXT_MLP,
    }
)


class Flux2Options(PipelineOptions):
    """Which Flux.2 model is trained, and how it is asked."""

    flavour: Name = "klein-base-4b"
    """Published model that is trained, or that a checkpoint of your own comes from."""
    checkpoint: str = ""
    """Another folder in diffusers' layout, or a repository on the hub as owner/name. Empty: the flavour's own."""
    targets: Literal["mmdit", "all", "all+ffs", "context", "context+ffs"] = "mmdit"
    """Layers that an adapter changes: mmdit is attention where pictures pass, and single blocks whole; context is
    attention where only text does, all is both; +ffs adds the layers between. [adapter] targets names others."""
    guidance: float | tuple[float, float] = 1.0
    """Guidance that dev is told while it is trained: a number, or two to draw one between for each sample. At 1 it
    stays as distilled as it is."""
    max_tokens: int = Field(default=512, ge=1, le=512)
    """Tokens that are read of a caption, with the template around it. Padding is seen by the model, and kept."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        low, high = self.guidance if isinstance(self.guidance, tuple) else (self.guidance, self.guidance)
        if low < 0 or high < low:
            raise ValueError(f"guidance = {self.guidance} is no range; write the lower number first, at least 0")
        if "guidance" in self.model_fields_set and self.published.pipeline != DEV:
            raise ValueError(f"guidance has no effect: {self.flavour} is told none; delete model.guidance")
        if self.checkpoint.endswith(".safetensors"):
            raise ValueError(
                "checkpoint is a whole model; name a single file of weights in denoiser, and the flavour that it is of"
            )
        return self

    @property
    def published(self) -> Flavour:
        """What is known of the flavour."""
        return FLAVOURS[self.flavour]
