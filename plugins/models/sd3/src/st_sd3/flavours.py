"""Flavours: the published models of the family, and what is set for any of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from st.model.pipelines.pipeline_family import PipelineOptions


@dataclass(frozen=True, slots=True)
class Flavour:
    """One published model.

    repository: on the hub. blocks: how many the denoiser has. places: along an edge, of its table of positions; one is
    16 pixels. architecture: what other programs call it. base: the same for kohya's. distilled: whether it draws in a
    few steps without guidance.
    """

    repository: str
    blocks: int
    places: int
    architecture: str
    base: str
    distilled: bool = False


FLAVOURS: Mapping[str, Flavour] = MappingProxyType(
    {
        "medium": Flavour(
            "stabilityai/stable-diffusion-3-medium-diffusers", 24, 192, "stable-diffusion-3-medium", "sd3m"
        ),
        "3.5-medium": Flavour(
            "stabilityai/stable-diffusion-3.5-medium", 24, 384, "stable-diffusion-3.5-medium", "sd3.5-medium"
        ),
        "3.5-large": Flavour(
            "stabilityai/stable-diffusion-3.5-large", 38, 192, "stable-diffusion-3.5-large", "sd3.5-large"
        ),
        "3.5-large-turbo": Flavour(
            "stabilityai/stable-diffusion-3.5-large-turbo",
            38,
            192,
            "stable-diffusion-3.5-large",
            "sd3.5-large",
            distilled=True,
        ),
    }
)

PICTURE = ("to_q", "to_k", "to_v", "to_out.0")
TEXT = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out")
TEXT_MLP = ("ff_context.net.0.proj", "ff_context.net.2")
MLP = ("ff.net.0.proj", "ff.net.2", *TEXT_MLP)

TARGETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "mmdit": PICTURE,
        "all": PICTURE + TEXT,
        "all+ffs": PICTURE + TEXT + MLP,
        "context": TEXT,
        "context+ffs": TEXT + TEXT_MLP,
    }
)


class Sd3Options(PipelineOptions):
    """Which Stable Diffusion 3 model is trained, and how it is asked."""

    flavour: Literal["medium", "3.5-medium", "3.5-large", "3.5-large-turbo"] = "3.5-medium"
    """Published model that is trained, or that a checkpoint of your own comes from."""
    checkpoint: str = ""
    """Another folder in diffusers' layout, or a repository on the hub as owner/name. Empty: the flavour's own."""
    targets: Literal["mmdit", "all", "all+ffs", "context", "context+ffs"] = "all"
    """Layers that an adapter changes: mmdit is attention where pictures pass, context where only text does, all is
    both; +ffs adds the layers between. [adapter] targets names others."""
    max_tokens: int = Field(default=256, ge=1, le=512)
    """Tokens that T5 reads of a caption; each CLIP reads 77."""
    t5: bool = True
    """Read captions with T5 too, the largest of the three text encoders. Without it the model is shown zeros in its
    place, as where a checkpoint has none."""
    skip_layers: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Blocks that a further prediction leaves out in previews, which are then guided away from it. [7, 8, 9] is what
    the makers say for 3.5-medium. Needs [validation] guidance above 1, and takes a half more time."""
    skip_strength: float = Field(default=2.8, gt=0)
    """How strongly previews are guided away from the prediction without skip_layers."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.checkpoint.endswith(".safetensors"):
            raise ValueError(
                "checkpoint is a whole model; name a single file of weights in denoiser, and the flavour that it is of"
            )
        if "skip_strength" in self.model_fields_set and not self.skip_layers:
            raise ValueError("skip_strength has no effect without skip_layers")
        if any(block >= self.published.blocks for block in self.skip_layers):
            raise ValueError(
                f"skip_layers = {list(self.skip_layers)}: {self.flavour} has {self.published.blocks} blocks"
            )
        return self

    @property
    def published(self) -> Flavour:
        """What is known of the flavour."""
        return FLAVOURS[self.flavour]
