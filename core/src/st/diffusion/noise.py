"""The noise that is mixed into clean latents, and what may be added to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from st.diffusion.path import straight
from st.errors import Problem
from st.options import Options

if TYPE_CHECKING:
    from torch import Tensor

    from st.diffusion.path import Path
    from st.randomness import Draws


class NoiseOptions(Options):
    """What is added to the noise of a training step."""

    offset: float = Field(default=0.0, ge=0)
    """Strength of a random shift of each channel's noise, for very dark and very bright pictures. 0 for none."""
    offset_probability: float = Field(default=0.25, gt=0, le=1)
    """How many of the samples get that shift."""
    perturbation: float = Field(default=0.0, ge=0)
    """Strength of further noise that the denoiser sees and is not asked for, against overfitting. 0 for none."""
    perturbation_steps: int = Field(default=0, ge=0)
    """Optimizer steps after which the further noise has faded to nothing. 0 keeps it for the whole run."""

    @model_validator(mode="after")
    def _every_setting_has_an_effect(self) -> Self:
        if "offset_probability" in self.model_fields_set and not self.offset:
            raise ValueError("offset_probability has no effect while offset is 0")
        if self.perturbation_steps and not self.perturbation:
            raise ValueError("perturbation_steps has no effect while perturbation is 0")
        return self

    def problem(self, path: Path) -> Problem | None:
        """Why these settings cannot be used on a path, or None."""
        if not self.offset or path is not straight:
            return None
        return Problem(
            "noise.offset",
            f"[noise] offset = {self.offset} is made for noise schedules, and this model learns a straight path.",
            why="a straight path ends in pure noise, so it has no brightness to correct",
            fix="delete offset",
        )


def draw_noise(options: NoiseOptions, like: Tensor, draws: Draws) -> Tensor:
    """The noise that a step's target is made of, like ``like``.

    Offset: Guttenberg 2023, "Diffusion with offset noise", decided for each sample on its own.
    """
    noise = draws.normal("noise", like)
    if not options.offset:
        return noise
    chosen = [number < options.offset_probability for number in draws.numbers("offset/chosen")]
    strength = draws.tensor([options.offset * chance for chance in chosen])
    by_channel = strength[:, None] * draws.normal("offset", like.flatten(2)[..., 0])
    return noise + by_channel.reshape(*by_channel.shape, *[1] * (like.ndim - 2))


def perturb(options: NoiseOptions, noise: Tensor, draws: Draws, samples_per_step: int) -> Tensor:
    """The noise that a denoiser sees. Ning et al. 2023, arXiv:2301.11706.

    The step that fades the perturbation is read off a sample's draw index, so that it is the same after any number of
    stops.
    """
    if not options.perturbation:
        return noise
    steps = [index // samples_per_step for index in draws.indices]
    fade = options.perturbation_steps
    left = [max(0.0, 1 - step / fade) if fade else 1.0 for step in steps]
    if not any(left):
        return noise
    strength = draws.tensor([options.perturbation * share for share in left])
    return noise + strength.reshape(-1, *[1] * (noise.ndim - 1)) * draws.normal("perturbation", noise)
