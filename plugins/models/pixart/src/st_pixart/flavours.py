"""Flavours: the published models of the family, and what is set for any of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from st_sdxl.table_options import TableOptions


@dataclass(frozen=True, slots=True)
class Flavour:
    """One published model. stage: the times that it knows. border: where its stage meets the other's."""

    repository: str
    stage: Literal["whole", "first", "second"] = "whole"
    border: float = 0.2


MEGAPIXEL = "terminusresearch/pixart-900m-1024-ft-v0"
FLAVOURS: Mapping[str, Flavour] = MappingProxyType(
    {
        "600M-512": Flavour("PixArt-alpha/PixArt-Sigma-XL-2-512-MS"),
        "600M-1024": Flavour("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS"),
        "600M-2048": Flavour("PixArt-alpha/PixArt-Sigma-XL-2-2K-MS"),
        "900M-1024": Flavour(f"{MEGAPIXEL}.6"),
        # Its makers give the second expert the last 400 of 1000 times.
        "900M-1024-first": Flavour(f"{MEGAPIXEL}.7-stage1", stage="first", border=0.4),
        "900M-1024-second": Flavour(f"{MEGAPIXEL}.7-stage2", stage="second", border=0.4),
    }
)

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TARGETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"attention": ATTENTION, "blocks": (*ATTENTION, "ff.net.0.proj", "ff.net.2")}
)


class PixArtOptions(TableOptions):
    """Which model is trained, and to say what."""

    schedule: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "num_train_timesteps": 1000}
    )

    flavour: Literal["600M-512", "600M-1024", "600M-2048", "900M-1024", "900M-1024-first", "900M-1024-second"] = (
        "600M-1024"
    )
    """Published model that is trained, or that a checkpoint of your own comes from: its size, and the pixels of an
    edge. first and second are two experts that draw a picture together, each trained on the times of its stage."""
    targets: Literal["attention", "blocks"] = "attention"
    """Layers that an adapter changes: attention, or all of the blocks. [adapter] targets names others."""
    max_tokens: int = Field(default=300, ge=1, le=300)
    """Tokens that T5 reads of a caption."""
    partner: str = ""
    """Folder or repository of the expert of the other stage, for pictures during training: each then draws its own
    times. Empty: the expert that learns draws them all."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.partner and self.learnt == "whole":
            raise ValueError("partner has no effect while stage is 'whole'")
        return self

    @property
    def published(self) -> Flavour:
        """What is known of the flavour."""
        return FLAVOURS[self.flavour]

    @property
    def learnt(self) -> Literal["whole", "first", "second"]:
        return self.stage if "stage" in self.model_fields_set else self.published.stage

    @property
    def border(self) -> float:
        return self.strength if "strength" in self.model_fields_set else self.published.border
