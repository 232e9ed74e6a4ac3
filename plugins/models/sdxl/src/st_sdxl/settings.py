"""Settings of the family: which model it is, and what it is told."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, Self

from pydantic import Field, model_validator

from st_sdxl.unet_options import UnetOptions

REPOSITORIES: Mapping[str, str] = MappingProxyType(
    {
        "base-1.0": "stabilityai/stable-diffusion-xl-base-1.0",
        "base-0.9": "stabilityai/stable-diffusion-xl-base-0.9",
        "refiner-1.0": "stabilityai/stable-diffusion-xl-refiner-1.0",
        "refiner-0.9": "stabilityai/stable-diffusion-xl-refiner-0.9",
    }
)


class SdxlOptions(UnetOptions):
    """Which model is trained, and to say what."""

    flavour: Literal["base-1.0", "base-0.9", "refiner-1.0", "refiner-0.9"] = "base-1.0"
    """Which model of the family it is. A refiner reads another text encoder and knows how a picture was scored."""
    train_text: bool = False
    """Train both text encoders too: they then run in every step, and captions are not cached."""
    aesthetic_score: float = Field(default=7.0, ge=0, le=10)
    """The score that a refiner is told its training pictures have."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if "aesthetic_score" in self.model_fields_set and not self.is_refiner:
            raise ValueError("aesthetic_score has no effect on a base model")
        if self.train_text and self.is_refiner:
            raise ValueError("train_text goes with a base model; a refiner has one text encoder of two")
        return self

    @property
    def is_refiner(self) -> bool:
        """Whether it is the model that finishes the pictures of a base model."""
        return self.flavour.startswith("refiner")
