"""The built-in densities: how training times are drawn."""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from statistics import NormalDist
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from st.diffusion.density import DENSITY, from_quantile
from st.options import Options

if TYPE_CHECKING:
    from torch import Tensor

    from st.randomness import Draws
    from st.registrar import Registrar


class UniformOptions(Options):
    """Every time is equally likely."""


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every time is equally likely."""

    options: UniformOptions
    shifted: ClassVar[bool] = True

    def __call__(self, draws: Draws) -> Tensor:
        return draws.uniform("time")


class LogitNormalOptions(Options):
    """Times around the middle: sigmoid(scale * (normal + mean)). Esser et al. 2024, arXiv:2403.03206."""

    scale: float = Field(default=1.0, gt=0)
    """Spread of the times. Below 1 they gather in the middle, above 2 at both ends."""
    mean: float = 0.0
    """Added to the normal number before it is scaled. Above 0 for more noise, below 0 for less."""


@dataclass(frozen=True, slots=True)
class LogitNormal:
    """Times around the middle. Esser et al. 2024, arXiv:2403.03206, section 3.1."""

    options: LogitNormalOptions
    shifted: ClassVar[bool] = True

    def __call__(self, draws: Draws) -> Tensor:
        normal = NormalDist()
        scale, mean = self.options.scale, self.options.mean
        return from_quantile(draws, lambda number: _sigmoid(scale * (normal.inv_cdf(number) + mean)))


def _sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)) that does not overflow."""
    return 0.5 * (1 + math.tanh(x / 2))


class BetaOptions(Options):
    """Times of a beta distribution."""

    alpha: float = Field(default=2.0, gt=0)
    """Larger for more noise."""
    beta: float = Field(default=2.0, gt=0)
    """Larger for less noise."""


@dataclass(frozen=True, slots=True)
class Beta:
    """Times of a beta distribution."""

    options: BetaOptions
    shifted: ClassVar[bool] = True

    def __call__(self, draws: Draws) -> Tensor:
        alpha, beta = self.options.alpha, self.options.beta
        return draws.tensor([random.Random(key).betavariate(alpha, beta) for key in draws.keys("time")])


class CubicOptions(Options):
    """Times of a density drawn by hand."""

    knots: tuple[Annotated[float, Field(ge=0)], ...] = Field(min_length=2)
    """Heights of the density at evenly spread times from 0 to 1; a smooth curve that never overshoots joins them."""

    @model_validator(mode="after")
    def _has_mass(self) -> Self:
        if not any(self.knots):
            raise ValueError("all knots are 0, so no time could be drawn")
        return self


class Cubic:
    """Times of the piecewise cubic density through the knots. Fritsch and Butland 1984 (PCHIP).

    Integrated by the trapezoid rule on 4097 points, and inverted linearly between them.
    """

    shifted: ClassVar[bool] = True

    def __init__(self, options: CubicOptions) -> None:
        curve = monotone_cubic(options.knots)
        self._intervals = 4096
        heights = [curve(point / self._intervals) for point in range(self._intervals + 1)]
        self._masses = list(accumulate((low + high for low, high in pairwise(heights)), initial=0.0))

    def __call__(self, draws: Draws) -> Tensor:
        return from_quantile(draws, self.quantile)

    def quantile(self, number: float) -> float:
        """The time before which this share of all draws falls."""
        mass = number * self._masses[-1]
        interval = min(bisect_right(self._masses, mass), self._intervals) - 1
        low, high = self._masses[interval], self._masses[interval + 1]
        return (interval + (mass - low) / (high - low)) / self._intervals


def monotone_cubic(knots: Sequence[float]) -> Callable[[float], float]:
    """The curve through knots at evenly spread places in [0, 1]; between two knots it never leaves their range."""
    gaps = len(knots) - 1
    rises = [after - before for before, after in pairwise(knots)]
    slopes = [2 * a * b / (a + b) if a * b > 0 else 0.0 for a, b in pairwise(rises)]
    if gaps == 1:
        slopes = [rises[0], rises[0]]
    else:
        slopes = [_end_slope(rises[0], rises[1]), *slopes, _end_slope(rises[-1], rises[-2])]

    def curve(place: float) -> float:
        gap = min(int(place * gaps), gaps - 1)
        s = place * gaps - gap
        rise, start, end = rises[gap], slopes[gap], slopes[gap + 1]
        return knots[gap] + s * (start + s * (3 * rise - 2 * start - end + s * (start + end - 2 * rise)))

    return curve


