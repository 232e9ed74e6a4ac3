"""Flavours: the published models of the family, and what is set for any of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Self

from pydantic import Field, model_validator

from st.model.pipelines.pipeline_family import PipelineOptions

UNDISTILLED: Mapping[str, Mapping[str, object]] = MappingProxyType({"density": {"kind": "logit_normal", "mean": -0.4}})
"""Times as the makers draw them: the sigmoid of a normal number with mean -0.4."""
EIGHT = tuple(round(3 * t / (1 + 2 * t), 6) for t in (1, 7 / 8, 3 / 4, 5 / 8, 1 / 2, 3 / 8, 1 / 4, 1 / 8))
DISTILLED: Mapping[str, Mapping[str, object]] = MappingProxyType({"density": {"kind": "list", "times": EIGHT}})
"""A distilled model knows the eight times at which it is asked, and the makers train it at those."""


@dataclass(frozen=True, slots=True)
class Flavour:
    """One published model. repository: on the hub, where it lies there in diffusers' layout."""

    repository: str = ""
    distilled: bool = False


FLAVOURS: Mapping[str, Flavour] = MappingProxyType(
    {
        "base": Flavour(),
        "sft": Flavour(),
        "turbo": Flavour(distilled=True),
        "xl-turbo": Flavour("ACE-Step/acestep-v15-xl-turbo-diffusers", distilled=True),
    }
)

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TARGETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "attention": ATTENTION,
        "self": tuple(f"self_attn.{name}" for name in ATTENTION),
        "cross": tuple(f"cross_attn.{name}" for name in ATTENTION),
        "attention+mlp": (*ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    }
)


class AceStepOptions(PipelineOptions):
    """Which ACE-Step 1.5 model is trained, and how it is asked."""

    flavour: Literal["base", "sft", "turbo", "xl-turbo"] = "xl-turbo"
    """Published model that is trained, or that a checkpoint of your own comes from. The turbo ones are distilled: they
    are trained at the eight times at which they are asked, and know no guidance."""
    checkpoint: str = ""
    """Folder in diffusers' layout, or a repository on the hub as owner/name. Empty: the flavour's own, which is there
    for xl-turbo; the others are converted with diffusers' convert_ace_step_to_diffusers.py."""
    latents: Literal["mode", "sample"] = "sample"
    """What is taken of the autoencoder's answer: the likeliest value, or a sample that only the sound decides, as the
    makers take it."""
    tiling: bool = False
    """Whether the autoencoder takes sounds of more than 30 seconds in parts that overlap: less memory, and all but the
    same latents."""
    targets: Literal["attention", "self", "cross", "attention+mlp"] = "attention"
    """Layers that an adapter changes: attention, only that between moments (self) or only that to the text (cross), or
    the layers between too. [adapter] targets names others."""
    language: str = "en"
    """Language of lyrics whose sample or prompt names none, as a code such as "en" or "ja"."""
    preview_shift: float = Field(default=3.0, gt=0)
    """How far the steps of previews are moved towards noise, as the pipeline's shift: 3 is its own, 1 is none."""

    @model_validator(mode="after")
    def _can_be_found(self) -> Self:
        if not self.checkpoint and not self.published.repository:
            raise ValueError(
                f"flavour {self.flavour!r} is not published in diffusers' layout; convert it with "
                "convert_ace_step_to_diffusers.py of diffusers, and name the folder in checkpoint"
            )
        return self

    @property
    def published(self) -> Flavour:
        """What is known of the flavour."""
        return FLAVOURS[self.flavour]
