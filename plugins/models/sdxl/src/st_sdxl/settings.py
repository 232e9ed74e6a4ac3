"""Settings of the family: which model it is, what its U-Net is taught to say, and about which times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from st.diffusion.path import DiscretePath, scaled_linear_betas, zero_terminal_snr
from st.model.pipelines.pipeline_family import PipelineOptions

REPOSITORIES: Mapping[str, str] = {
    "base-1.0": "stabilityai/stable-diffusion-xl-base-1.0",
    "base-0.9": "stabilityai/stable-diffusion-xl-base-0.9",
    "refiner-1.0": "stabilityai/stable-diffusion-xl-refiner-1.0",
    "refiner-0.9": "stabilityai/stable-diffusion-xl-refiner-0.9",
}

SCHEDULE: Mapping[str, object] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}
"""The noise schedule of every SDXL, as a scheduler's configuration names it."""

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TRANSFORMER = (*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv")
TARGETS = {"attention": ATTENTION, "transformer": TRANSFORMER, "unet": (*TRANSFORMER, *CONVOLUTIONS)}


class SdxlOptions(PipelineOptions):
    """Which model is trained, and to say what."""

    checkpoint: str = ""
    """Folder in diffusers' layout, or repository owner/name, of a model to train in place of the flavour's own."""
    flavour: Literal["base-1.0", "base-0.9", "refiner-1.0", "refiner-0.9"] = "base-1.0"
    """Which model of the family it is. A refiner reads another text encoder and knows how a picture was scored."""
    prediction: Literal["epsilon", "v"] | None = None
    """What the U-Net says: the noise, or v. Unset: the noise, and a checkpoint that says otherwise is refused."""
    zero_terminal_snr: bool = False
    """End the schedule in pure noise, so that pictures can be very dark or very bright (arXiv:2305.08891)."""
    flow: bool = False
    """Score the velocity that the U-Net's answer means, as flow models do (Diff2Flow, arXiv:2506.02221)."""
    stage: Literal["whole", "first", "second"] = "whole"
    """Which times are learnt: all, the noisy ones above strength, or the clean ones below it (a refiner's)."""
    strength: float = Field(default=0.2, gt=0, lt=1)
    """Where the first stage ends and the second begins: 0.2 leaves a fifth of the times to the second."""
    train_text: bool = False
    """Train both text encoders too: they then run in every step, and captions are not cached."""
    targets: Literal["attention", "transformer", "unet"] = "attention"
    """Layers of the U-Net that an adapter changes: attention, all of the transformer blocks, or convolutions too.
    [adapter] targets names others."""
    aesthetic_score: float = Field(default=7.0, ge=0, le=10)
    """The score that a refiner is told its training pictures have."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.zero_terminal_snr and self.prediction != "v":
            raise ValueError("zero_terminal_snr needs prediction = 'v': pure noise says nothing about itself")
        if "strength" in self.model_fields_set and self.stage == "whole":
            raise ValueError("strength has no effect while stage is 'whole'")
        if "aesthetic_score" in self.model_fields_set and not self.is_refiner:
            raise ValueError("aesthetic_score has no effect on a base model")
        if self.train_text and self.is_refiner:
            raise ValueError("train_text goes with a base model; a refiner has one text encoder of two")
        return self

    @property
    def is_refiner(self) -> bool:
        """Whether it is the model that finishes the pictures of a base model."""
        return self.flavour.startswith("refiner")

    def path(self) -> DiscretePath:
        """The noise schedule that is trained on."""
        path = DiscretePath.of_betas(scaled_linear_betas(0.00085, 0.012))
        return DiscretePath(zero_terminal_snr(path.alphas_cumprod)) if self.zero_terminal_snr else path

    def density(self) -> Mapping[str, object]:
        """The [density] section that keeps to this stage's times; empty for all of them."""
        if self.stage == "whole":
            return {}
        begin, end = (0.0, self.strength) if self.stage == "first" else (self.strength, 1.0)
        return {"kind": "segmented", "multiplier": 0.0, "begin": begin, "end": end}

    def scheduler(self) -> Mapping[str, Any]:
        """Settings that a sampler needs for what the U-Net is taught to say."""
        settings: dict[str, Any] = {}
        if self.prediction is not None:
            settings["prediction_type"] = {"epsilon": "epsilon", "v": "v_prediction"}[self.prediction]
        if self.zero_terminal_snr:
            settings |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        return settings