def _end_slope(nearest: float, second: float) -> float:
    """Slope at an end of the curve: of the parabola through three knots, held back where it would overshoot."""
    slope = (3 * nearest - second) / 2
    if slope * nearest <= 0:
        return 0.0
    return 3 * nearest if nearest * second <= 0 and abs(slope) > 3 * abs(nearest) else slope


class ListOptions(Options):
    """Times of a fixed list, as they are."""

    times: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(min_length=1)
    """The times, from 0 (clean) to 1 (noise). A time that is listed twice is drawn twice as often. No shift."""
    order: Literal["random", "round-robin"] = "random"
    """Whether each sample gets any of the times, or they take turns from sample to sample."""


@dataclass(frozen=True, slots=True)
class FixedList:
    """Times of a fixed list, which no shift moves."""

    options: ListOptions
    shifted: ClassVar[bool] = False

    def __call__(self, draws: Draws) -> Tensor:
        times = self.options.times
        turns = draws.indices if self.options.order == "round-robin" else draws.integers("time", len(times))
        return draws.tensor([times[turn % len(times)] for turn in turns])


class SegmentedOptions(Options):
    """Every time is equally likely, and neighbouring samples get times far apart."""

    segments: int = Field(default=4, ge=1)
    """How many consecutive samples share out the range of times, from noise to clean. 1 draws each on its own."""
    multiplier: float = Field(default=1.0, ge=0)
    """How much more often than elsewhere a time between begin and end is drawn. 0 leaves that range out."""
    begin: float = Field(default=0.0, ge=0, le=1)
    """Where the range that multiplier favours begins: 0.75 for the noisiest quarter."""
    end: float = Field(default=1.0, ge=0, le=1)
    """Where the range that multiplier favours ends: 0.25 for the cleanest quarter."""

    @model_validator(mode="after")
    def _has_a_range(self) -> Self:
        if self.begin >= self.end:
            raise ValueError(f"begin = {self.begin} is not before end = {self.end}")
        whole = self.begin == 0 and self.end == 1
        if self.multiplier != 1 and whole:
            raise ValueError(f"multiplier = {self.multiplier} favours nothing while begin and end span all times")
        if self.multiplier == 1 and not whole:
            raise ValueError("begin and end have no effect while multiplier is 1")
        return self


@dataclass(frozen=True, slots=True)
class Segmented:
    """Stratified times over a range that may be favoured.

    Sample i of the run draws from segment ``i modulo segments`` of equal probability, the first being the noisiest. A
    step whose samples are a multiple of ``segments`` covers the range evenly whatever the size of its microbatches.
    The reference is the draw index and not the place in the batch, so that a row does not depend on its batch mates.
    """

    options: SegmentedOptions
    shifted: ClassVar[bool] = True

    def __call__(self, draws: Draws) -> Tensor:
        segments = self.options.segments
        return draws.tensor(
            [
                self.quantile((segments - 1 - index % segments + number) / segments)
                for index, number in zip(draws.indices, draws.numbers("time"), strict=True)
            ]
        )

    def quantile(self, number: float) -> float:
        """The time before which this share of all draws falls."""
        begin, end, multiplier = self.options.begin, self.options.end, self.options.multiplier
        favoured = (end - begin) * multiplier
        mass = number * (begin + favoured + 1 - end)
        if mass < begin:
            return mass
        if mass < begin + favoured:
            return begin + (mass - begin) / multiplier
        return end + mass - begin - favoured


def register(register: Registrar) -> None:
    """Add the built-in densities."""
    register.add(DENSITY, "uniform", Uniform, UniformOptions)
    register.add(DENSITY, "logit_normal", LogitNormal, LogitNormalOptions)
    register.add(DENSITY, "beta", Beta, BetaOptions)
    register.add(DENSITY, "cubic", Cubic, CubicOptions)
    register.add(DENSITY, "list", FixedList, ListOptions)
    register.add(DENSITY, "segmented", Segmented, SegmentedOptions)
