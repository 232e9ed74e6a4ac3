"""Settings of the family: which model it is, and the noise that it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from st_sdxl.table_options import SCHEDULE
from st_sdxl.unet_options import UnetOptions

REPOSITORIES: Mapping[str, str] = MappingProxyType({"1.0": "Kwai-Kolors/Kolors-diffusers"})


class KolorsOptions(UnetOptions):
    """Which model is trained, and to say what."""

    schedule: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {**SCHEDULE, "beta_end": 0.014, "num_train_timesteps": 1100}
    )

    flavour: Literal["1.0"] = "1.0"
    """Published model that is trained, or that a checkpoint of your own comes from."""
