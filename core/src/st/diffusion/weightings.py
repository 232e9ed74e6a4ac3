"""The built-in weightings of times."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from st.diffusion.path import determinant, straight
from st.diffusion.weighting import WEIGHTING
from st.errors import Problem
from st.options import Options

if TYPE_CHECKING:
    from torch import Tensor

    from st.diffusion.path import Mix, Path
    from st.diffusion.target import Target
    from st.registrar import Registrar


class UniformOptions(Options):
    """Every time counts the same."""

    factor: float = Field(default=1.0, gt=0)
    """Multiplies the loss."""


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every time counts the same."""

    options: UniformOptions

    def __call__(self, input: Mix, output: Mix, t: Tensor) -> Tensor:
        return t.new_full(t.shape, self.options.factor)


class MinSnrOptions(Options):
    """Times with little noise count less. Hang et al. 2023, arXiv:2303.09556."""

    limit: float = Field(default=5.0, gt=0)
    """Signal-to-noise ratio above which a time stops counting more. Also known as gamma."""


@dataclass(frozen=True, slots=True)
class MinSnr:
    """min(SNR, limit) in the space of clean latents. Hang et al. 2023, arXiv:2303.09556, section 3.4.

    That is min(SNR, limit) / SNR for a noise target and min(SNR, limit) / (SNR + 1) for v; 0 at t = 0.
    """

    options: MinSnrOptions

    def __call__(self, input: Mix, output: Mix, t: Tensor) -> Tensor:
        signal, noise = _squares(input, t)
        # SNR times noise squared is signal squared: written so, nothing is infinite where there is no noise.
        return signal.minimum(self.options.limit * noise) / _resolution(input, output, t)

    def problem(self, path: Path, target: Target) -> Problem | None:
        return _needs_noise_schedule("min_snr", path)


class SoftMinSnrOptions(Options):
    """A smooth form of min_snr. Crowson et al. 2024, arXiv:2401.11605."""

    sigma_data: float = Field(gt=0)
    """Standard deviation of the clean latents. The limit that it softens is 1 / sigma_data squared."""


@dataclass(frozen=True, slots=True)
class SoftMinSnr:
    """1 / (1 / SNR + sigma_data**2) in the space of clean latents. Crowson et al. 2024, arXiv:2401.11605."""

    options: SoftMinSnrOptions

    def __call__(self, input: Mix, output: Mix, t: Tensor) -> Tensor:
        signal, noise = _squares(input, t)
        softened = signal * noise / (noise + self.options.sigma_data**2 * signal)
        return softened / _resolution(input, output, t)

    def problem(self, path: Path, target: Target) -> Problem | None:
        return _needs_noise_schedule("soft_min_snr", path)


class InverseSquareOptions(Options):
    """Scores a predicted picture by the velocity that it means. Also known as sigma_sqrt."""

    floor: float = Field(default=0.05, gt=0, le=1)
    """Times below this count as if they were this, so that the weight stays below 1 / floor squared."""


@dataclass(frozen=True, slots=True)
class InverseSquare:
    """1 / max(t, floor)**2: turns the error of a clean prediction on a straight path into that of the velocity.

    x - clean = t * (noise - clean) there, so the velocity's error is that of the clean latents divided by t.
    """

    options: InverseSquareOptions

    def __call__(self, input: Mix, output: Mix, t: Tensor) -> Tensor:
        return t.clamp(min=self.options.floor) ** -2

    def problem(self, path: Path, target: Target) -> Problem | None:
        return _needs_straight_path("inverse_square", path)


class CosmapOptions(Options):
    """Times in the middle count up to twice as much. Esser et al. 2024, arXiv:2403.03206."""


@dataclass(frozen=True, slots=True)
class Cosmap:
    """2 / (pi (1 - 2 t + 2 t**2)): the times of a cosine schedule. Esser et al. 2024, arXiv:2403.03206, section 3.1."""

    options: CosmapOptions

    def __call__(self, input: Mix, output: Mix, t: Tensor) -> Tensor:
        return 2 / (math.pi * (1 - 2 * t + 2 * t**2))

    def problem(self, path: Path, target: Target) -> Problem | None:
        return _needs_straight_path("cosmap", path)


def _squares(input: Mix, t: Tensor) -> tuple[Tensor, Tensor]:
    """(clean, noise) coefficients squared, each like t also where the mix has plain numbers."""
    zeros = t.new_zeros(t.shape)
    return zeros + input.clean**2, zeros + input.noise**2


def _resolution(input: Mix, output: Mix, t: Tensor) -> Tensor:
    """Noise squared times the squared error of the prediction that an error of 1 in the clean latents makes.

    x is known exactly, so clean and noise are wrong together: clean by d means noise by -d clean / noise, and the
    prediction by d times the determinant of both mixes / noise. Zero where the prediction says nothing about the clean
    latents.
    """
    squared = t.new_zeros(t.shape) + determinant(input, output) ** 2
    return squared.clamp(min=1e-20)


def _needs_noise_schedule(kind: str, path: Path) -> Problem | None:
    if path is not straight:
        return None
    return Problem(
        "weighting.kind",
        f"[weighting] kind = {kind!r} is made for noise schedules, and this model learns a straight path.",
        why="on a straight path the density of times decides how much each one counts",
        fix="delete the section, or set [density] mean below 0 for less noise and above 0 for more",
    )


def _needs_straight_path(kind: str, path: Path) -> Problem | None:
    if path is straight:
        return None
    return Problem(
        "weighting.kind",
        f"[weighting] kind = {kind!r} is made for straight paths, and this model learns a noise schedule.",
        fix='use kind = "min_snr"',
    )


def register(register: Registrar) -> None:
    """Add the built-in weightings."""
    register.add(WEIGHTING, "uniform", Uniform, UniformOptions)
    register.add(WEIGHTING, "min_snr", MinSnr, MinSnrOptions)
    register.add(WEIGHTING, "soft_min_snr", SoftMinSnr, SoftMinSnrOptions)
    register.add(WEIGHTING, "inverse_square", InverseSquare, InverseSquareOptions)
    register.add(WEIGHTING, "cosmap", Cosmap, CosmapOptions)
