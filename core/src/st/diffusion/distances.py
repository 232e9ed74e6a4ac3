"""The built-in distances between a prediction and its target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from st.diffusion.distance import DISTANCE
from st.diffusion.layout import broadcast
from st.diffusion.path import straight
from st.options import Options

if TYPE_CHECKING:
    from torch import Tensor

    from st.diffusion.path import Path
    from st.registrar import Registrar


class L2Options(Options):
    """The squared difference."""


@dataclass(frozen=True, slots=True)
class L2:
    """The squared difference."""

    options: L2Options

    def __call__(self, prediction: Tensor, wanted: Tensor, t: Tensor, path: Path) -> Tensor:
        return (prediction - wanted) ** 2


class RobustOptions(Options):
    """Squared for small differences, linear for large ones, so that outliers pull less."""

    c: float = Field(default=0.1, gt=0, le=1)
    """Where squared turns into linear. The schedule starts or ends here."""
    schedule: Literal["constant", "exponential", "snr"] = "snr"
    """How c depends on the time: not at all, from 1 without noise to c at full noise, or by the share of noise."""


def threshold(options: RobustOptions, t: Tensor, path: Path) -> Tensor:
    """c of each time, like t.

    ``snr`` is (1 - c) / (1 + s)**2 + c, where s is noise / clean on a noise schedule and sqrt((1 - t) / (t + 1e-4)) on
    a straight path. The two run in opposite directions: c falls with noise on the former and grows with it on the
    latter.
    """
    c = options.c
    if options.schedule == "constant":
        return t.new_full(t.shape, c)
    if options.schedule == "exponential":
        return c**t
    if path is straight:
        ratio = ((1 - t) / (t + 1e-4)).sqrt()
    else:
        mix = path(t)
        ratio = t.new_zeros(t.shape) + mix.noise / mix.clean
    return (1 - c) / (1 + ratio) ** 2 + c


def _rounded(prediction: Tensor, wanted: Tensor, c: Tensor) -> Tensor:
    """2 (sqrt(d**2 + c**2) - c), like prediction: d**2 / c for small d, and 2 |d| for large. c: broadcastable."""
    squared = (prediction - wanted) ** 2
    # The same number, without the difference of two that nearly agree.
    return 2 * squared / ((squared + c**2).sqrt() + c)


@dataclass(frozen=True, slots=True)
class Huber:
    """2 c (sqrt(d**2 + c**2) - c): the squared difference where it is small (pseudo-Huber)."""

    options: RobustOptions

    def __call__(self, prediction: Tensor, wanted: Tensor, t: Tensor, path: Path) -> Tensor:
        c = broadcast(threshold(self.options, t, path), prediction.shape)
        return c * _rounded(prediction, wanted, c)


@dataclass(frozen=True, slots=True)
class SmoothL1:
    """2 (sqrt(d**2 + c**2) - c): twice the absolute difference where it is large."""

    options: RobustOptions

    def __call__(self, prediction: Tensor, wanted: Tensor, t: Tensor, path: Path) -> Tensor:
        c = broadcast(threshold(self.options, t, path), prediction.shape)
        return _rounded(prediction, wanted, c)


def register(register: Registrar) -> None:
    """Add the built-in distances."""
    register.add(DISTANCE, "l2", L2, L2Options)
    register.add(DISTANCE, "huber", Huber, RobustOptions)
    register.add(DISTANCE, "smooth_l1", SmoothL1, RobustOptions)
