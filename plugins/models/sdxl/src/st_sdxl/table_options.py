"""Settings of a family with a table of noise: what its denoiser is taught to say, and about which times."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from st.diffusion.path import DiscretePath, linear_betas, scaled_linear_betas, zero_terminal_snr
from st.model.pipelines.pipeline_family import PipelineOptions

SCHEDULE: Mapping[str, Any] = MappingProxyType(
    {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
)
"""The noise schedule of latent diffusion, as a scheduler's configuration names it."""

SAID: Mapping[str, str] = MappingProxyType({"epsilon": "epsilon", "v": "v_prediction"})
"""What a denoiser says, by its name here, as a scheduler's configuration names it."""


class TableOptions(PipelineOptions):
    """Which model is trained, and to say what."""

    schedule: ClassVar[Mapping[str, Any]] = SCHEDULE
    """The noise schedule that the family's models were trained on; a checkpoint with another is refused."""

    checkpoint: str = ""
    """Folder in diffusers' layout, or repository owner/name, of a model to train in place of the flavour's own."""
    prediction: Literal["epsilon", "v"] | None = None
    """What the denoiser says: the noise, or v. Unset: what the flavour's own says, and a checkpoint that says otherwise
    is refused."""
    zero_terminal_snr: bool = False
    """End the schedule in pure noise, so that pictures can be very dark or very bright (arXiv:2305.08891)."""
    flow: bool = False
    """Score the velocity that the denoiser's answer means, as flow models do (Diff2Flow, arXiv:2506.02221)."""
    stage: Literal["whole", "first", "second"] = "whole"
    """Which times are learnt: all, the noisy ones above strength, or the clean ones below it (a refiner's)."""
    strength: float = Field(default=0.2, gt=0, lt=1)
    """Where the first stage ends and the second begins: 0.2 leaves a fifth of the times to the second."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.zero_terminal_snr and self.says != "v":
            raise ValueError("zero_terminal_snr needs prediction = 'v': pure noise says nothing about itself")
        if "strength" in self.model_fields_set and self.learnt == "whole":
            raise ValueError("strength has no effect while stage is 'whole'")
        return self

    @property
    def native(self) -> Literal["epsilon", "v"]:
        """What the flavour's published model says."""
        return "epsilon"

    @property
    def says(self) -> Literal["epsilon", "v"]:
        """What the denoiser is taught to say."""
        return self.prediction or self.native

    @property
    def learnt(self) -> Literal["whole", "first", "second"]:
        """Which times are learnt."""
        return self.stage

    @property
    def border(self) -> float:
        """The time where the first stage ends and the second begins."""
        return self.strength

    def path(self) -> DiscretePath:
        """The noise schedule that is trained on."""
        known = self.schedule
        spread = linear_betas if known["beta_schedule"] == "linear" else scaled_linear_betas
        betas = spread(known["beta_start"], known["beta_end"], known["num_train_timesteps"])
        path = DiscretePath.of_betas(betas)
        return DiscretePath(zero_terminal_snr(path.alphas_cumprod)) if self.zero_terminal_snr else path

    def density(self) -> Mapping[str, object]:
        """The [density] section that keeps to this stage's times; empty for all of them."""
        if self.learnt == "whole":
            return {}
        begin, end = (0.0, self.border) if self.learnt == "first" else (self.border, 1.0)
        return {"kind": "segmented", "multiplier": 0.0, "begin": begin, "end": end}

    def scheduler(self) -> Mapping[str, Any]:
        """Settings that a sampler needs for what the denoiser is taught to say."""
        settings: dict[str, Any] = {}
        if self.prediction is not None:
            settings["prediction_type"] = SAID[self.prediction]
        if self.zero_terminal_snr:
            settings |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        return settings
